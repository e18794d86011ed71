"""The watchdog, in processes of its own: it ends them."""

import subprocess
import sys
import textwrap

import pytest


def run(body):
  """Runs Python code; (exit code, stderr, seconds)."""
  code = "import time\nfrom diffusion_jax.parallel import watchdog\n" + textwrap.dedent(body)
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
  )
  return done.returncode, done.stderr


def test_a_hang_ends_with_code_1_and_every_stack():
  code, said = run("""
    import threading
    def stuck_in_a_collective():
      time.sleep(30)
    threading.Thread(target=stuck_in_a_collective, daemon=True).start()
    watchdog.start_watch(1.0, "process 1 of 2")
    time.sleep(30)
  """)
  assert code == 1
  assert "watchdog: process 1 of 2: nothing finished for 1 s (distributed.watchdog_sec)" in said
  assert "stuck_in_a_collective" in said
  assert said.count("Thread 0x") >= 2


def test_signs_of_life_keep_it_away():
  code, said = run("""
    watchdog.start_watch(1.0, "x")
    for _ in range(8):
      time.sleep(0.4)
      watchdog.beat()
  """)
  assert (code, said) == (0, "")


def test_a_compilation_may_take_longer_but_not_for_ever():
  code, said = run("""
    watchdog.start_watch(1.0, "x")
    with watchdog.allow(3.0):
      time.sleep(2.0)
    with watchdog.allow(1.0):
      time.sleep(30)
  """)
  assert code == 1
  assert "nothing finished for 2 s" in said


def test_it_can_be_stopped_and_beats_without_it_do_nothing():
  code, said = run("""
    watchdog.beat()
    watchdog.start_watch(0.5, "x")
    watchdog.stop_watch()
    with watchdog.allow(1.0):
      time.sleep(1.5)
  """)
  assert (code, said) == (0, "")


@pytest.mark.parametrize("later", ["0.2"])
def test_a_hang_that_holds_the_interpreter_ends_too(later):
  """No Python thread runs then: the second alarm is in C."""
  code, said = run(f"""
    import ctypes
    watchdog.LATER_SEC = {later}
    watchdog.start_watch(1.0, "x")
    ctypes.PyDLL(None).sleep(30)  # PyDLL keeps the interpreter's lock
  """)
  assert code == 1
  assert "Timeout" in said
