"""Compute the minimum time of a step on a chip, and the resource that limits it."""

from typing import NamedTuple

from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.compiled import Measured


class Roofline(NamedTuple):
  """A bound that assumes every resource at its peak, all at the same time.

  Attributes:
    seconds: minimum time of a step by resource: "compute", "memory", "interconnect".
    binds: the slowest resource.
    images_per_sec: bound for all devices together.
    images_per_sec_per_chip: bound per chip.
    mfu: FLOPs of the program over the peak FLOPs in that time; recomputation by
      rematerialisation is included.
  """

  seconds: dict[str, float]
  binds: str
  images_per_sec: float
  images_per_sec_per_chip: float
  mfu: float


def roofline(measured: Measured, chip: Chip, num_devices: int) -> Roofline:
  """Compute the roofline bound of Williams et al. 2009, with a third roof for the links."""
  sent = sum(row.wire_bytes for row in measured.traffic)
  seconds = {
    "compute": measured.work.flops / chip.flops,
    "memory": measured.work.memory_bytes / chip.memory_bandwidth,
    "interconnect": sent / chip.link_bandwidth,
  }
  binds = max(seconds, key=lambda name: seconds[name])
  rate = measured.batch_size / seconds[binds]
  per_chip = rate / num_devices * chip.devices_per_chip
  return Roofline(seconds, binds, rate, per_chip, seconds["compute"] / seconds[binds])
