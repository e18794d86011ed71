"""EDM on CIFAR-10, unconditional: the published recipe of Karras et al. 2022 (arXiv 2206.00364).

DDPM++ with 55,733,891 parameters (published: 55.7M).
NCSN++ is the same with --config.model.embedding=fourier --config.model.noise_multiplier=2
--config.model.resample_filter=1,3,3,1 --config.model.input_residual=true: 56,397,827 parameters
(56.4M), the fixed frequencies not counted.

512 images a batch and 200M in all; the learning rate rises over the first 10M, and the average's
half-life is 0.5M images but at most 5% of those seen. Lengths are in steps of BATCH images here, so
another batch size changes all of them. The paper sums the loss over the image's dimensions; here it
is their mean: Adam's step does not depend on the gradient's scale but for eps, which is divided by
the same number. The flips are those of the augmentation (generative.augmentation), which the
network is told of, so the data section has none. Samples are rounded to the nearest level.

What differs: the augmentation pads each image by its whole mirror images, and not as far as some
image of the batch reaches; the sampler's state is float32 and not float64; and a gradient that is
not finite skips the update where the original replaces its entries.

Command:  python -m diffusion_jax.train --config=configs/edm_cifar.py
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: GPUs or TPUs. On a CPU it only shows that it runs.
Time:     about 2 days on 8 V100 for the authors; not yet measured with this code.
Score:    the paper's FID is 1.97 (50,000 samples, the least of three); not yet reproduced with this
          code.
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
        "norm_groups": None,  # a quarter of the width, at most 32
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
