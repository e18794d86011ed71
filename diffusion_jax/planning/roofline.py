"""The least time that a step can take on a chip, and what it waits for."""

from typing import NamedTuple

from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.compiled import Measured


class Roofline(NamedTuple):
  """A bound: as if every resource ran at its peak and all at the same time.

  Attributes:
    seconds: "compute", "memory", "interconnect" -> least time of a step.
    binds: the resource that takes longest.
    images_per_sec: bound of all devices together.
    images_per_sec_per_chip: of one chip.
    mfu: FLOPs of the program over the peak of that time; with rematerialisation the FLOPs count
      what is computed twice.
  """

  seconds: dict[str, float]
  binds: str
  images_per_sec: float
  images_per_sec_per_chip: float
  mfu: float


def roofline(measured: Measured, chip: Chip, num_devices: int) -> Roofline:
  """The bound of Williams et al. 2009 ("Roofline"), with a third roof for the links."""
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
