"""Real evaluators, really killed: the figures are those of one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xla_flags
from tiny import TINY

from diffusion_jax import train
from diffusion_jax.data import Synthetic
from diffusion_jax.extractors import train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path

pytestmark = pytest.mark.process
FLAGS = [
  "--inception=none", "--config.eval.num_samples=200", "--config.eval.batch_size=16",
  "--config.eval.spectrum_images=32", "--config.eval.likelihood_repeats=2",
  "--sweep=sampler.steps=2,5",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root_of_module):
  """A run of a small model, and a cache with the features of its data."""
  cache = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root_of_module)
    patch.setenv("XDG_CACHE_HOME", str(cache))
    data = Synthetic(num_images=200, image_size=8, channels=1)
    source = data.load("train")
    recipe = Recipe(num_steps=60, batch_size=32)
    train_domain(source, data.load("test"), default_features_path(source), recipe)
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    train.main(
      [
        *TINY,
        f"--workdir={workdir}",
        "--config.training.num_steps=150",
        "--config.optimizer.learning_rate=0.003",
        "--config.process.num_timesteps=50",
        "--config.data.num_images=200",
        "--config.checkpoint.every_steps=150",
        "--config.logging.tensorboard=false",
      ]
    )
  return workdir, cache


@pytest.fixture(scope="module")
def root_of_module():
  return Path(__file__).parents[2]


def begin(workdir, cache, devices):
  """Starts the evaluation program as a user does."""
  flags = f"--xla_force_host_platform_device_count={devices} {xla_flags.FAST}"
  return subprocess.Popen(
    [sys.executable, "-m", "diffusion_jax.evaluate", f"--workdir={workdir}", *FLAGS],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parents[2],
    env={**os.environ, "XLA_FLAGS": flags, "XDG_CACHE_HOME": str(cache)},
  )  # fmt: skip


def finish(workdir, cache, devices=1):
  process = begin(workdir, cache, devices)
  out, _ = process.communicate()
  assert process.returncode == 0, out
  return out


def pieces(workdir):
  return len(list(workdir.glob("eval/*/*/*/*.npz")))


def outcome(workdir):
  """metrics.json without what may differ: where it ran, and where the run lies."""
  text = (workdir / "eval/150/metrics.json").read_text().replace(str(workdir), "RUN")
  metrics = json.loads(text)
  del metrics["run"]
  return metrics


def images(workdir, metrics):
  """All samples of the run's own sampler."""
  folder = workdir / "eval/150" / metrics["samples"]["folder"]
  return np.concatenate([np.load(p)["images"] for p in sorted(folder.glob("*.npz"))])


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
  """The run, evaluated without a disturbance on one device."""
  workdir, cache = trained
  copy = shutil.copytree(workdir, tmp_path_factory.mktemp("alone") / "smoke")
  finish(copy, cache)
  return copy


def test_three_kills_leave_the_figures_as_they_are(trained, alone, tmp_path):
  workdir, cache = trained
  copy = shutil.copytree(workdir, tmp_path / "smoke")
  killed_at = []
  for more in (2, 14, 22):  # in the samples, in the sweep's or the likelihood's pieces
    process, before = begin(copy, cache, 1), pieces(copy)
    while pieces(copy) < before + more and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stdout.read()
    killed_at.append(pieces(copy))
    assert not (copy / "eval/150/metrics.json").exists()
  assert killed_at == sorted(set(killed_at))  # each got on from where the one before had been
  finish(copy, cache)
  assert outcome(copy) == outcome(alone)
  np.testing.assert_array_equal(images(copy, outcome(copy)), images(alone, outcome(alone)))


def test_sigterm_stops_with_75_and_the_same_command_continues(trained, alone, tmp_path):
  workdir, cache = trained
  copy = shutil.copytree(workdir, tmp_path / "smoke")
  process = begin(copy, cache, 1)
  while pieces(copy) < 3 and process.poll() is None:
    time.sleep(0.01)
  process.terminate()
  out, _ = process.communicate()
  assert process.returncode == 75, out
  assert out.splitlines()[-1] == "SIGTERM: the same command continues"
  finish(copy, cache)
  assert outcome(copy) == outcome(alone)


def numbers(value, path=()):
  """(path, number) of every figure in a metrics.json."""
  if isinstance(value, dict):
    for name, inner in value.items():
      yield from numbers(inner, (*path, name))
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      yield from numbers(inner, (*path, i))
  elif isinstance(value, float):
    yield path, value


def test_eight_devices_give_the_figures_of_one(trained, alone, tmp_path):
  workdir, cache = trained
  copy = shutil.copytree(workdir, tmp_path / "smoke")
  out = finish(copy, cache, devices=8)
  assert "on 8 device(s)" in out
  one, eight = outcome(alone), outcome(copy)
  for part in ("figures", "likelihoods", "spectrum", "sweep", "memorization"):
    theirs = dict(numbers(eight[part]))
    for path, value in numbers(one[part]):
      assert theirs[path] == pytest.approx(value, rel=1e-3, abs=1e-6), (part, path)
  difference = np.abs(images(alone, one).astype(int) - images(copy, eight))
  assert difference.max() <= 1
  assert (difference > 0).mean() <= 1e-3
