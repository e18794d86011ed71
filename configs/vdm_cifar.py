"""A variational diffusion model on CIFAR-10: the recipe of Kingma et al. 2021.

30,577,667 parameters of the network and two of the schedule (arXiv 2107.00630). As in the authors'
program: level k of 256 has the value 2 (k + 1/2) / 256 - 1 (process.image_scale); weight decay acts
on everything except biases, including the scales of norms and the schedule; samples take 1,000 even
steps of time from 1 to 0, without clipping, and are rounded from the final state z_0 to the nearest
level. Differences: the bound starts at t = 1e-5 instead of 0, which is 0.0002 of gamma, and its
even times are in another order.

Command:  python -m diffusion_jax.train --config=vdm_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: a TPU slice or several GPUs: the network never lowers the resolution, and the run is long.
Time:     10,000,000 steps on a TPU v3-8 in the paper; not yet measured with this code.
Score:    the paper's bound is 2.65 bits/dim on the test set, its FID 4.0; not yet reproduced with
          this code.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps"},
      "process": {
        "name": "learned_linear",
        "gamma_min": -13.3,
        "gamma_max": 5.0,
        "image_scale": 255 / 256,
      },
      "model": {
        "name": "vdm_unet",
        "channels": 128,
        "num_blocks": 32,
        "dropout": 0.1,
        "norm_groups": 32,
      },
      "loss": {"name": "vdm"},
      "sampler": {
        "name": "ancestral",
        "steps": 1000,
        "variance": "fixed_small",
        "spacing": "uniform",
        "final": "min_time",
        "clip": False,
      },
      "data": {"name": "tfds", "dataset": "cifar10", "flip": False},
      "optimizer": {
        "name": "adam",
        "learning_rate": 2e-4,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.01,
        "decay": "non_bias",
        "warmup_steps": 100,
        "schedule": "constant",
        "clip_norm": None,
      },
      "ema": {"decay": 0.9999, "warmup": False},
      "training": {"num_steps": 10_000_000, "batch_size": 128},
      "probability_flow": {"dequantization": "truncated_normal"},
      "eval": {"every_steps": 100_000, "training_likelihoods": ("continuous_vlb",)},
      "checkpoint": {"every_steps": 5000, "keep_last": 3, "keep_every_steps": 100_000},
      "logging": {"every_steps": 100, "sample_every_steps": 20_000, "num_samples": 64},
    }
  )
