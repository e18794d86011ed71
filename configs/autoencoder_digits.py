"""An autoencoder of scikit-learn's 8x8 digits for latent diffusion: 4x4x2 latents.

Command:  python -m diffusion_jax.train --config=autoencoder_digits
Hardware: any. Time: under two minutes on two CPU cores.
Score:    its own ELBO, the bound with N(0, I) as the prior, is 2.099 ± 0.014 bits/dim (KL 0.784,
          reconstruction 1.315); configs/latent_digits.py replaces that prior by a diffusion model.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "vae"},
      "model": {
        "name": "conv_vae",
        "latent_channels": 2,
        "channels": 32,
        "multipliers": (1, 2),
        "dropout": 0.1,
      },
      "decoder": {"name": "discretized_logistic"},
      # A small weight, so that the latents keep the detail that the diffusion model can learn.
      "loss": {"name": "elbo", "beta": 0.5},
      "data": {"name": "digits"},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.995, "warmup": True},
      "training": {"num_steps": 1000, "batch_size": 64},
      "eval": {"num_seeds": 3, "likelihood_repeats": 2},
      "checkpoint": {"every_steps": 500},
      "logging": {"every_steps": 100, "sample_every_steps": 500, "num_samples": 64},
    }
  )
