"""Weights & Biases by its own newest package, offline: what a run sends, and how it ends."""

import os
import re
import signal
import subprocess
import sys

import pytest
from tiny import TINY

pytest.importorskip("wandb")
pytestmark = [pytest.mark.reference, pytest.mark.process]

FLAGS = [
  *TINY, "--config.logging.wandb_project=p", "--config.logging.every_steps=2",
  "--config.logging.sample_every_steps=4", "--config.logging.num_samples=4",
]  # fmt: skip


def begin(root, tmp_path, *flags):
  command = [
    sys.executable,
    "-m",
    "diffusion_jax.train",
    *FLAGS,
    f"--workdir={tmp_path}/run",
    *flags,
  ]
  variables = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
  return subprocess.Popen(
    command, cwd=root, env={**os.environ, **variables}, text=True, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )  # fmt: skip


def sent(tmp_path):
  """All that lies in the files of the offline runs, as bytes."""
  return b"".join(p.read_bytes() for p in tmp_path.glob("run/wandb/offline-run-*/*.wandb"))


def test_a_run_ends_well_and_what_it_shows_is_sent(root, tmp_path):
  process = begin(root, tmp_path, "--config.training.num_steps=6")
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  assert "Traceback" not in out
  assert "Weights & Biases" not in out  # which is said where a sink fails
  for word in (b"train/loss", b"held_out/loss", b"samples"):
    assert word in sent(tmp_path)
  assert list(tmp_path.glob("run/wandb/offline-run-*/files/media/images/*.png"))


def test_a_run_that_is_stopped_asks_for_its_restart_and_goes_on_as_the_same(root, tmp_path):
  flags = ["--config.training.num_steps=4000", "--config.logging.sample_every_steps=none"]
  process = begin(root, tmp_path, *flags)
  for line in process.stdout:
    if re.match(r"step +[0-9]+/", line):
      process.send_signal(signal.SIGTERM)
      break
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 75, out
  assert "Traceback" not in out
  name = (tmp_path / "run" / "wandb_id").read_text()
  runs = list(tmp_path.glob("run/wandb/offline-run-*"))
  assert len(runs) == 1
  assert runs[0].name.endswith(name.strip())
