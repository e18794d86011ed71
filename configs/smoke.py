"""A tiny class-conditional diffusion model that trains in seconds, to try the commands.

Command:  python -m diffusion_jax.train --config=smoke
Hardware: any. Time: about 20 s on two CPU cores, most of it compilation. Score: none; it is
          too small to learn much.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
      "process": {"name": "linear_vp", "num_timesteps": 100},
      "model": {
        "name": "unet",
        "channels": 8,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
      },
      "loss": {"name": "simple"},
      "sampler": {"name": "ddim", "steps": 4},
      "guidance": {"weight": 2.0},
      "data": {"name": "synthetic", "num_images": 256, "image_size": 8, "channels": 1},
      "optimizer": {"name": "adam", "learning_rate": 1e-3},
      "ema": {"decay": 0.9, "warmup": True},
      "training": {"num_steps": 20, "batch_size": 16},
      "eval": {"batch_size": 64},
      "checkpoint": {"every_steps": 5},
      "logging": {"every_steps": 5, "sample_every_steps": None, "num_samples": 20},
    }
  )
