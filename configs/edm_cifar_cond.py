"""EDM on CIFAR-10, class-conditional: the published recipe of Karras et al. 2022.

edm_cifar.py, which has the facts, with the class: DDPM++ with 55,735,299 parameters (55.7M), no
class ever hidden, and so no guidance. NCSN++ is the same with --config.model.embedding=fourier
--config.model.noise_multiplier=2 --config.model.resample_filter=1,3,3,1
--config.model.input_residual=true: 56,400,643 parameters (56.4M).

Command:  python -m diffusion_jax.train --config=configs/edm_cifar_cond.py
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: GPUs or TPUs. On a CPU it only shows that it runs.
Time:     about 2 days on 8 V100 for the authors; not yet measured with this code.
Score:    the paper's FID is 1.79 (arXiv 2206.00364; 50,000 samples, the least of three); not yet
          reproduced with this code.
"""

import math

from ml_collections import ConfigDict

BATCH = 512
NUM_DIMS = 32 * 32 * 3


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {
        "name": "diffusion",
        "prediction": "edm",
        "sigma_data": 0.5,
        "conditional": True,
        "label_dropout": 0.0,
        "augmentation": 0.12,
      },
      "process": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
      "model": {
        "name": "unet",
        "channels": 128,
        "multipliers": (2, 2, 2),
        "num_blocks": 4,
        "attention_resolutions": (16,),
        "dropout": 0.13,
        "decoder_attention": "last",
        "skip_scale": math.sqrt(0.5),
        "resampling": "block",
        "resample_filter": (1, 1),
        "resample_projection": True,
        "embedding": "positional",
        "label_embedding": "one_hot",
        "init": "edm",
        "norm_epsilon": 1e-6,
        "augmentation_labels": 9,
      },
      "loss": {"name": "edm", "log_sigma_mean": -1.2, "log_sigma_std": 1.2, "sigma_data": 0.5},
      "sampler": {"name": "heun", "steps": 18, "spacing": "karras", "rho": 7.0},
      "data": {"name": "tfds", "dataset": "cifar10", "flip": False},
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-3,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8 / NUM_DIMS,
        "warmup_steps": 10_000_000 // BATCH,
        "schedule": "constant",
        "clip_norm": None,
      },
      "ema": {"half_life_steps": 500_000 / BATCH, "half_life_ramp": 0.05},
      "training": {"num_steps": 200_000_000 // BATCH, "batch_size": BATCH},
      "eval": {"every_steps": 20_000},
      "checkpoint": {"every_steps": 2000, "keep_last": 3, "keep_every_steps": 20_000},
      "logging": {"every_steps": 50, "sample_every_steps": 5000, "num_samples": 64},
    }
  )
