"""Rectified flow on CIFAR-10, unconditional: the published recipe of Liu et al. 2023.

Straight paths from data to noise and the mean squared error of their velocity at uniform times
(arXiv 2209.03003), with the DDPM++ of Song et al. 2021 (arXiv 2011.13456): 61,804,419 parameters,
one output per input channel. The facts come from the settings of the paper's program
(github.com/gnobitab/RectifiedFlow, ImageGeneration/configs): batch 128, Adam 2e-4 after a warm-up
of 5,000 steps, clipping at norm 1, dropout 0.15, flips, EMA 0.999999 with a shorter average at the
start (ema.warmup), up to 1.3M steps; samples by an adaptive Runge-Kutta
method of order 5(4) at tolerances of 1e-5.

Differences from the original: diffrax' adaptive method and its error norm, per image; the first and
last time, and the factor of the time before its embedding, are those of diffusion_jax/processes.

Command:  python -m diffusion_jax.train --config=flow_cifar
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: GPUs or TPUs. On a CPU it only shows that it runs.
Time:     not yet measured.
Score:    the paper's FID is 2.58 at 127 evaluations (1-rectified flow, 50,000 samples); not yet
          reproduced with this code.
"""

import math

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {"name": "diffusion", "prediction": "velocity"},
      "process": {"name": "flow"},
      "model": {
        "name": "unet",
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "num_blocks": 4,
        "attention_resolutions": (16,),
        "dropout": 0.15,
        "decoder_attention": "last",
        "skip_scale": math.sqrt(0.5),
        "resampling": "block",
        "resample_filter": (1, 1),
        "resample_projection": True,
        "embedding": "positional",
        "init": "edm",  # a tenth of the variance for query, key and value, as in the original
        "norm_groups": None,  # a quarter of the width, at most 32
      },
      "loss": {"name": "flow_matching", "times": "uniform"},
      "sampler": {"name": "probability_flow", "rtol": 1e-5, "atol": 1e-5},
      "data": {"name": "tfds", "dataset": "cifar10", "flip": True},
      "optimizer": {
        "name": "adam",
        "learning_rate": 2e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "warmup_steps": 5000,
        "schedule": "constant",
        "clip_norm": 1.0,
        "clip_scope": "global",
      },
      "ema": {"decay": 0.999999, "warmup": True},
      "training": {"num_steps": 1_300_000, "batch_size": 128},
      "eval": {"every_steps": 50_000},
      "checkpoint": {"every_steps": 5000, "keep_last": 3, "keep_every_steps": 100_000},
      "logging": {"every_steps": 100, "sample_every_steps": 10_000, "num_samples": 64},
    }
  )
