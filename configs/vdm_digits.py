"""A variational diffusion model with a learned noise schedule on scikit-learn's 8x8 digits.

Network, batches and steps are those of ddpm_digits. The loss is the bound of Kingma et al. 2021;
its gradient also trains the two ends of the schedule, which start at noise of a seventh of a
pixel level's width and at a log-SNR of -5.

Command:  python -m diffusion_jax.train --config=vdm_digits
Hardware: any. Time: 256 s on two CPU cores shared with other programs.
Score:    the bound is 1.914 ± 0.003 bits/dim on the held-out digits, and a classifier reads
          97.7 ± 0.6% of 500 samples as their label (three seeds, benchmarks/digits_families.py).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
      "process": {"name": "learned_linear", "gamma_min": -8.0, "gamma_max": 5.0},
      "model": {
        "name": "unet",
        "channels": 32,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
      },
      "loss": {"name": "vdm"},
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
      "probability_flow": {"dequantization": "truncated_normal"},
      "eval": {
        "num_seeds": 3,
        "likelihood_repeats": 2,
        "training_likelihoods": ("continuous_vlb",),
      },
      "checkpoint": {"every_steps": 500},
      "logging": {"every_steps": 100, "sample_every_steps": 500, "num_samples": 80},
    }
  )
