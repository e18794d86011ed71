"""A run of version 0.1.0: its checkpoint is sampled and evaluated, and its training refused.

tests/fixtures/run_0_1_0.tar.xz holds the run's folder, and in denoised.npz what its averaged model
made of some x_t.
"""

import json
import tarfile

import jax
import numpy as np
import pytest

from diffusion_jax import evaluate, sample, train
from diffusion_jax.core.rng import DRAWS
from diffusion_jax.inference import restore
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.stored import stored_experiment
from diffusion_jax.types import Condition

CONFIG = """
import json
import pathlib
import ml_collections

def get_config():
  return ml_collections.ConfigDict(json.loads(pathlib.Path({path!r}).read_text()))
"""


@pytest.fixture
def older(tmp_path, root):
  """The folder of the run."""
  folder = tmp_path / "run"
  with tarfile.open(root / "tests" / "fixtures" / "run_0_1_0.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*")
          if p.is_file() and p.name != ".lock"}  # fmt: skip


def test_its_average_denoises_as_it_did(older):
  experiment = stored_experiment(older, [])
  model = experiment.create(restore.stored_spec(older / "checkpoints", None))
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  params = restore.restore_weights(older, None, mesh, model, restore.Average()).params
  given = np.load(older / "denoised.npz")
  condition = Condition(given["labels"].astype(np.int32))
  found = jax.jit(model.denoise)(params, given["xt"], given["t"], condition)
  np.testing.assert_allclose(found, given["x0"], rtol=1e-5, atol=1e-6)


@pytest.mark.costly
def test_it_is_sampled_and_evaluated(older, call, tmp_path):
  code, _, err = call(sample.main, f"--workdir={older}", "--num=4", f"--out={tmp_path}/x.npz")
  assert code == 0, err
  images = np.load(tmp_path / "x.npz")["images"]
  assert images.shape == (4, 8, 8, 1)
  assert images.std() > 0
  flags = ["--features=none", "--inception=none", "--config.eval.likelihoods=vlb"]
  code, _, err = call(evaluate.main, f"--workdir={older}", *flags, f"--out={tmp_path}/eval")
  assert code == 0, err
  (path,) = (tmp_path / "eval").rglob("metrics.json")
  assert json.loads(path.read_text())["likelihoods"]["vlb"]["bits_per_dim"] > 0


def test_training_it_on_is_refused_and_loses_nothing(older, call, tmp_path):
  config = tmp_path / "config.py"
  config.write_text(CONFIG.format(path=str(older / "config.json")))
  before = contents(older)
  flags = [f"--config={config}", f"--workdir={older}"]
  code, _, err = call(train.main, *flags, "--config.training.num_steps=6")
  assert code == 2
  assert f"random streams of an older version (draws 1, now {DRAWS})" in err
  assert "--fresh" in err
  assert len(err.strip().splitlines()) == 1
  assert contents(older) == before
