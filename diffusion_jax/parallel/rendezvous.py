"""Let a job's processes find each other over a plain connection, before JAX starts.

JAX waits long for missing processes, and then aborts without naming any of them.
"""

import contextlib
import dataclasses
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax.parallel.world import Distributed, World
from diffusion_jax.types import UserError

TOLD_SEC = (30.0, 60.0)
"""Seconds after which process 0 first reports missing processes; later the time doubles."""

LOOKED_SEC = (10.0, 30.0)
"""Seconds after which another process first reports that it looks or waits for process 0."""

GREETING_SEC = 5.0
"""Seconds that a caller has to identify itself."""

WELCOME_SEC = 15.0
"""Seconds that process 0 has to acknowledge a greeting."""

MAX_LINE = 1 << 16
"""Maximum length of a greeting or an answer, bytes."""

WELCOME = {"welcome": "diffusion_jax"}
"""Process 0's immediate answer to a greeting; another program sends a different one."""


@dataclasses.dataclass(frozen=True)
class Hello:
  """The greeting of a process.

  Attributes:
    process: number of the process.
    count: number of processes that it expects.
    host: name of its machine.
    identity: fingerprint of its program and config.
  """

  process: int
  count: int
  host: str
  identity: str


def rendezvous(config: Distributed, world: World, identity: str) -> None:
  """Wait until all processes have called; see `process_group.join_processes`.

  Raises:
    UserError: a process is missing, cannot be reached or belongs to another job; the same on all.
  """
  assert world.coordinator is not None
  hello = Hello(world.process_id or 0, world.num_processes or 0, socket.gethostname(), identity)
  if world.process_id == 0:
    _call_the_roll(config, world, hello)
  else:
    _answer_the_roll(config, world, hello)


