"""Compute the minimum time of a step on a chip, and the resource that limits it."""

from typing import NamedTuple

from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.compiled import Measured


class Roofline(NamedTuple):
  """A bound that assumes every resource at its peak, all at the same time.

  Attributes:
    seconds: minimum time of a step by resource: "compute", "memory", "interconnect", and "dcn" for
      several slices; those whose use or bandwidth is unknown are missing.
    binds: the slowest of them.
    images_per_sec: bound for all devices together.
    images_per_sec_per_chip: bound per chip.
    mfu: model FLOPs over the peak FLOPs in that time; None if unknown.
    hfu: the same with the executed FLOPs, i.e. with all that is computed again.
  """

  seconds: dict[str, float]
  binds: str
  images_per_sec: float
  images_per_sec_per_chip: float
  mfu: float | None
  hfu: float | None


def roofline(measured: Measured, chip: Chip, num_devices: int) -> Roofline | None:
  """Compute the roofline bound of Williams et al. 2009, with further roofs for the networks.

  Returns:
    The bound; None if neither the FLOPs nor the memory traffic is known.
  """
  sent, flops = sum(row.wire_bytes for row in measured.traffic), measured.flops
  needs = {
    "compute": (flops.executed, chip.flops),
    "memory": (measured.work.memory_bytes, chip.memory_bandwidth),
    "interconnect": (sent, chip.link_bandwidth),
  }
  if measured.crossing and chip.dcn_bandwidth is not None:
    needs["dcn"] = (sum(row.wire_bytes for row in measured.crossing), chip.dcn_bandwidth)
  seconds = {name: need / rate for name, (need, rate) in needs.items() if need is not None}
  if not {"compute", "memory"} & set(seconds):
    return None
  binds = max(seconds, key=lambda name: seconds[name])
  rate = measured.batch_size / seconds[binds]
  per_chip = rate / num_devices * chip.devices_per_chip
  used = lambda done: None if done is None else done / chip.flops / seconds[binds]  # noqa: E731
  return Roofline(seconds, binds, rate, per_chip, used(flops.model), used(flops.executed))
