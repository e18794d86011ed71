"""The devices to plan for: the local ones, or a TPU slice given by name."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from diffusion_jax.runs import command_line
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import UserError

EXAMPLES = "v5e:2x2, v5e:4x4, v6e:4x4, v5p:2x2x1, v4:2x2x1"

ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock guards TPUs, and none is used
  "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server
  "TPU_WORKER_HOSTNAMES": "localhost",  # without these two libtpu warns
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}


def with_slices(experiment: Experiment, asked: int | None) -> Experiment:
  """Return an experiment whose mesh has the slices of --num_slices.

  Raises:
    UserError: there are none, or `mesh.dcn_data` is another number.
  """
  if asked is None:
    return experiment
  mesh = experiment.mesh
  if asked < 1:
    raise UserError(f"--num_slices={asked} must be at least 1")
  if mesh.dcn_data not in (-1, 1, asked):
    raise UserError(
      f"--num_slices={asked} differs from `mesh.dcn_data={mesh.dcn_data}`; leave one of them out"
    )
  sections = {**experiment.sections, "mesh": dataclasses.replace(mesh, dcn_data=asked)}
  return dataclasses.replace(experiment, sections=sections)


def find_devices(topology: str, num_slices: int = 1) -> list[Any]:
  """Return the devices of a topology, and prepare their compilation.

  Args:
    topology: "local", or a TPU generation and the chips along each axis, "v5e:4x4".
    num_slices: number of such TPU slices; local devices are all returned.

  Raises:
    UserError: libtpu is missing or does not know the topology.
  """
  if topology == "local":
    command_line.enable_compilation_cache()
    return jax.devices()
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology={topology} needs the TPU compiler: pip install 'diffusion_jax[plan]'"
    )
  for name, value in ENVIRONMENT.items():  # libtpu takes no device and prints no warnings
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  # One device for both cores of a chip, as on a real v4; libtpu's default is two.
  how: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  how |= {"chip_config_name": "megacore"} if topology.lower().startswith("v4:") else {}
  try:
    devices = list(topologies.get_topology_desc(topology, "tpu", **how).devices)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition("\n")[0].partition(": ")[2]
    raise UserError(f"--topology={topology}: {reason}; write e.g. one of {EXAMPLES}") from error
  # A program for absent devices can be written to the cache, but not read back.
  jax.config.update("jax_enable_compilation_cache", False)
  return devices
