"""Groups of devices with a fast network of their own, joined by a slower one.

A slice is a part of a TPU pod, whose chips have links (ICI), or a host with GPUs. Between slices
there is the data center's network (DCN), which is 10 to 100 times slower. The mesh's first axis,
`dcn_data`, is the only one that crosses it: only gradients do, once per step. It has a name of its
own, although it splits the batch as `data` does, so that a mesh and a plan tell what crosses, and
`data` counts replicas within a slice. A mesh of one slice does not have it. Nothing sums within a
slice explicitly: XLA for TPUs turns an all-reduce over both axes into a reduce-scatter over the
links, an all-reduce of each device's part over the DCN, and an all-gather over the links.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from diffusion_jax.types import UserError


def slices_of(devices: Sequence[Any]) -> list[Any]:
  """Return the indices of the slices that devices report; [] if they report none."""
  found = {getattr(device, "slice_index", None) for device in devices}
  return [] if None in found else sorted(found)


def count_slices(asked: int, devices: Sequence[Any]) -> int:
  """Return the number of slices that a mesh has.

  Args:
    asked: `mesh.dcn_data`; -1 means as many as the devices report.
    devices: devices of the mesh.

  Raises:
    UserError: the devices are not in so many groups of equal size.
  """
  reported = len(slices_of(devices))
  if asked == -1:
    return max(reported, 1)
  is_tpu, hosts = devices[0].platform == "tpu", len({d.process_index for d in devices})
  groups = reported if reported > 1 or is_tpu else hosts
  whole = asked == groups if is_tpu else groups % asked == 0 or asked % groups == 0
  if len(devices) % asked or not whole:
    kind = "slice(s)" if reported > 1 or is_tpu else "host(s)"
    raise UserError(
      f"mesh.dcn_data={asked} does not fit {len(devices)} device(s) of {groups} {kind}; "
      f"use `mesh.dcn_data={groups}`, or `mesh.dcn_data=-1` for as many slices as there are"
    )
  return asked


def arrange_slices(num: int, inner: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
  """Return the devices of a mesh, one slice after the other.

  Devices that report no slices are grouped by host, or in their order if there are more or fewer
  hosts: virtual CPU devices are such.

  Args:
    num: number of slices.
    inner: axes of the mesh within a slice.
    devices: the devices.

  Returns:
    Devices [num *inner]; [*inner] for one slice.
  """
  if num == 1:
    return mesh_utils.create_device_mesh(tuple(inner), devices)
  shapes = (1, *inner), (num, *(1 for _ in inner))
  if len(slices_of(devices)) == num:
    return mesh_utils.create_hybrid_device_mesh(*shapes, devices, allow_split_physical_axes=True)
  if len({device.process_index for device in devices}) == num:
    return mesh_utils.create_hybrid_device_mesh(*shapes, devices, process_is_granule=True)
  ordered = sorted(devices, key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id))
  return np.asarray(ordered).reshape(num, *inner)
