"""A convolutional VAE on CIFAR-10, measured in bits/dim at 256 pixel levels.

Command:  python -m diffusion_jax.train --config=vae_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: a GPU or TPU. On a CPU it only shows that it runs.
Time:     not yet measured on an accelerator.
Score:    not yet measured. The independent-pixel baseline is printed next to the held-out ELBO.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "vae"},
      "model": {
        "name": "conv_vae",
        "latent_dim": 256,
        "channels": 64,
        "multipliers": (1, 2, 4),
        "num_blocks": 2,
        "dropout": 0.1,
      },
      "decoder": {"name": "discretized_logistic"},
      "loss": {"name": "elbo"},
      "data": {"name": "tfds", "dataset": "cifar10", "flip": True},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "warmup_steps": 1000,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.999, "warmup": True},
      "training": {"num_steps": 100_000, "batch_size": 128},
      "eval": {"every_steps": 5000},
      "checkpoint": {"every_steps": 5000},
      "logging": {"every_steps": 100, "sample_every_steps": 5000, "num_samples": 64},
    }
  )
