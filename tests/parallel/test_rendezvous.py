"""The roll call over real sockets, its processes played by threads."""

import concurrent.futures
import contextlib
import socket
import threading
import time

import pytest

from diffusion_jax.parallel import Distributed, World, rendezvous
from diffusion_jax.types import UserError


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def call(calls, config=None, port=None):
  """Calls the roll among (process, count, identity, delay); each one's outcome: None or a text."""
  config = config or Distributed(connect_timeout_sec=10.0, start_timeout_sec=20.0)
  port = port or free_port()

  def one(process, count, identity="same", delay=0.0):
    time.sleep(delay)
    try:
      rendezvous.rendezvous(config, World("test", count, process, f"127.0.0.1:{port}"), identity)
    except UserError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return [f.result() for f in [pool.submit(one, *c) for c in calls]]


def test_all_go_once_all_are_there():
  begun = time.monotonic()
  assert call([(0, 3), (2, 3), (1, 3, "same", 1.0)]) == [None] * 3
  assert time.monotonic() - begun >= 1.0


def test_process_0_may_come_last():
  assert call([(1, 2), (0, 2, "same", 1.5)]) == [None, None]


def test_the_port_is_free_for_jax_at_once():
  port = free_port()
  assert call([(0, 2), (1, 2)], port=port) == [None, None]
  with socket.create_server(("", port)):
    pass


def test_who_is_missing_is_named_to_all(monkeypatch, capsys):
  monkeypatch.setattr(rendezvous, "TOLD_SEC", (0.5, 1.0))
  config = Distributed(connect_timeout_sec=5.0, start_timeout_sec=2.0)
  said = call([(0, 4), (2, 4)], config)
  host = socket.gethostname()
  words = f"missing: process 1, 3 of 4; here: 0 ({host}), 2 ({host}) after 2 s; start all of them"
  assert said == [words, words]
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("missing: process 1, 3 of 4; here: 0")
  assert lines[0].endswith(" s; waiting")
  assert len(lines) == 2  # after 0.5 and 1 s, then at each doubling


@pytest.mark.parametrize(
  ("calls", "words"),
  [
    ([(0, 2), (1, 3)], "process 1 (HOST) expects 3 processes, process 0 2"),
    ([(0, 2, "a"), (1, 2, "b")], "process 1 (HOST) runs another program or config than process 0"),
  ],
)
def test_other_jobs_are_refused_on_both_sides(calls, words):
  for said in call(calls):
    assert words.replace("HOST", socket.gethostname()) in said


def test_two_processes_of_one_number_are_refused():
  config = Distributed(connect_timeout_sec=2.0, start_timeout_sec=5.0)
  said = call([(0, 3), (1, 3), (1, 3)], config)
  assert "two processes have the number 1" in said[0]
  assert any("two processes have" in text for text in said[1:])


def test_nobody_there_is_named_with_the_address():
  port = free_port()
  config = Distributed(connect_timeout_sec=1.0)
  (said,) = call([(1, 2)], config, port)
  assert f"process 1 cannot reach process 0 at 127.0.0.1:{port} within 1 s (" in said
  assert "refused" in said
  assert "connect_timeout_sec" in said


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    (said,) = call([(0, 2)], port=port)
  assert f"process 0 cannot listen on port {port} (" in said
  assert "JAX_COORDINATOR_ADDRESS" in said


@pytest.mark.parametrize("address", ["nowhere", "a:b", ":5", "a:70000"])
def test_an_address_without_a_port_is_refused(address):
  with pytest.raises(UserError, match=f"{address}: write host:port"):
    rendezvous.rendezvous(Distributed(), World("test", 2, 1, address), "same")


FOREIGN = [
  b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"[" * 60000 + b"\n",
  b"null\n", b"7\n", b"[1]\n", b"{}\n",
  b'{"process": "x"}\n', b'{"process": 1, "host": "a"}\n', b'{"process": Infinity, "host": "a"}\n',
  b'{"process": 1, "count": 2, "host": "a", "identity": 3}\n',
  b'{"process": 1, "count": "2", "host": "a", "identity": "same"}\n',
  b'{"process": -1, "count": 2, "host": "a", "identity": "same"}\n',
  b'{"process": true, "count": 2, "host": "a", "identity": "same"}\n',
  b'{"process": 1, "count": 2, "host": "\\u001b[2J", "identity": "same"}\n',
  b'{"process": 1, "count": 2, "host": "a", "identity": "same", "more": 1}\n',
]  # fmt: skip


def test_strangers_at_the_door_do_not_matter():
  """They say nothing sensible, one object of another kind, or nothing for as long as they may."""
  port, silent = free_port(), []

  def stranger(words):
    time.sleep(0.3)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as door:
      door.sendall(words)
      door.recv(1)

  def quiet():
    time.sleep(0.3)
    silent.append(socket.create_connection(("127.0.0.1", port), 5))

  begun = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(len(FOREIGN) + 3) as pool:
    for words in FOREIGN:
      pool.submit(stranger, words)
    for _ in range(3):
      pool.submit(quiet)
    assert call([(0, 2), (1, 2, "same", 1.0)], port=port) == [None, None]
  assert len(silent) == 3
  assert time.monotonic() - begun < rendezvous.GREETING_SEC  # the silent ones hold nobody up
  for door in silent:
    door.close()


def test_a_process_that_starts_again_takes_its_own_place():
  port = free_port()
  hello = b'{"process": 1, "count": 3, "host": "a", "identity": "same"}\n'

  def dies():
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port), 5) as door:
      door.sendall(hello)
      assert door.recv(100) == b'{"welcome": "diffusion_jax"}\n'

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    died = pool.submit(dies)
    calls = [(0, 3), (1, 3, "same", 1.0), (2, 3, "same", 1.5)]
    assert call(calls, port=port) == [None] * 3
    died.result()


@pytest.mark.parametrize(
  "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"5\n", b'{"go": true}\n', b"x" * 100000]
)
def test_a_stranger_on_the_port_of_process_0_is_named(answer, monkeypatch, capsys):
  """It takes the connection and says nothing, or something else than process 0 would."""
  monkeypatch.setattr(rendezvous, "WELCOME_SEC", 0.5)
  monkeypatch.setattr(rendezvous, "LOOKED_SEC", (0.1, 10.0))
  config = Distributed(connect_timeout_sec=1.0, start_timeout_sec=60.0)
  with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
    port = server.getsockname()[1]

    def serve():
      with contextlib.suppress(OSError):
        while True:
          connection = stack.enter_context(server.accept()[0])
          connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    begun = time.monotonic()
    (said,) = call([(1, 2)], config, port)
    assert time.monotonic() - begun < 4
    server.shutdown(socket.SHUT_RDWR)
  words = "a program answers there, but not as process 0 of this job"
  assert f"process 1 cannot reach process 0 at 127.0.0.1:{port} within 1 s ({words})" in said
  told = capsys.readouterr().err
  assert told.startswith(f"process 1 of 2 ({socket.gethostname()}) found no process 0 at 127.0.0.1")
  assert told.endswith(f"({words})\n")


def test_who_waits_for_process_0_says_so(monkeypatch, capsys):
  monkeypatch.setattr(rendezvous, "LOOKED_SEC", (0.5, 10.0))
  assert call([(0, 3), (1, 3), (2, 3, "same", 1.0)]) == [None] * 3
  assert "process 1 of 3 (" in (told := capsys.readouterr().err)
  assert "has found process 0 at 127.0.0.1:" in told
