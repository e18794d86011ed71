"""Every part of a training and of its evaluation is shown, at any width of the terminal."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest
import tiny

from diffusion_jax import evaluate, train
from diffusion_jax.core import progress

WIDTHS = (60, 200, 100, 80)
FLAGS = (*tiny.TINY, "--config.training.num_steps=4", "--config.eval.every_steps=2")


class Watched:
  """A terminal that is read while a program runs, and resized again and again."""

  def __init__(self):
    self.shown, written = pty.openpty()
    self.stream = open(written, "w")  # noqa: SIM115
    self.text, self.widths = "", 0
    self._resize()
    threading.Thread(target=self._read, daemon=True).start()

  def _resize(self) -> None:
    size = struct.pack("HHHH", 24, WIDTHS[self.widths % len(WIDTHS)], 0, 0)
    fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, size)
    self.widths += 1

  def _read(self) -> None:
    while True:
      try:
        content = os.read(self.shown, 1 << 16).decode(errors="ignore")
      except OSError:
        return
      self.text += content
      if len(self.text) > self.widths * 50_000:
        self._resize()

  def bars(self) -> list[str]:
    """Return every line with a bar that was ever drawn."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.text)
    return [line for line in re.split("[\r\n]", plain) if "━" in line]


@pytest.mark.costly
def test_a_terminal_shows_every_part_of_train_and_evaluate(tmp_path, monkeypatch):
  watched = Watched()
  monkeypatch.setattr(progress, "BAR_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "REDRAW_SEC", 0.01)
  monkeypatch.setenv("TERM", "xterm-256color")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for stream in ("stdout", "stderr"):
    monkeypatch.setattr(sys, stream, watched.stream)
  train.main([*FLAGS, f"--workdir={tmp_path}/run"])
  few = ("--config.eval.num_samples=16", "--config.eval.likelihoods=none")
  evaluate.main([f"--workdir={tmp_path}/run", *few, "--config.eval.spectrum_images=0"])
  assert sys.stdout is sys.stderr is watched.stream
  watched.stream.flush()
  lines = watched.bars()
  missing = {
    "creating the state", "compiling the training step", "training",
    "drawing samples", "held-out pass", "restoring step 4", "features and references",
    "training the features", "first batches", "samples, first batches", "sampling, seed 0",
    "sample metrics", "pictures",
  } - {line.partition("━")[0].strip() for line in lines}  # fmt: skip
  assert not missing
  assert {len(line) + 1 for line in lines} >= set(WIDTHS[: watched.widths - 1])
  assert any(line.startswith("training ") and "loss " in line for line in lines)
