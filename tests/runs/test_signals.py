"""Signals that ask to stop set a flag; a second one ends the process, whatever it is at."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffusion_jax.core import files
from diffusion_jax.runs import signals

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def send(name):
  os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", NAMES)
def test_each_of_them_asks_to_stop_and_is_as_before_afterwards(name, capfd):
  before = {n: signal.getsignal(getattr(signal, n)) for n in NAMES}
  with signals.stop_requests() as asked:
    assert asked() is None
    send(name)
    assert asked() == name
    send(name)  # at once: it is the same one, sent twice
  assert {n: signal.getsignal(getattr(signal, n)) for n in NAMES} == before
  words = f"{name}: saving, then stopping (again to end at once without saving)"
  assert capfd.readouterr().err.strip() == words


def test_another_thread_has_no_handlers_and_is_never_asked():
  """Python allows handlers in the main thread only; a notebook's server may train in another."""
  before, told = signal.getsignal(signal.SIGTERM), []

  def work():
    with signals.stop_requests() as asked:
      told.append((asked(), signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert told == [(None, before)]


def test_another_signal_is_not_the_same_one_again(monkeypatch):
  """A scheduler may send SIGTERM after a user's Ctrl-C: the run still saves."""
  monkeypatch.setattr(signals, "SAME_SEC", 0.0)
  with signals.stop_requests() as asked:
    send("SIGINT")
    time.sleep(0.05)
    send("SIGTERM")
    assert asked() == "SIGINT"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_second_one_ends_the_process(name, monkeypatch):
  ended = []
  monkeypatch.setattr(signals, "SAME_SEC", 0.1)
  monkeypatch.setattr(signals, "end_by", ended.append)
  with signals.stop_requests():
    for _ in range(2):
      send(name)
      time.sleep(0.3)
  assert ended == [getattr(signal, name)]


@pytest.fixture
def foreground():
  """These tests may run in the background, where SIGINT is ignored."""
  before = signal.signal(signal.SIGINT, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_program_with_one_line_and_without_half_files(
  foreground, monkeypatch, capfd, tmp_path
):
  ended = []
  monkeypatch.setattr(signals, "end_by", ended.append)

  def work():
    (tmp_path / "folder").mkdir()
    with files.atomic_write(tmp_path / "a") as file, files.unfinished(tmp_path / "folder"):
      file.write(b"half")
      (tmp_path / "folder" / "b").touch()
      assert len(list(tmp_path.iterdir())) == 2
      send("SIGINT")
      time.sleep(0.3)
      assert not list(tmp_path.iterdir())

  with signals.interruptible(), pytest.raises(FileNotFoundError):  # it did not live to see that
    work()
  assert ended == [signal.SIGINT]
  assert capfd.readouterr().err == f"\n{signals.INTERRUPTED}\n"
  assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_an_ignored_ctrl_c_stays_ignored(foreground, monkeypatch):
  monkeypatch.setattr(signals, "end_by", lambda number: pytest.fail("it was not ignored"))
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with signals.interruptible():
    send("SIGINT")
    time.sleep(0.1)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_process_is_asked_to_stop_when_its_launcher_ends(is_ignored, capfd):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
  read, write = os.pipe()
  os.set_inheritable(read, True)
  environment = {signals.LAUNCHER: str(read), "PATH": "/bin"}
  try:
    with signals.stop_requests() as asked:
      signals.stop_with_launcher(environment)
      time.sleep(0.1)
      assert asked() is None
      os.close(write)
      time.sleep(0.3)
      assert asked() == ("SIGTERM" if is_ignored else "SIGHUP")
  finally:
    signal.signal(signal.SIGHUP, before)
  assert environment == {"PATH": "/bin"}
  assert not os.get_inheritable(read)
  os.close(read)
  assert "the launcher has ended" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["", "x", "987654"])
def test_a_launchers_pipe_that_was_not_passed_on_means_nothing(name):
  environment = {signals.LAUNCHER: name}
  signals.stop_with_launcher(environment)
  assert not environment


def begin(*words, **options):
  """Starts a process that does not ignore SIGINT, as it would where these tests do."""
  options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
  return subprocess.Popen([sys.executable, *words], preexec_fn=restore, **options)


BUSY = """
import hashlib, sys
from diffusion_jax.runs import command_line, signals

def main(argv):
  with eval(argv[0]):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # minutes in C, without Python's lock

command_line.run_main(main)
"""


@pytest.mark.process
def test_ctrl_c_is_answered_and_its_second_obeyed_while_python_does_not_run():
  """As in a compilation: the main thread is in C for minutes, and no handler of Python's runs."""
  busy = begin("-c", BUSY, "signals.stop_requests()")
  assert busy.stdout.readline() == "ready\n"
  busy.send_signal(signal.SIGINT)
  assert busy.stderr.readline() == "\n"
  assert "(again to end at once without saving)" in busy.stderr.readline()
  time.sleep(2 * signals.SAME_SEC)
  busy.send_signal(signal.SIGINT)
  _, rest = busy.communicate(timeout=20)
  assert (busy.returncode, rest) == (-signal.SIGINT, "")


@pytest.mark.process
def test_one_ctrl_c_ends_a_program_with_nothing_to_save_while_python_does_not_run():
  busy = begin("-c", BUSY, "open('/dev/null')")
  assert busy.stdout.readline() == "ready\n"
  busy.send_signal(signal.SIGINT)
  _, said = busy.communicate(timeout=20)
  assert (busy.returncode, said) == (-signal.SIGINT, f"\n{signals.INTERRUPTED}\n")


@pytest.mark.process
@pytest.mark.parametrize("delay", [0.3, 1.0])
@pytest.mark.parametrize("program", ["-m diffusion_jax.train", "-m diffusion_jax.features",
                                     "-m diffusion_jax train", "SCRIPT train"])  # fmt: skip
def test_ctrl_c_in_the_first_seconds_leaves_no_traceback(program, delay, root, tmp_path):
  """While imports take their seconds."""
  script = tmp_path / "diffusion-jax"  # as pip writes it
  script.write_text("import sys\nfrom diffusion_jax.__main__ import main\nsys.exit(main())\n")
  words = program.replace("SCRIPT", str(script)).split()
  env = {**os.environ, "PYTHONPATH": str(root)}
  starting = begin("-X", "importtime", *words, "--config=configs/smoke.py", cwd=root, env=env)
  for line in starting.stderr:
    if line.endswith(" diffusion_jax\n"):
      break
  time.sleep(delay)
  starting.send_signal(signal.SIGINT)
  _, err = starting.communicate(timeout=60)
  said = [line for line in err.splitlines() if not line.startswith("import time:")]
  assert (starting.returncode, said) == (-signal.SIGINT, [])


def test_a_hangup_that_nohup_has_switched_off_stays_off():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.stop_requests() as asked:
      send("SIGHUP")
      assert asked() is None
  finally:
    signal.signal(signal.SIGHUP, before)


def test_work_in_pieces_ends_between_them():
  done = []

  def work():
    for piece in range(5):
      signals.stop_here()
      if piece == 2:
        send("SIGUSR1")
      done.append(piece)

  with (
    signals.stops_between_pieces("goes on"),
    pytest.raises(signals.StoppedEarly, match=r"^SIGUSR1: goes on$"),
  ):
    work()
  assert done == [0, 1, 2]  # the piece in which it came is finished
  signals.stop_here()  # outside nothing stops