def _split_address(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: write host:port, e.g. node0:1234")
  return host.strip("[]"), int(port)


def _call_the_roll(config: Distributed, world: World, here: Hello) -> None:
  """Wait for the others as process 0, report missing processes, then release all at once."""
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
      wrong = _gather(listener, config, here, present)
    answer = {"error": wrong} if wrong else {"go": True}
    for connection, _ in present.values():
      with contextlib.suppress(OSError):
        connection.settimeout(30.0)
        _send(connection, answer)
        connection.recv(1)  # the other end closes first, so that the port is free at once
  finally:
    for connection, _ in present.values():
      connection.close()
  if wrong:
    raise UserError(wrong)


def _gather(listener: socket.socket, config: Distributed, here: Hello, present: dict) -> str | None:
  """Fill `present`; return what is wrong, or None when all processes are present."""
  begun, due_sec = time.monotonic(), list(TOLD_SEC)
  with _Callers(listener) as callers:
    while len(present) + 1 < here.count:
      waited = time.monotonic() - begun
      missing = sorted(set(range(1, here.count)) - set(present))
      if waited > config.start_timeout_sec:
        return f"{_missing(here, missing, present)} after {waited:.0f} s; start all of them"
      if waited >= due_sec[0]:
        print(f"{_missing(here, missing, present)} after {waited:.0f} s; waiting", flush=True)
        due_sec = due_sec[1:] or [2 * due_sec[0]]
      for connection, line in callers.lines(min(due_sec[0], config.start_timeout_sec) - waited):
        hello = _read_hello(line)
        if hello is None:
          connection.close()  # not a process of this job
        elif wrong := _admit(connection, hello, here, present):
          return wrong
  return None


class _Callers:
  """Connections that have not identified themselves yet; none of them delays another.

  Args:
    listener: socket that accepts the connections.
  """

  def __init__(self, listener: socket.socket):
    self._listener = listener
    self._selector = selectors.DefaultSelector()
    self._selector.register(listener, selectors.EVENT_READ)
    self._heard: dict[socket.socket, tuple[bytes, float]] = {}

  def __enter__(self) -> "_Callers":
    return self

  def __exit__(self, *_: object) -> None:
    for connection in list(self._heard):
      self._drop(connection)
    self._selector.close()

  def lines(self, most_sec: float) -> list[tuple[socket.socket, bytes]]:
    """Wait up to `most_sec`; return the connections that have sent a line, and the lines."""
    said = []
    for key, _ in self._selector.select(min(max(most_sec, 0.0) + 0.1, 1.0)):
      connection = key.fileobj
      assert isinstance(connection, socket.socket)
      if connection is self._listener:
        self._accept()
      elif line := self._hear(connection):
        said.append((connection, line))
    now = time.monotonic()
    for connection in [c for c, (_, deadline) in self._heard.items() if now > deadline]:
      self._drop(connection)
    return said

  def _accept(self) -> None:
    try:
      connection = self._listener.accept()[0]
    except OSError:  # the caller is gone, or too many files are open
      return time.sleep(0.05)
    connection.setblocking(False)
    self._selector.register(connection, selectors.EVENT_READ)
    self._heard[connection] = (b"", time.monotonic() + GREETING_SEC)

  def _hear(self, connection: socket.socket) -> bytes | None:
    heard, deadline = self._heard[connection]
    try:
      part = connection.recv(4096)
    except BlockingIOError:
      return None
    except OSError:
      part = b""
    heard += part
    if not part or len(heard) > MAX_LINE:
      return self._drop(connection)
    self._heard[connection] = (heard, deadline)
    if not heard.endswith(b"\n"):
      return None
    del self._heard[connection]
    self._selector.unregister(connection)
    return heard

  def _drop(self, connection: socket.socket) -> None:
    self._selector.unregister(connection)
    del self._heard[connection]
    connection.close()


def _missing(first: Hello, missing: list[int], present: Mapping[int, tuple]) -> str:
  here = ", ".join(f"{n} ({host})" for n, (_, host) in sorted(present.items()))
  listed = ", ".join(map(str, missing))
  there = f"0 ({first.host})" + f", {here}" * bool(here)
  return f"missing: process {listed} of {first.count}; here: {there}"


def _read_hello(line: bytes) -> Hello | None:
  """Return the greeting in a line, or None if no process of this package sent it."""
  said = _read_object(line)
  kinds = {field.name: field.type for field in dataclasses.fields(Hello)}
  if said is None or {name: type(value) for name, value in said.items()} != kinds:
    return None
  hello = Hello(**said)
  return hello if 0 <= hello.process < hello.count and hello.host.isprintable() else None


def _read_object(line: bytes) -> dict[str, Any] | None:
  """Return the JSON object in a line, or None."""
  try:
    said = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return said if isinstance(said, dict) else None


def _admit(connection: socket.socket, hello: Hello, first: Hello, present: dict) -> str | None:
  """Add a process that calls; return how it differs from this job, or None."""
  process, host = hello.process, hello.host
  if process in present and _is_gone(present[process][0]):
    present.pop(process)[0].close()  # it has restarted, or missed our answer
  if process in present or process == 0:
    other = first.host if process == 0 else present[process][1]
    connection.close()
    return f"two processes have the number {process}, on {other} and on {host}"
  present[process] = (connection, host)
  with contextlib.suppress(OSError):
    _send(connection, WELCOME)
  if hello.count != first.count:
    return f"process {process} ({host}) expects {hello.count} processes, process 0 {first.count}"
  if hello.identity != first.identity:
    return (
      f"process {process} ({host}) runs another program or config than process 0 ({first.host}); "
      "start the same command, with the same code, on all"
    )
  return None


def _is_gone(connection: socket.socket) -> bool:
  """Return whether the other end has closed; it sends nothing after its greeting."""
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _send(connection: socket.socket, value: Mapping[str, Any]) -> None:
  connection.sendall(json.dumps(value).encode() + b"\n")


def _answer_the_roll(config: Distributed, world: World, here: Hello) -> None:
  """Report to process 0 as one of the other processes, and wait for its answer."""
  address = _split_address(world.coordinator or "")
  begun, due_sec, reason = time.monotonic(), list(LOOKED_SEC), "no answer"
  me = f"process {here.process} of {here.count} ({here.host})"
  while (waited := time.monotonic() - begun) < config.connect_timeout_sec:
    if waited >= due_sec[0]:
      _tell(f"{me} found no process 0 at {world.coordinator} in {waited:.0f} s ({reason})")
      due_sec = due_sec[1:] or [2 * due_sec[0]]
    try:
      with socket.create_connection(address, timeout=GREETING_SEC) as connection:
        _send(connection, dataclasses.asdict(here))
        answer = _await_word(connection, config.start_timeout_sec + 30.0, me, world)
    except (OSError, _Stranger) as error:
      reason = str(error)
      time.sleep(0.3)
      continue
    if "error" in answer:
      raise UserError(str(answer["error"]))
    return
  raise UserError(
    f"process {world.process_id} cannot reach process 0 at {world.coordinator} within "
    f"{config.connect_timeout_sec:g} s ({reason}); check that it runs, the address (from "
    f"{world.source}) and the firewall; `distributed.connect_timeout_sec=600` waits longer"
  )


class _Stranger(Exception):
  """Raised if another program uses the port."""

  def __init__(self):
    super().__init__("a program answers there, but not as process 0 of this job")


def _await_word(
  connection: socket.socket, most_sec: float, me: str, world: World
) -> dict[str, Any]:
  """Wait for process 0's final answer; its acknowledgement must arrive at once."""
  lines = _Lines(connection)
  silence = time.monotonic() + WELCOME_SEC
  if _read_object(lines.next(silence, lambda waited: None)) != WELCOME:
    raise _Stranger

  def report(waited: float) -> None:
    _tell(f"{me} has found process 0 at {world.coordinator}, which has waited {waited:.0f} s "
          "for other processes; its output names them")  # fmt: skip

  answer = _read_object(lines.next(time.monotonic() + most_sec, report))
  if answer is None or not {"go", "error"} & set(answer):
    raise _Stranger
  return answer


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)  # only process 0 has a stdout


class _Lines:
  """The lines received over a connection."""

  def __init__(self, connection: socket.socket):
    self._connection, self._rest = connection, b""

  def next(self, deadline: float, report: Callable[[float], None]) -> bytes:
    """Return the next line.

    Args:
      deadline: time by which the line must be complete, as of `time.monotonic`.
      report: function of the seconds waited so far, called when a message is due.

    Raises:
      _Stranger: nothing arrives, or too much.
      OSError: the connection is closed.
    """
    begun, due_sec = time.monotonic(), list(LOOKED_SEC)
    while b"\n" not in self._rest:
      now = time.monotonic()
      if now >= deadline or len(self._rest) > MAX_LINE:
        raise _Stranger
      if now - begun >= due_sec[0]:
        report(now - begun)
        due_sec = due_sec[1:] or [2 * due_sec[0]]
      self._connection.settimeout(min(deadline - now, begun + due_sec[0] - now) + 0.01)
      with contextlib.suppress(TimeoutError):
        part = self._connection.recv(4096)
        if not part:
          raise ConnectionError("the connection was closed")
        self._rest += part
    line, _, self._rest = self._rest.partition(b"\n")
    return line
