"""EDM on scikit-learn's 8x8 digits: its preconditioning, loss and sampler (Karras et al. 2022).

The twin of ddpm_digits: the same network, batches and steps. sigma_data is that of the digits.

Command:  python -m diffusion_jax.train --config=configs/edm_digits.py
Hardware: any. Time: 146 s on two CPU cores that other programs were using too.
Score:    the bound from a log-SNR of 8 on is 2.212 ± 0.001 bits/dim of the held-out digits, and
          99.9 ± 0.1% of 500 samples are read as the digit that was asked for (three seeds,
          benchmarks/digits_families.py).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {
        "name": "diffusion",
        "prediction": "edm",
        "sigma_data": 0.75,
        "conditional": True,
      },
      "process": {"name": "edm"},
      "model": {
        "name": "unet",
        "channels": 32,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
      },
      "loss": {"name": "edm", "sigma_data": 0.75},
      "sampler": {"name": "heun", "steps": 18},
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
      "eval": {"num_seeds": 3},
      # Less noise has nothing to tell of 17 levels, and the loss hardly trains for it.
      "continuous_vlb": {"max_log_snr": 8.0},
      "checkpoint": {"every_steps": 500},
      "logging": {"every_steps": 100, "sample_every_steps": 500, "num_samples": 80},
    }
  )
