"""Small networks of published recipes with their weights and inputs, for parity with the originals.

Widths are 32 and 64, where 32 groups differ from a quarter of the width. Everything is drawn by
NumPy, so that the script that makes the stored outputs and the tests that read them agree.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from drawn_weights import drawn_weights
from numpy_draws import normal

from diffusion_jax.core.stacking import stack_layers
from diffusion_jax.models import DiT, UNet
from diffusion_jax.types import ImageSpec

FIXTURE = Path(__file__).parent / "network_fixture.npz"
NARROW = {
  "channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_resolutions": (4,),
  "norm_groups": 32,
}  # fmt: skip


class Case(NamedTuple):
  """A network and what it is called with.

  Attributes:
    config: of the network.
    spec: shape of the images.
    time: what the process tells the network of the noise level.
    original_time: what the original is told of the same level.
    labels: classes, the null class last; None: unconditional.
    std: deviation of the weights from one for scales, from zero for others.
  """

  config: UNet | DiT
  spec: ImageSpec
  time: np.ndarray
  original_time: np.ndarray
  labels: np.ndarray | None = None
  std: float = 0.1

  @property
  def num_labels(self) -> int:
    return 0 if self.labels is None else self.spec.num_classes + 1

  def create(self):
    return self.config.create(self.spec, self.num_labels)

  def params(self):
    """The weights by layer, as the originals have them."""
    config = self.config
    if isinstance(config, DiT):
      config = dataclasses.replace(config, scan_blocks=False)
    return drawn_weights(config.create(self.spec, self.num_labels).init, std=self.std)

  def own_params(self):
    """The same weights as this network has them."""
    return stack_layers(self.params(), ["block"] if isinstance(self.config, DiT) else [])

  def images(self):
    return normal(3, len(self.time), *self.spec.shape)


STEPS = np.float32([0, 17, 999])
UNIFORM = np.float32([0.0, 0.3, 1.0])
CLASSES = np.int32([0, 4, 5])
PIXELS, LATENTS = ImageSpec(8, 8, 3, 256, 0), ImageSpec(8, 8, 4, None, 5)
SMALL = {"depth": 2, "hidden": 24, "heads": 3, "patch": 2}

CASES = {
  "ddpm": Case(UNet(**NARROW), PIXELS, STEPS, STEPS),
  "iddpm": Case(
    UNet(
      **NARROW, num_heads=4, adaptive_scale=True, embedding="positional_adm", init="adm",
      norm_epsilon=1e-5, learned_variance=True, downsample_padding=(1, 1),
    ), PIXELS, STEPS, STEPS,
  ),
  "dit": Case(DiT(**SMALL, learned_variance=True), LATENTS, STEPS, STEPS, CLASSES, 0.2),
  "sit": Case(DiT(**SMALL, time_scale=1 / 999), LATENTS, 999 * UNIFORM, UNIFORM, CLASSES, 0.2),
}  # fmt: skip
