"""A save that fails ends a run with one line, after what can be saved has been."""

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xla_flags
from tiny import TINY

from diffusion_jax import train
from diffusion_jax.checkpoints import store
from diffusion_jax.checkpoints.store import Checkpoints
from diffusion_jax.train_loop import profiling

FLAGS = [*TINY, "--config.logging.tensorboard=false", "--config.checkpoint.every_steps=5",
         "--config.model.hidden=64"]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture
def limit():
  """Sets and takes away a limit on the size of files: EFBIG in the threads that write them."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails_from(step, limit, monkeypatch):
  """From the save of this step on, files may have 32 kB."""
  whole = Checkpoints.save

  def save(self, now, *more):
    if now == step:
      while step - 5 not in store.saved_steps(self._directory.with_name("checkpoints")):
        time.sleep(0.01)
      limit(1 << 15)
    return whole(self, now, *more)

  monkeypatch.setattr(Checkpoints, "save", save)


@pytest.mark.costly
def test_a_failed_save_is_tried_once_more_for_the_state_of_now(call, tmp_path, limit, monkeypatch):
  fails_from(10, limit, monkeypatch)
  whole = Checkpoints.begin_anew

  def begin_anew(self):
    limit(None)  # somebody has made room
    whole(self)

  monkeypatch.setattr(Checkpoints, "begin_anew", begin_anew)
  code, out, err = call(train.main, *FLAGS, f"--workdir={tmp_path}/run")
  saved = store.saved_steps(tmp_path / "run" / "checkpoints")
  assert (code, err.count("\n")) == (2, 1), err
  assert f"failed: File too large: {tmp_path}/run/checkpoints (" in err
  assert err.endswith(f"; step {saved[-1]} is intact there\n")
  assert saved[-1] >= 10
  monkeypatch.undo()
  monkeypatch.chdir(Path(__file__).parents[2])
  code, out, err = call(train.main, *FLAGS, f"--workdir={tmp_path}/run")
  assert code == 0, err
  assert f"resuming at step {saved[-1]} of 20" in out


@pytest.mark.costly
def test_a_disk_that_stays_full_leaves_the_checkpoint_before(call, tmp_path, limit, monkeypatch):
  fails_from(10, limit, monkeypatch)
  code, _, err = call(train.main, *FLAGS, f"--workdir={tmp_path}/run")
  assert (code, err.count("\n")) == (2, 1), err
  assert err.startswith("error: saving ")
  assert err.endswith("; step 5 is intact there\n")
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [5]


@pytest.mark.costly
def test_a_full_disk_elsewhere_saves_first(call, tmp_path, monkeypatch):
  """Whatever else is written: here a trace of the profiler."""

  def before(self, step):
    if step == 8:
      raise OSError(errno.ENOSPC, "No space left on device", "/profiles/trace")

  monkeypatch.setattr(profiling.Trace, "before", before)
  code, _, err = call(train.main, *FLAGS, f"--workdir={tmp_path}/run")
  assert (code, err.count("\n")) == (2, 1), err
  assert err.startswith("error: No space left on device: /profiles/trace (")
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [5, 7]


@pytest.mark.costly
def test_no_checkpoint_is_saved_before_the_snapshots_of_earlier_steps(
  call, tmp_path, limit, monkeypatch
):
  """A run that went on from it would not take them again."""
  flags = ["--config.ema.profiles=0.1", "--config.ema.snapshot_every_steps=10"]
  fails_from(10, limit, monkeypatch)
  whole = Checkpoints.begin_anew
  monkeypatch.setattr(Checkpoints, "begin_anew", lambda self: [limit(None), whole(self)])
  assert call(train.main, *FLAGS, *flags, f"--workdir={tmp_path}/run")[0] != 0
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [5]


@pytest.mark.process
def test_a_limit_on_the_size_of_files_ends_a_real_run_with_one_line(tmp_path, root):
  """EFBIG in Orbax's threads, which would say so in hundreds of lines; no restart mends it."""
  flags = [*FLAGS, "--config.model.hidden=256", f"--workdir={tmp_path}/run"]
  ran = subprocess.run(
    [sys.executable, "-m", "diffusion_jax.train", *flags], cwd=root, text=True,
    capture_output=True, env={**os.environ, "XLA_FLAGS": xla_flags.FAST},
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
  )  # fmt: skip
  assert ran.returncode == 2, ran.stderr
  assert ran.stderr.count("\n") == 1, ran.stderr
  assert f"failed: File too large: {tmp_path}/run/checkpoints (" in ran.stderr
  assert ran.stderr.endswith("; no checkpoint is intact there yet\n")
