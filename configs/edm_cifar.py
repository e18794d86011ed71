"""EDM on CIFAR-10, unconditional: the published recipe of Karras et al. 2022.

DDPM++ with 55,733,891 parameters (arXiv 2206.00364 has 55.7M).
NCSN++ is the same with --config.model.embedding=fourier --config.model.noise_multiplier=2
--config.model.resample_filter=1,3,3,1 --config.model.input_residual=true: 56,397,827 parameters
(56.4M), without the fixed frequencies.

Batches have 512 images, 200M in total. The learning rate rises over the first 10M images, and the
average's half-life is 0.5M images but at most 5% of those seen. Here these lengths are in steps of
BATCH images, so another batch size changes all of them. The paper sums the loss over the image's
dimensions and this config takes the mean: Adam's step depends on the gradient's scale only through
eps, which is divided by the same number. The augmentation (generative.augmentation) includes flips,
and the network receives its labels, so the data section has no flips. Samples are rounded to the
nearest level.

Differences from the original: the augmentation pads each image by its whole mirror images, not only
as far as an image of the batch reaches; the sampler's state is float32, not float64; and a gradient
that is not finite skips the update, while the original replaces its entries.

Command:  python -m diffusion_jax.train --config=edm_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: GPUs or TPUs. On a CPU it only shows that it runs.
Time:     about 2 days on 8 V100 for the authors; not yet measured with this code.
Score:    the paper's FID is 1.97 (50,000 samples, the minimum of three); not yet reproduced with
          this code.
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
