"""DiT-XL/4 on ImageNet at 64x64 pixels, class-conditional: straight paths in pixel space.

The transformer is DiT-XL (28 blocks of width 1152, 16 heads) on 16x16 patches of 4x4 pixels: 256
tokens, as DiT-XL/2 has for latents of 32x32. It has 674,890,032 parameters; DiT-XL/2 has 675M.
The settings are those of Peebles and Xie 2023 (arXiv 2212.09748), section 4: batches of 256, Adam
at a constant 1e-4 without warm-up, weight decay or clipping, flips, EMA 0.9999, and labels dropped
for a tenth of the images. The loss is that of SiT with the same settings (Ma et al. 2024, arXiv
2401.08740): the velocity of straight paths at uniform times, embedded as it is. SiT's time runs
from noise to data, here from data to noise. Both papers train on latents, so no published figure
applies to these pixels.

DiT-B/4 is --config.model.depth=12 --config.model.hidden=768 --config.model.heads=12; L/4 24, 1024
and 16.

Command:  python -m diffusion_jax.train --config=dit_imagenet64
Data:     imagenet_resized/64x64 of tensorflow-datasets, prepared as array_record by tensorflow-
          datasets itself (its builder needs TensorFlow); or folders of pictures by `prepare
          records` with --config.data.name=records --config.data.path=DIR.
Hardware: GPUs or TPUs; on a v5e:4x4, --config.mesh.data=1 --config.mesh.fsdp=16 (python -m
          diffusion_jax.plan shows the memory it needs).
Time:     not yet measured.
Score:    not yet measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      "generative": {
        "name": "diffusion",
        "prediction": "velocity",
        "conditional": True,
        "label_dropout": 0.1,
      },
      "process": {"name": "flow"},
      "model": {
        "name": "dit",
        "depth": 28,
        "hidden": 1152,
        "heads": 16,
        "patch": 4,
        "time_scale": 1 / 999,  # a time between 0 and 1 instead of 0 to 999
        "dtype": "bfloat16",
        "remat": "dots_with_no_batch_dims_saveable",
      },
      "loss": {"name": "flow_matching", "times": "uniform"},
      "sampler": {"name": "heun", "steps": 50},
      "guidance": {"weight": 1.5},
      "data": {
        "name": "tfds",
        "dataset": "imagenet_resized/64x64",
        "test_split": "validation",
        "flip": True,
      },
      "optimizer": {
        "name": "adam",
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "schedule": "constant",
        "clip_norm": None,
      },
      "ema": {"decay": 0.9999, "warmup": False},
      "training": {"num_steps": 400_000, "batch_size": 256},
      "eval": {"every_steps": 50_000},
      "checkpoint": {"every_steps": 5000, "keep_last": 3, "keep_every_steps": 50_000},
      "logging": {"every_steps": 100, "sample_every_steps": 10_000, "num_samples": 64},
    }
  )
