"""Improved DDPM on CIFAR-10: the L_hybrid recipe of Nichol and Dhariwal 2021.

52.5 million parameters, 4,000 steps on the cosine schedule, learned variances (arXiv 2102.09672).
As in the original: no flips, no warm-up, no gradient clipping, attention with 4 heads at 16x16 and
8x8. The hybrid loss has the scale of its code: the mean squared error of the noise plus 0.001 times
the bound in bits/dim. Convolutions of stride 2 are padded on both sides. Unlike the original, an
image's time depends on that image only.

L_vlb, the full bound with importance-sampled times:
  --config.loss.name=vlb --config.loss.sampling=importance
Fewer sampling steps by its respacing; the variances are between those of the longer steps:
  --config.sampler.steps=100

Command:  python -m diffusion_jax.train --config=iddpm_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: a GPU or TPU. Time: not yet measured with this code; the authors trained 500,000 steps.
Score:    the paper has FID 3.19 and 3.17 bits/dim for L_hybrid, 11.47 and 2.94 for L_vlb (50,000
          samples; bits/dim of the test set over all 4,000 steps); not yet reproduced with this
          code.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps"},
      "process": {"name": "cosine_vp", "num_timesteps": 4000, "network_steps": 1000},
      "model": {
        "name": "unet",
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_blocks": 3,
        "attention_resolutions": (16, 8),
        "num_heads": 4,
        "dropout": 0.3,
        "adaptive_scale": True,
        "embedding": "positional_adm",
        "init": "adm",
        "norm_epsilon": 1e-5,
        "norm_groups": 32,
        "downsample_padding": (1, 1),
        "learned_variance": True,
      },
      "loss": {"name": "hybrid", "weight": 0.001},
      "sampler": {
        "name": "ancestral",
        "steps": 4000,
        "spacing": "linspace",
        "variance": "learned",
        "clip": True,
      },
      "vlb": {"variance": "learned", "clip": True},
      "data": {"name": "tfds", "dataset": "cifar10", "flip": False},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "warmup_steps": 0,
        "schedule": "constant",
        "clip_norm": None,
      },
      "ema": {"decay": 0.9999, "warmup": False},
      "training": {"num_steps": 500_000, "batch_size": 128},
      "eval": {"every_steps": 50_000},
      "checkpoint": {"every_steps": 5000, "keep_last": 3, "keep_every_steps": 50_000},
      "logging": {"every_steps": 100, "sample_every_steps": 50_000, "num_samples": 64},
    }
  )
