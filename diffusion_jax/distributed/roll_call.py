"""The processes of a job find each other over a plain connection, before JAX's runtime starts.

JAX waits long for processes that are missing, and then aborts without naming any of them.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from diffusion_jax.distributed.world import Distributed, World
from diffusion_jax.types import UserError

TOLD_SEC = (30.0, 60.0)
"""When process 0 says who is missing; after that at each doubling."""


def roll_call(config: Distributed, world: World, identity: str) -> None:
  """Returns once all processes are there; see `job.start`.

  Raises:
    UserError: the same on all: who is missing, cannot be reached, or is not of this job.
  """
  assert world.coordinator is not None
  own = {
    "process": world.process_id,
    "count": world.num_processes,
    "host": socket.gethostname(),
    "identity": identity,
  }
  if world.process_id == 0:
    _call_the_roll(config, world, own)
  else:
    _answer_the_roll(config, world, own)


def _split_address(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: write host:port, e.g. node0:1234")
  return host.strip("[]"), int(port)


def _call_the_roll(config: Distributed, world: World, own: Mapping[str, Any]) -> None:
  """Process 0: waits for the others, says who is missing, then lets all go at once."""
  _, port = _split_address(world.coordinator or "")
  try:
    listener = socket.create_server(("", port))
  except OSError as error:
    raise UserError(
      f"process 0 cannot listen on port {port} ({error.strerror}); choose another one in "
      "JAX_COORDINATOR_ADDRESS"
    ) from error
  present: dict[int, tuple[socket.socket, str]] = {}
  try:
    with listener:
      wrong = _gather(listener, config, own, present)
    answer = {"error": wrong} if wrong else {"go": True}
    for connection, _ in present.values():
      with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.recv(1)  # they close first, so that the port is free at once
  finally:
    for connection, _ in present.values():
      connection.close()
  if wrong:
    raise UserError(wrong)


def _gather(
  listener: socket.socket, config: Distributed, own: Mapping[str, Any], present: dict
) -> str | None:
  """Fills `present`; returns what is wrong, or None once all are there."""
  begun, told = time.monotonic(), list(TOLD_SEC)
  while len(present) + 1 < own["count"]:
    waited = time.monotonic() - begun
    missing = sorted(set(range(1, own["count"])) - set(present))
    if waited > config.start_timeout_sec:
      return f"{_missing(own, missing, present)} after {waited:.0f} s; start all of them"
    if waited >= told[0]:
      print(f"{_missing(own, missing, present)} after {waited:.0f} s; waiting", flush=True)
      told = told[1:] or [2 * told[0]]
    listener.settimeout(min(told[0], config.start_timeout_sec) - waited + 0.1)
    with contextlib.suppress(TimeoutError):
      wrong = _admit(listener.accept()[0], own, present)
      if wrong:
        return wrong
  return None


def _missing(own: Mapping[str, Any], missing: list[int], present: Mapping[int, tuple]) -> str:
  here = ", ".join(f"{n} ({host})" for n, (_, host) in sorted(present.items()))
  listed = ", ".join(map(str, missing))
  there = f"0 ({own['host']})" + f", {here}" * bool(here)
  return f"missing: process {listed} of {own['count']}; here: {there}"


def _admit(connection: socket.socket, own: Mapping[str, Any], present: dict) -> str | None:
  """Adds a process that calls in; returns what makes it another job's."""
  try:
    connection.settimeout(5.0)
    hello = json.loads(_read_line(connection))
    number, host = int(hello["process"]), str(hello["host"])
    connection.settimeout(30.0)
  except (OSError, ValueError, KeyError, TypeError):
    connection.close()  # not one of us
    return None
  if number in present or number == 0:
    other = own["host"] if number == 0 else present[number][1]
    connection.close()
    return f"two processes say that they are number {number}, on {other} and on {host}"
  present[number] = (connection, host)
  if hello["count"] != own["count"]:
    return f"process {number} ({host}) expects {hello['count']} processes, process 0 {own['count']}"
  if hello["identity"] != own["identity"]:
    return (
      f"process {number} ({host}) runs another program or config than process 0 ({own['host']}); "
      "start the same command, with the same code, on all"
    )
  return None


def _answer_the_roll(config: Distributed, world: World, own: Mapping[str, Any]) -> None:
  """The other processes: tell process 0 who is there, and wait for its word."""
  address = _split_address(world.coordinator or "")
  deadline = time.monotonic() + config.connect_timeout_sec
  reason = "no answer"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection(address, timeout=5.0) as connection:
        connection.sendall(json.dumps(dict(own)).encode() + b"\n")
        connection.settimeout(config.start_timeout_sec + 30.0)
        answer = json.loads(_read_line(connection))
    except (OSError, ValueError) as error:
      reason = str(error)
      time.sleep(0.3)
      continue
    if "error" in answer:
      raise UserError(answer["error"])
    return
  raise UserError(
    f"process {world.process_id} cannot reach process 0 at {world.coordinator} for "
    f"{config.connect_timeout_sec:g} s ({reason}); check that it runs, the address (from "
    f"{world.source}) and the firewall; --config.distributed.connect_timeout_sec=600 waits longer"
  )


def _read_line(connection: socket.socket) -> bytes:
  data = b""
  while not data.endswith(b"\n"):
    part = connection.recv(4096)
    if not part:
      raise ConnectionError("the connection was closed")
    data += part
    if len(data) > 1 << 16:
      raise ValueError("not a greeting")
  return data
