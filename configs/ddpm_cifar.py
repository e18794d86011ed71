"""DDPM on CIFAR-10, unconditional: the published recipe of Ho et al. 2020.

35,746,307 parameters (arXiv 2006.11239). The original clips the gradient of each of its 8
replicas before averaging; here the global gradient is clipped. optimizer.clip_scope=microbatch with
training.accumulation_steps=8 repeats the original.

Command:  python -m diffusion_jax.train --config=ddpm_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: a GPU or TPU. On a CPU it only shows that it runs: seconds per step
          (benchmarks/README.md).
Time:     800,000 steps took the authors 10.6 hours on a TPU v3-8; not yet measured with this code.
Score:    the paper's FID is 3.17 (50,000 samples against the training set, minimum over training);
          not yet reproduced with this code.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps"},
      "process": {"name": "linear_vp", "num_timesteps": 1000},
      "model": {
        "name": "unet",
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_blocks": 2,
        "attention_resolutions": (16,),
        "dropout": 0.1,
        "norm_groups": 32,
      },
      "loss": {"name": "simple"},
      "sampler": {"name": "ancestral", "steps": 1000, "variance": "fixed_large", "clip": True},
      "data": {"name": "tfds", "dataset": "cifar10", "flip": True},
      "optimizer": {
        "name": "adam",
        "learning_rate": 2e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "warmup_steps": 5000,
        "schedule": "constant",
        "clip_norm": 1.0,
        "clip_scope": "global",
      },
      "ema": {"decay": 0.9999, "warmup": False},
      "training": {"num_steps": 800_000, "batch_size": 128},
      "eval": {"every_steps": 50_000},
      "checkpoint": {"every_steps": 5000, "keep_last": 3, "keep_every_steps": 50_000},
      "logging": {"every_steps": 100, "sample_every_steps": 10_000, "num_samples": 64},
    }
  )
