"""A small diffusion transformer on scikit-learn's 8x8 digits (Peebles and Xie 2023).

Process, loss, batches, steps and images are those of ddpm_digits; the network has 723,265
parameters.

Command:  python -m diffusion_jax.train --config=dit_digits
Hardware: any. Time: 879 s on two CPU cores shared with other programs.
Score:    the grid shows the digits 0 to 9; bits/dim and agreement are not yet measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
      "process": {"name": "cosine_vp"},
      "model": {
        "name": "dit",
        "depth": 4,
        "hidden": 96,
        "heads": 4,
        "patch": 1,
        "scan_blocks": False,  # so few blocks compile in seconds, and run faster one by one
      },
      "loss": {"name": "simple"},
      "sampler": {"name": "ddim", "steps": 50},
      "guidance": {"weight": 2.0},
      "data": {"name": "digits"},
      "optimizer": {
        "name": "adam",
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.995, "warmup": True},
      "training": {"num_steps": 1000, "batch_size": 64},
      "eval": {"num_seeds": 3, "likelihood_repeats": 2},
      "checkpoint": {"every_steps": 500},
      "logging": {"every_steps": 100, "sample_every_steps": 500, "num_samples": 80},
    }
  )
