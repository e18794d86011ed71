"""Improved DDPM on scikit-learn's 8x8 digits: learned variances with the hybrid loss.

Network, batches and steps are those of ddpm_digits, with twice the output channels. For the full
bound instead of the hybrid loss: --config.loss.name=vlb.

Command:  python -m diffusion_jax.train --config=iddpm_digits
Hardware: any. Time: 244 s on two CPU cores shared with other programs.
Score:    the bound is 3.215 ± 0.010 bits/dim on the held-out digits, and a classifier reads 100% of
          500 samples as their label (three seeds, benchmarks/digits_families.py).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
      "process": {"name": "cosine_vp"},
      "model": {
        "name": "unet",
        "channels": 32,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
        "learned_variance": True,
      },
      "loss": {"name": "hybrid"},
      "sampler": {"name": "ancestral", "steps": 100, "variance": "learned"},
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
