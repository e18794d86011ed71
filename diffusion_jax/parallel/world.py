"""Which job a process was started as a part of: its config, and what the environment says."""

import contextlib
import dataclasses
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from diffusion_jax.types import UserError

GOOGLE_PCI_VENDOR = "0x1ae0"


@dataclasses.dataclass(frozen=True)
class Distributed:
  """Config of a job of several processes. The same on all of them.

  Attributes:
    mode: `auto` joins the job that the environment describes, if it describes one; `on` insists on
      it; `off` runs alone.
    num_processes: as many must take part; none: as many as the environment says.
    connect_timeout_sec: how long a process looks for process 0.
    start_timeout_sec: how long those that are there wait for the rest.
    heartbeat_sec: a process that is not heard of for so long is dead, and the others end.
    watchdog_sec: a process in which nothing is finished for so long ends; none: never.
  """

  mode: Literal["auto", "on", "off"] = "auto"
  num_processes: int | None = None
  connect_timeout_sec: float = 45.0
  start_timeout_sec: float = 600.0
  heartbeat_sec: int = 60
  watchdog_sec: float | None = 1800.0

  def __post_init__(self):
    if self.num_processes is not None and self.num_processes < 1:
      raise ValueError(f"num_processes={self.num_processes} must be at least 1, or none")
    for name in ("connect_timeout_sec", "start_timeout_sec", "heartbeat_sec", "watchdog_sec"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class World(NamedTuple):
  """The job that a process was started as a part of.

  Attributes:
    source: who says so.
    num_processes, process_id: of the job, and of this process in it; None: JAX finds them.
    coordinator: host:port of process 0; None: JAX finds it.
    local_devices: numbers of the host's devices that are this process's; None: all of them.
  """

  source: str
  num_processes: int | None = None
  process_id: int | None = None
  coordinator: str | None = None
  local_devices: tuple[int, ...] | None = None


def detect(env: Mapping[str, str]) -> World | None:
  """What the environment says of the job: JAX_* variables, SLURM's, GKE's, or a Cloud TPU's.

  Args:
    env: variables, as in os.environ.

  Returns:
    None where it says nothing: one process of its own.

  Raises:
    UserError: variables that are missing or are not numbers.
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
  hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if len(hosts) > 1 and "TPU_WORKER_ID" in env:
    port = env.get("JAX_COORDINATOR_PORT", "8476")
    return World("GKE", len(hosts), _number(env, "TPU_WORKER_ID"), f"{hosts[0]}:{port}")
  return World("Cloud TPU") if _is_tpu_host() else None


def _slurm(env: Mapping[str, str]) -> World | None:
  """A job step: of one task, it is a process of its own."""
  tasks, nodes = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_STEP_NUM_NODES")
  if tasks == 1 and "JAX_NUM_PROCESSES" not in env:
    return None
  job = _number(env, "SLURM_JOB_ID")
  port = env.get("JAX_COORDINATOR_PORT") or 61440 + job % 4096  # above the ports given at random
  host = first_host(_required(env, "SLURM_STEP_NODELIST"))
  # Where a node has a task a device, each sees all devices of the node unless it is told its own.
  own = (_number(env, "SLURM_LOCALID"),) if tasks > nodes else None
  address = env.get("JAX_COORDINATOR_ADDRESS") or f"{host}:{port}"
  return World(f"SLURM job {job}", tasks, _number(env, "SLURM_PROCID"), address, own)


def first_host(nodes: str) -> str:
  """The first name of SLURM's list: "gpu[07-09,12],login" -> "gpu07"."""
  found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
  assert found is not None, nodes
  return "".join(part or "" for part in found.groups())


def _required(env: Mapping[str, str], name: str) -> str:
  if not env.get(name):
    raise UserError(f"{name} is not set; a job of several processes needs it, or unset all JAX_*")
  return env[name]


def _number(env: Mapping[str, str], name: str) -> int:
  text = _required(env, name)
  if not text.isdigit():
    raise UserError(f"{name}={text} must be a number")
  return int(text)


def _is_tpu_host() -> bool:
  """Whether a TPU is plugged into this machine."""
  for path in Path("/sys/bus/pci/devices").glob("*/vendor"):
    with contextlib.suppress(OSError):
      if path.read_text().strip() == GOOGLE_PCI_VENDOR:
        return True
  return False


def choose(config: Distributed, env: Mapping[str, str]) -> World | None:
  """The job to join, or None to run alone.

  Raises:
    UserError: the environment does not describe the job that the config asks for.
  """
  world = None if config.mode == "off" else detect(env)
  flag = "--config.distributed"
  if config.mode == "on" and world is None:
    raise UserError(
      f"{flag}.mode=on, but nothing here describes a job: start it with launch/local.py, srun or a "
      "JobSet, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    )
  num = 1 if world is None else world.num_processes
  if num is not None and config.num_processes not in (None, num):
    raise UserError(
      f"{flag}.num_processes={config.num_processes}, but "
      f"{world.source if world else 'the environment'} says {num}; start as many, or set "
      f"{flag}.num_processes={num}"
    )
  if world is not None and num is not None and not 0 <= (world.process_id or 0) < num:
    raise UserError(
      f"process {world.process_id} is not one of {num}; JAX_PROCESS_ID must lie between 0 and "
      f"{num - 1}"
    )
  return None if num == 1 and config.mode != "on" else world


def name_of(world: World) -> str:
  """What a process is called in messages."""
  return f"process {world.process_id} of {world.num_processes}, {socket.gethostname()}"
