"""The job that a process belongs to: its config, and what the environment declares."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import HOW_IT_RUNS, Facts
from diffusion_jax.types import UserError

GOOGLE_PCI_VENDOR = "0x1ae0"


@dataclasses.dataclass(frozen=True)
class Distributed(Part):
  """A job of several processes; the same values on all of them.

  Attributes:
    mode: `auto` joins the job that the environment describes, if it describes one; `on` requires
      one; `off` runs alone.
    num_processes: required number of processes, at least 1; none: the number in the environment.
    connect_timeout_sec: seconds to look for process 0, at least 1.
    start_timeout_sec: seconds to wait for missing processes, at least 1.
    heartbeat_sec: seconds without a sign of life after which a process counts as dead and the
      others end, at least 1.
    watchdog_sec: seconds without progress after which a process ends, at least 1; none: never.
  """

  mode: Literal["auto", "on", "off"] = "auto"
  num_processes: int | None = None
  connect_timeout_sec: float = 45.0
  start_timeout_sec: float = 600.0
  heartbeat_sec: int = 60
  watchdog_sec: float | None = 1800.0

  setting_facts: ClassVar[Facts] = HOW_IT_RUNS

  def __post_init__(self):
    if self.num_processes is not None and self.num_processes < 1:
      raise ValueError(f"num_processes={self.num_processes} must be at least 1, or none")
    for name in ("connect_timeout_sec", "start_timeout_sec", "heartbeat_sec", "watchdog_sec"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class World(NamedTuple):
  """The job that a process belongs to.

  Attributes:
    source: origin of this description, for messages.
    num_processes: number of processes in the job; None: JAX finds it.
    process_id: number of this process, from 0; None: JAX finds it.
    coordinator: host:port of process 0; None: JAX finds it.
    local_devices: numbers of the host's devices that this process uses; None: all of them.
  """

  source: str
  num_processes: int | None = None
  process_id: int | None = None
  coordinator: str | None = None
  local_devices: tuple[int, ...] | None = None


def detect(env: Mapping[str, str]) -> World | None:
  """Return the job that the variables of JAX, SLURM, GKE or Cloud TPUs describe.

  Args:
    env: variables, as in os.environ.

  Returns:
    The job, or None if the environment describes none and the process runs alone.

  Raises:
    UserError: variables are missing or are not numbers.
  """
  if "SLURM_STEP_NUM_TASKS" in env and "SLURM_STEP_NODELIST" in env:
    return _slurm(env)
  if any(f"JAX_{name}" in env for name in ("NUM_PROCESSES", "PROCESS_ID")):
    return World(
      "JAX_* variables",
      _number(env, "JAX_NUM_PROCESSES"),
      _number(env, "JAX_PROCESS_ID"),
      _required(env, "JAX_COORDINATOR_ADDRESS"),
    )
  if "SLICE_NUM_PROCESSES" in env:
    per_slice, index = _number(env, "SLICE_NUM_PROCESSES"), _number(env, "SLICE_PROCESS_ID")
    address = _required(env, "JAX_COORDINATOR_ADDRESS")
    return _of_slices(env, World("SLICE_* variables", per_slice, index, address))
  hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if "TPU_WORKER_ID" in env and (len(hosts) > 1 or _num_slices(env) > 1):
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0] or hosts[0]
    address = f"{first}:{env.get('JAX_COORDINATOR_PORT', '8476')}"
    return _of_slices(env, World("GKE", len(hosts), _number(env, "TPU_WORKER_ID"), address))
  return World("Cloud TPU") if _is_tpu_host() else None


def _num_slices(env: Mapping[str, str]) -> int:
  return _number(env, "MEGASCALE_NUM_SLICES") if "MEGASCALE_NUM_SLICES" in env else 1


def _of_slices(env: Mapping[str, str], world: World) -> World:
  """Return the job of all slices from that of one; processes are numbered slice by slice.

  libtpu reads the same variables to join the slices.
  """
  slices, per_slice = _num_slices(env), world.num_processes or 1
  before = per_slice * _number(env, "MEGASCALE_SLICE_ID") if slices > 1 else 0
  number = before + (world.process_id or 0)
  return world._replace(num_processes=slices * per_slice, process_id=number)


def _slurm(env: Mapping[str, str]) -> World | None:
  """Return the job of a SLURM step; None for a step of one task, which runs alone."""
  tasks, nodes = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_STEP_NUM_NODES")
  if tasks == 1 and "JAX_NUM_PROCESSES" not in env:
    return None
  job = _number(env, "SLURM_JOB_ID")
  port = env.get("JAX_COORDINATOR_PORT") or 61440 + job % 4096  # above the ephemeral ports
  host = first_host(_required(env, "SLURM_STEP_NODELIST"))
  # With one task per device, each task would use all devices of the node; assign it its own.
  local_id = (_number(env, "SLURM_LOCALID"),) if tasks > nodes else None
  address = env.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}"
  return World(f"SLURM job {job}", tasks, _number(env, "SLURM_PROCID"), address, local_id)


def first_host(nodes: str) -> str:
  """Return the first host of SLURM's list: "gpu[07-09,12],login" -> "gpu07"."""
  match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
  assert match is not None, nodes
  return "".join(part or "" for part in match.groups())


def _required(env: Mapping[str, str], name: str) -> str:
  if not env.get(name):
    others = name.partition("_")[0]
    raise UserError(
      f"{name} is not set; set it for a job of several processes, or unset all {others}_*"
    )
  return env[name]


def _number(env: Mapping[str, str], name: str) -> int:
  text = _required(env, name)
  if not text.isdigit():
    raise UserError(f"{name}={text} must be a number")
  return int(text)


def _is_tpu_host() -> bool:
  """Return whether this machine has a TPU."""
  for path in Path("/sys/bus/pci/devices").glob("*/vendor"):
    with contextlib.suppress(OSError):
      if path.read_text().strip() == GOOGLE_PCI_VENDOR:
        return True
  return False


def choose(config: Distributed, env: Mapping[str, str]) -> World | None:
  """Return the job to join, or None to run alone.

  Raises:
    UserError: the environment does not describe the job that the config requires.
  """
  world = None if config.mode == "off" else detect(env)
  if config.mode == "on" and world is None:
    raise UserError(
      "`distributed.mode=on`, but nothing here describes a job: start it with launch/local.py, "
      "srun or a JobSet, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    )
  size = 1 if world is None else world.num_processes
  if size is not None and config.num_processes not in (None, size):
    raise UserError(
      f"`distributed.num_processes={config.num_processes}`, but "
      f"{world.source if world else 'the environment'} has {size}; start that many, or set "
      f"`distributed.num_processes={size}`"
    )
  if world is not None and size is not None and not 0 <= (world.process_id or 0) < size:
    raise UserError(
      f"process {world.process_id} is not one of {size}; JAX_PROCESS_ID must be between 0 and "
      f"{size - 1}"
    )
  return None if size == 1 and config.mode != "on" else world
