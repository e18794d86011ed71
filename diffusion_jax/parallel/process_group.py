"""Starting as one job, and leaving it."""

import os
import socket
import threading
from typing import Any

import jax

from diffusion_jax.parallel import watchdog
from diffusion_jax.parallel.collectives import tell_all
from diffusion_jax.parallel.rendezvous import roll_call
from diffusion_jax.parallel.world import Distributed, World
from diffusion_jax.types import UserError


def start(config: Distributed, world: World, identity: str) -> None:
  """Joins a job; returns on all its processes, or raises on all.

  Must come before anything that uses a device.

  Args:
    config: timeouts.
    world: from `choose`.
    identity: of the program and its config: it must be the same on all processes.

  Raises:
    UserError: process 0 cannot be reached, processes are missing or are not of one job.
  """
  if world.coordinator is not None:
    roll_call(config, world, identity)
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
  options: dict[str, Any] = {}
  if world.coordinator is not None:
    options = {
      "coordinator_address": world.coordinator,
      "num_processes": world.num_processes,
      "process_id": world.process_id,
      "local_device_ids": world.local_devices,
      "cluster_detection_method": "deactivate",
    }
  try:
    jax.distributed.initialize(
      **options,
      initialization_timeout=int(config.start_timeout_sec),
      heartbeat_timeout_seconds=config.heartbeat_sec,
    )
  except (RuntimeError, ValueError) as error:
    if world.coordinator is None and config.mode == "auto":
      return print(f"{world.source}: no job of several hosts was found: one process ({error})")
    reason = str(error).strip().partition("\n")[0]
    raise UserError(f"{world.source}: the processes cannot start together: {reason}") from error
  _check_count(config)
  if config.watchdog_sec is not None:
    name = f"process {jax.process_index()} of {jax.process_count()}, {socket.gethostname()}"
    watchdog.start(config.watchdog_sec, name)


def _check_count(config: Distributed) -> None:
  """The count that only JAX could find."""
  if config.num_processes not in (None, jax.process_count()):
    raise UserError(
      f"--config.distributed.num_processes={config.num_processes}, but {jax.process_count()} "
      f"processes have started; set --config.distributed.num_processes={jax.process_count()}"
    )


def describe_hosts() -> str:
  """ "1 process", or "2 processes on a, b"; a collective."""
  names = tell_all(socket.gethostname())
  if len(names) == 1:
    return "1 process"
  hosts = list(dict.fromkeys(names))
  listed = ", ".join(hosts[:8]) + f" and {len(hosts) - 8} more" * (len(hosts) > 8)
  return f"{len(names)} processes on {listed}"


GOODBYE_SEC = {0: 300.0, 2: 15.0, 75: 60.0}
"""How long a process waits for the others to finish too, by its exit code."""


def leave(code: int) -> None:
  """Ends this process's part in a job, if it has one; the caller then exits with `code`.

  A process that fails alone does not say goodbye, which would wait for processes that wait for it:
  it ends at once, and the others notice.
  """
  watchdog.stop()
  if not jax.distributed.is_initialized():
    return
  if code not in GOODBYE_SEC:
    os._exit(code)
  goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  goodbye.start()
  goodbye.join(GOODBYE_SEC[code])
  if goodbye.is_alive():
    os._exit(code or 1)
