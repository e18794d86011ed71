"""The devices to plan for: those at hand, or a TPU slice by its name."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from diffusion_jax.runs import command_line
from diffusion_jax.types import UserError

EXAMPLES = "v5e:2x2, v5e:4x4, v6e:4x4, v5p:2x2x1, v4:2x2x1"

ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock guards TPUs, of which none is used
  "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
  "TPU_WORKER_HOSTNAMES": "localhost",  # without these two libtpu warns that it does not know them
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
}


def find_devices(topology: str) -> list[Any]:
  """Devices by name, and what their compilations need.

  Args:
    topology: "local", or a generation and the chips along each axis, "v5e:4x4".

  Raises:
    UserError: libtpu is missing or knows no such topology.
  """
  if topology == "local":
    command_line.enable_compilation_cache()
    return jax.devices()
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      f"--topology={topology} needs the TPU compiler: pip install 'diffusion_jax[plan]'"
    )
  _prepare()
  # One device for both cores of a chip, as JAX has on a real v4; libtpu's default is two.
  how = {"chip_config_name": "megacore"} if topology.lower().startswith("v4:") else {}
  try:
    devices = list(topologies.get_topology_desc(topology, "tpu", **how).devices)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition("\n")[0].partition(": ")[2]
    raise UserError(f"--topology={topology}: {reason}; write e.g. one of {EXAMPLES}") from error
  # A program for absent devices can be written to the cache, and not read back.
  jax.config.update("jax_enable_compilation_cache", False)
  return devices


def _prepare() -> None:
  """Before libtpu is loaded: it takes no device, and its complaints stay away."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
