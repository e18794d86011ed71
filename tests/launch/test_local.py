"""The launcher for one machine, with a stand-in for the programs that it starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
LAUNCHER = Path(__file__).parent.parent.parent / "launch" / "local.py"

PROGRAM = """
import os, signal, sys, threading, time

def tell(*words):
  os.write(1, " ".join([os.environ["JAX_PROCESS_ID"], *words, "\\n"]).encode())

def watch():
  os.read(int(os.environ["DIFFUSION_JAX_LAUNCHER"]), 1)
  tell("alone")
  os._exit(75)

seen = []
signal.signal(signal.SIGTERM, lambda number, frame: (seen.append(number), tell("SIGTERM")))
threading.Thread(target=watch, daemon=True).start()
tell("ready")
while len(seen) < int(sys.argv[2]):
  time.sleep(0.02)
time.sleep(0.2)  # a signal too many would be seen
sys.exit(75)
"""


@pytest.fixture
def launch(tmp_path):
  """Starts two processes that end after so many signals; returns once both are there."""
  (tmp_path / "diffusion_jax").mkdir()
  (tmp_path / "diffusion_jax" / "__init__.py").touch()
  (tmp_path / "diffusion_jax" / "__main__.py").write_text(PROGRAM)
  started = []

  def launch(num_signals):
    command = [sys.executable, str(LAUNCHER), "--devices=1", "program", str(num_signals)]
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, preexec_fn=restore)  # fmt: skip
    started.append(process)
    assert sorted(process.stdout.readline() for _ in range(2)) == ["0 ready \n", "1 ready \n"]
    return process

  yield launch
  for process in started:
    process.kill()
    process.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_what_asks_to_stop_goes_to_each_process_once(launch, name):
  launcher = launch(1)
  launcher.send_signal(getattr(signal, name))
  said, _ = launcher.communicate(timeout=20)
  assert sorted(said.splitlines()) == ["0 SIGTERM ", "1 SIGTERM "]
  assert launcher.returncode == 75


def test_the_second_ctrl_c_is_passed_on_too(launch):
  launcher = launch(2)
  for _ in range(2):
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
  said, _ = launcher.communicate(timeout=20)
  assert sorted(said.splitlines()) == ["0 SIGTERM "] * 2 + ["1 SIGTERM "] * 2


def test_processes_learn_that_the_launcher_was_killed(launch):
  launcher = launch(1)
  launcher.kill()
  said, _ = launcher.communicate(timeout=20)  # until the processes have ended
  assert sorted(said.splitlines()) == ["0 alone ", "1 alone "]


def test_a_program_that_is_not_there_ends_with_2_and_names_the_nearest(root):
  command = [sys.executable, str(LAUNCHER), "--devices=1", "trian"]
  env = {**os.environ, "PYTHONPATH": str(root)}
  ran = subprocess.run(command, env=env, capture_output=True, text=True)
  assert (ran.returncode, ran.stdout) == (2, "")
  assert ran.stderr.count("error: trian: no such command. Did you mean 'train'?") == 2
