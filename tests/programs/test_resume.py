"""Nothing is ever lost: real processes, really killed, end where an undisturbed run ends."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xla_flags
from tiny import TINY

from diffusion_jax.checkpoints import store
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.stored import stored_experiment
from diffusion_jax.train_loop.setup import prepare_job, state_shapes

pytestmark = pytest.mark.process
NUM_STEPS = 120
FLAGS = [
  *TINY, f"--config.training.num_steps={NUM_STEPS}",
  "--config.checkpoint.every_steps=20", "--config.checkpoint.keep_last=100",
  "--config.logging.every_steps=1", "--config.logging.num_samples=4",
  "--config.logging.tensorboard=false", "--config.data.flip=true", "--config.model.dropout=0.1",
  "--config.optimizer.schedule=cosine", "--config.training.accumulation_steps=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


def begin(workdir):
  """Starts the training program as a user does, on one device."""
  command = [sys.executable, "-m", "diffusion_jax.train", *FLAGS, f"--workdir={workdir}"]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    env={**os.environ, "XLA_FLAGS": xla_flags.FAST},
  )  # fmt: skip


def finish(workdir):
  process = begin(workdir)
  out, _ = process.communicate()
  return process.returncode, out


def wait_for_step(process, step):
  """Reads progress lines until one of this step or later."""
  for line in process.stdout:
    if line.startswith("step") and int(line.split()[1].partition("/")[0]) >= step:
      return
  pytest.fail("the run ended early")


def final_state(workdir):
  """Every leaf of the last checkpoint, and what lies beside it."""
  job = prepare_job(stored_experiment(workdir, []), workdir)
  shapes = state_shapes(job)
  target = sharding.as_target(shapes, sharding.state_shardings(job.mesh, shapes))
  restored = store.restore_checkpoint(workdir / "checkpoints", target)
  assert restored.step == NUM_STEPS
  return jax.device_get(restored.state), restored.meta


def losses(workdir):
  """Loss of every step: a different batch, noise, flip or dropout would change it."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, root_of_module):
  """A run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("straight")
  code, out = finish(workdir)
  assert code == 0, out
  return workdir


@pytest.fixture(scope="module")
def root_of_module(request):
  os.chdir(request.config.rootpath)


def assert_same_end(workdir, straight):
  state, meta = final_state(workdir)
  expected, expected_meta = final_state(straight)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
  ):
    assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)
  assert meta == expected_meta
  assert losses(workdir) == losses(straight)
  assert sorted(losses(workdir)) == list(range(1, NUM_STEPS + 1))
  samples = [w / "samples" / f"step_{NUM_STEPS:08d}.png" for w in (workdir, straight)]
  assert samples[0].read_bytes() == samples[1].read_bytes()


@pytest.mark.parametrize("after", [30, 75])
def test_a_killed_run_ends_bit_for_bit_where_a_straight_one_does(straight, tmp_path, after):
  """kill -9 of a real process; parameters, EMA, optimizer, losses, samples are compared."""
  process = begin(tmp_path)
  wait_for_step(process, after)
  process.send_signal(signal.SIGKILL)
  process.wait()
  saved = store.saved_steps(tmp_path / "checkpoints")
  assert NUM_STEPS not in saved
  code, out = finish(tmp_path)
  assert code == 0, out
  assert f"resuming at step {saved[-1]}" in out if saved else "a new run" in out
  assert_same_end(tmp_path, straight)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_there_too(straight, tmp_path):
  rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
  for _ in range(6):
    process = begin(tmp_path)
    wait_for_step(process, 1)
    time.sleep(rng.uniform(0.0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
  code, out = finish(tmp_path)
  assert code == 0, out
  assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_exits_with_75(straight, tmp_path, number):
  process = begin(tmp_path)
  wait_for_step(process, 10)
  process.send_signal(number)
  out, _ = process.communicate()
  assert process.returncode == 75, out
  (step,) = (int(s) for s in [out.partition("saved step ")[2].partition(";")[0]])
  assert "the same command continues" in out
  assert "Traceback" not in out
  assert store.saved_steps(tmp_path / "checkpoints")[-1] == step
  code, out = finish(tmp_path)
  assert code == 0
  assert f"resuming at step {step} of {NUM_STEPS}" in out
  assert_same_end(tmp_path, straight)


def test_stopping_during_the_start_loses_nothing(tmp_path):
  process = begin(tmp_path)
  for line in process.stdout:
    if line.startswith("training images"):  # compiling comes next
      break
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate()
  assert process.returncode == 75, out
  assert "Traceback" not in out
