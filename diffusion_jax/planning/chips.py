"""The vendors' figures of their chips, for one JAX device each.

TPUs: the pages docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, "key specifications".
They lack the links of v2, v3 and v4: Jouppi et al. 2020, "A Domain-Specific Supercomputer for
Training Deep Neural Networks" (4 links of 496 and 656 Gbit/s per direction), and Jouppi et al.
2023, "TPU v4" (arXiv 2304.01433; 6 links of 50 GB/s per direction). The memory is the available
size that libtpu 0.0.52 reports when a program does not fit, less than the figure on the page.
The data center's network per chip: 6.4 and 25.6 Tbit/s for the 256 chips of a v5e and a v6e pod and
50 Gbit/s per v5p chip, on the same pages, which lack it for the others.
NVIDIA: the data sheets of A100, H100, H200, L4 and HGX B200 on nvidia.com. Their figures "with
sparsity" are halved here, and so are their NVLink and PCIe figures, which count both directions.
Their network is that of DGX A100 (one 200 Gbit/s port per GPU), H100, H200 and B200 (400 Gbit/s).
"""

from typing import Any, NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
  """One JAX device: a chip, or one of the two cores of a chip that JAX shows as two devices.

  Attributes:
    name: name for people.
    flops: peak dense bfloat16 FLOP/s.
    memory_bytes: device memory that a program can use, bytes.
    memory_bandwidth: bandwidth of that memory, bytes/s.
    link_bandwidth: bandwidth out of the device over all its links together, one way, bytes/s.
    devices_per_chip: JAX devices per chip.
    dcn_bandwidth: bandwidth out of the device to other slices or hosts, one way, bytes/s; None if
      unknown.
  """

  name: str
  flops: float
  memory_bytes: int
  memory_bandwidth: float
  link_bandwidth: float
  devices_per_chip: int = 1
  dcn_bandwidth: float | None = None


def _tpu(
  name: str,
  tflops: int,
  gib: float,
  memory: int,
  links: int,
  devices: int = 1,
  dcn_gigabits: int | None = None,
) -> Chip:
  """TFLOP/s, memory GB/s, one-way link GB/s and Gbit/s are per chip; GiB are per JAX device."""
  rates = (tflops * 1e12 / devices, int(gib * GIB), memory * 1e9 / devices, links * 1e9 / devices)
  return Chip(f"TPU {name}", *rates, devices, _network(dcn_gigabits))


def _gpu(
  name: str,
  tflops: float,
  gigabytes: int,
  memory: int,
  links: int,
  dcn_gigabits: int | None = None,
) -> Chip:
  """Make a chip from TFLOP/s, GB, memory GB/s, one-way link GB/s and network Gbit/s."""
  rates = (tflops * 1e12, int(gigabytes * 1e9), memory * 1e9, links * 1e9)
  return Chip(name, *rates, dcn_bandwidth=_network(dcn_gigabits))


def _network(gigabits: int | None) -> float | None:
  """Return bytes/s from Gbit/s."""
  return None if gigabits is None else gigabits * 1e9 / 8


_V5P = _tpu("v5p", 459, 95.73, 2765, 600, dcn_gigabits=50)
_V5E = _tpu("v5e", 197, 15.75, 819, 200, dcn_gigabits=25)
_V6E = _tpu("v6e", 918, 31.24, 1640, 400, dcn_gigabits=100)

CHIPS: dict[str, Chip] = {
  "TPU v2": _tpu("v2", 45, 7.48, 700, 248, devices=2),
  "TPU v3": _tpu("v3", 123, 15.48, 900, 328, devices=2),
  "TPU v4": _tpu("v4", 275, 30.75, 1200, 300),
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": _tpu("7x", 2307, 94.74, 7380, 600, devices=2),
  "NVIDIA A100-SXM4-40GB": _gpu("A100 40 GB SXM", 312.0, 40, 1555, 300, 200),
  "NVIDIA A100-PCIE-40GB": _gpu("A100 40 GB PCIe", 312.0, 40, 1555, 32),
  "NVIDIA A100-SXM4-80GB": _gpu("A100 80 GB SXM", 312.0, 80, 2039, 300, 200),
  "NVIDIA A100 80GB PCIe": _gpu("A100 80 GB PCIe", 312.0, 80, 1935, 32),
  "NVIDIA H100 80GB HBM3": _gpu("H100 SXM", 989.5, 80, 3350, 450, 400),
  "NVIDIA H100 PCIe": _gpu("H100 PCIe", 756.5, 80, 2000, 64),
  "NVIDIA H200": _gpu("H200 SXM", 989.5, 141, 4800, 450, 400),
  "NVIDIA L4": _gpu("L4", 121.0, 24, 300, 32),
  "NVIDIA B200": _gpu("B200", 2250.0, 180, 7700, 900, 400),
}
"""Chips by JAX's `device_kind`."""


def find_chip(device_kind: str) -> Chip | None:
  """Return the chip of a device kind, or None if the table lacks it, e.g. for a CPU."""
  return CHIPS.get(device_kind)


def memory_limit(device: Any, chip: Chip | None) -> int | None:
  """Return the bytes that a program can use on a device.

  The device reports them itself, or else they come from its chip. For a GPU that is present this is
  JAX's pool, three quarters of its memory unless XLA_PYTHON_CLIENT_MEM_FRACTION changes that.
  """
  try:
    stats = device.memory_stats()
  except (jax.errors.JaxRuntimeError, NotImplementedError):  # an absent device
    stats = None
  if stats and "bytes_limit" in stats:
    return int(stats["bytes_limit"])
  return chip.memory_bytes if chip else None
