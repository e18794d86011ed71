"""Output that cannot be written ends no run."""

import io
import os
import subprocess
import sys

import pytest
import tiny

from diffusion_jax.runs.streams import Labelled, Unbreakable


def test_a_character_that_the_terminal_lacks_is_replaced():
  raw = io.BytesIO()
  stream = Unbreakable(io.TextIOWrapper(raw, encoding="ascii"))
  print("5.4 ± 0.3", file=stream, flush=True)
  assert raw.getvalue() == b"5.4 ? 0.3\n"


def test_a_stream_that_is_closed_or_not_there_takes_everything():
  closed = io.StringIO()
  closed.close()
  for stream in (Unbreakable(None), Unbreakable(closed)):
    print("text", file=stream, flush=True)
    assert not stream.isatty()


def test_a_terminal_of_several_processes_has_no_bar():
  """Their lines would break it, and only process 0 prints lines of progress."""

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  assert Unbreakable(Terminal()).isatty()
  assert not Labelled(Terminal(), "[1 of 2] ").isatty()


@pytest.mark.process
@pytest.mark.parametrize("redirection", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_run_with_nowhere_to_write_to_ends_well(redirection, tmp_path, root):
  flags = [*tiny.TINY, "--config.training.num_steps=2", f"--workdir={tmp_path}/run"]
  command = [sys.executable, "-m", "diffusion_jax.train", *flags]
  shell = " ".join(f"'{word}'" for word in command) + f" {redirection}"
  assert subprocess.run(["bash", "-c", shell], cwd=root, env=os.environ).returncode == 0
  assert (tmp_path / "run" / "held_out.json").is_file()


@pytest.mark.process
def test_a_write_that_was_begun_for_nothing_is_not_told_when_python_ends():
  """What Orbax leaves behind where a save fails; said after the one line of the error."""
  code = "streams.leave_out_repeats()\nasync def write(): pass\nwrite()"
  nothing = "import types\nstreams = types.SimpleNamespace(leave_out_repeats=lambda: 0)\n"
  for install, said in (("from diffusion_jax.runs import streams\n", False), (nothing, True)):
    ran = subprocess.run([sys.executable, "-c", install + code], capture_output=True, text=True)
    assert ran.returncode == 0
    assert ("never awaited" in ran.stderr) == said
