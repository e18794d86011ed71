"""A convolutional VAE on scikit-learn's 8x8 digits, measured at their 17 pixel levels.

Command:  python -m diffusion_jax.train --config=vae_digits
Hardware: any. Time: under three minutes on two CPU cores.
Score:    held-out ELBO 1.896 ± 0.017 bits/dim; independent pixels need 2.429. More steps or a wider
          posterior overfit: the training set has 1,500 images.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "vae"},
      "model": {
        "name": "conv_vae",
        "latent_dim": 8,
        "channels": 32,
        "multipliers": (1, 2),
        "dropout": 0.2,
      },
      "decoder": {"name": "discretized_logistic"},
      "loss": {"name": "elbo"},
      "data": {"name": "digits"},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.995, "warmup": True},
      "training": {"num_steps": 1200, "batch_size": 128},
      "eval": {"every_steps": 400, "num_seeds": 3, "likelihood_repeats": 2},
      "iwae": {"num_draws": 500, "chunk": 50},
      "checkpoint": {"every_steps": 400},
      "logging": {"every_steps": 100, "sample_every_steps": 400, "num_samples": 64},
    }
  )
