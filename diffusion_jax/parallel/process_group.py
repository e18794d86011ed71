"""Start as one of a job's processes, and leave the job."""

import os
import socket
import threading
from typing import Any

import jax

from diffusion_jax.parallel import watchdog
from diffusion_jax.parallel.collectives import all_gather_objects
from diffusion_jax.parallel.rendezvous import rendezvous
from diffusion_jax.parallel.world import Distributed, World
from diffusion_jax.types import UserError


def join_processes(config: Distributed, world: World, identity: str) -> None:
  """Join a job; return on all its processes, or raise on all of them.

  Call it before anything that uses a device.

  Args:
    config: timeouts.
    world: the job, from `choose`.
    identity: fingerprint of the program and its config, equal on all processes.

  Raises:
    UserError: process 0 cannot be reached, or processes are missing or belong to another job.
  """
  if world.coordinator is not None:
    rendezvous(config, world, identity)
  jax.config.update("jax_enable_preemption_service", False)  # it would replace our SIGTERM handler
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
      return print(f"{world.source}: found no job of several hosts; running alone ({error})")
    reason = str(error).strip().partition("\n")[0]
    raise UserError(f"{world.source}: the processes cannot start together: {reason}") from error
  _check_count(config)
  if config.watchdog_sec is not None:
    name = f"process {jax.process_index()} of {jax.process_count()}, {socket.gethostname()}"
    watchdog.start_watch(config.watchdog_sec, name)


def _check_count(config: Distributed) -> None:
  """Check the number of processes if JAX alone could find it."""
  if config.num_processes not in (None, jax.process_count()):
    raise UserError(
      f"`distributed.num_processes={config.num_processes}`, but {jax.process_count()} "
      f"processes have started; set `distributed.num_processes={jax.process_count()}`"
    )


def describe_hosts() -> str:
  """Return "1 process", or "2 processes on a, b"; a collective."""
  names = all_gather_objects(socket.gethostname())
  if len(names) == 1:
    return "1 process"
  hosts = list(dict.fromkeys(names))
  listed = ", ".join(hosts[:8]) + f" and {len(hosts) - 8} more" * (len(hosts) > 8)
  return f"{len(names)} processes on {listed}"


GOODBYE_SEC = {0: 300.0, 2: 15.0, 75: 60.0}
"""Seconds to wait at the shutdown barrier for the other processes, by exit code."""


def leave(code: int) -> None:
  """Leave the job, if this process has joined one; the caller then exits with `code`.

  A failing process skips the shutdown barrier, which would deadlock with blocked peers, and exits
  at once; the other processes notice.
  """
  watchdog.stop_watch()
  if not jax.distributed.is_initialized():
    return
  if code not in GOODBYE_SEC:
    os._exit(code)
  goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  goodbye.start()
  goodbye.join(GOODBYE_SEC[code])
  if goodbye.is_alive():
    os._exit(code or 1)
