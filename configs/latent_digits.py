"""Class-conditional latent diffusion on scikit-learn's 8x8 digits: 4x4x2 latents.

Command:  python -m diffusion_jax.train --config=autoencoder_digits
          python -m diffusion_jax.encode --workdir=runs/autoencoder_digits --out=data/latents_digits
          python -m diffusion_jax.train --config=latent_digits
Hardware: any.
Score:    held-out bound 1.898 ± 0.020 bits/dim at the 17 levels, given the label. With N(0, I)
          instead of the diffusion model, i.e. the autoencoder's own ELBO, it is 2.099. A classifier
          reads all of 500 samples as their label (benchmarks/digits_agreement.py).
Batches, steps and images seen are those of configs/ddpm_digits.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "latent_diffusion", "prediction": "v", "conditional": True},
      "process": {"name": "cosine"},
      "model": {
        "name": "unet",
        "channels": 32,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
      },
      "loss": {"name": "simple"},
      "sampler": {"name": "heun", "steps": 25},
      "guidance": {"weight": 2.0},
      # As in configs/autoencoder_digits.py, the source of the latents.
      "autoencoder": {
        "name": "conv_vae",
        "latent_channels": 2,
        "channels": 32,
        "multipliers": (1, 2),
        "dropout": 0.1,
      },
      "decoder": {"name": "discretized_logistic"},
      "data": {"name": "latents", "path": "data/latents_digits"},
      "optimizer": {
        "name": "adam",
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.995, "warmup": True},
      "training": {"num_steps": 1000, "batch_size": 64},
      "eval": {
        "training_likelihoods": ("continuous_vlb",),
        "num_seeds": 3,
        "likelihood_repeats": 2,
      },
      "checkpoint": {"every_steps": 500},
      "logging": {"every_steps": 100, "sample_every_steps": 500, "num_samples": 80},
    }
  )
