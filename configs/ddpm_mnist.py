"""Class-conditional diffusion on MNIST, 28x28.

Command:  python -m diffusion_jax.train --config=ddpm_mnist
Data:     mnist of tensorflow-datasets, downloaded (11 MB) and prepared at first use.
Hardware: a GPU or TPU; slow on a CPU.
Time:     not yet measured on an accelerator.
Score:    not yet measured over the whole run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
      "process": {"name": "cosine_vp"},
      "model": {
        "name": "unet",
        "channels": 64,
        "multipliers": (1, 2, 2),
        "num_blocks": 2,
        "attention_resolutions": (7,),
        "dropout": 0.1,
      },
      "loss": {"name": "simple"},
      "sampler": {"name": "ddim", "steps": 50},
      "guidance": {"weight": 2.0},
      "data": {"name": "tfds", "dataset": "mnist"},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "warmup_steps": 500,
        "schedule": "cosine",
      },
      "ema": {"decay": 0.999, "warmup": True},
      "training": {"num_steps": 20_000, "batch_size": 128},
      "eval": {"every_steps": 5000},
      "checkpoint": {"every_steps": 1000},
      "logging": {"every_steps": 100, "sample_every_steps": 1000, "num_samples": 80},
    }
  )
