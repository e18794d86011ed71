"""Signals that ask to stop set a flag; nothing is raised out of their handlers."""

import os
import signal

import pytest

from diffusion_jax import signals

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
    assert signal.getsignal(getattr(signal, name)) == before[name]  # a second one acts at once
  assert {n: signal.getsignal(getattr(signal, n)) for n in NAMES} == before
  assert f"{name}: saving, then stopping (again to stop at once)" in capfd.readouterr().err


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
