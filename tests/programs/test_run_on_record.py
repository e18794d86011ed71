"""A run of this version is on record: restored, sampled and evaluated, it gives the same numbers.

tests/fixtures/run_on_record.tar.xz holds the folder of 40 steps of configs/smoke.py with an MLP,
and in on_record.npz what its averaged weights gave: x0 estimates, images and bits/dim.
"""

import json
import tarfile

import jax
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax import evaluate

pytestmark = pytest.mark.costly


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The folder of the run."""
  made = tmp_path_factory.mktemp("record") / "run"
  with tarfile.open(
    f"{__file__.rpartition('/programs/')[0]}/fixtures/run_on_record.tar.xz"
  ) as file:
    file.extractall(made, filter="data")
  return made


def test_it_denoises_and_samples_as_it_did(folder):
  run, given = dj.load_run(folder), np.load(folder / "on_record.npz")
  found = run.denoise(given["xt"], given["t"], dj.Condition(label=given["labels"]))
  np.testing.assert_allclose(found, given["x0"], rtol=1e-4, atol=1e-5)
  keys, condition = jax.random.split(jax.random.key(3), 8), dj.Condition(label=np.arange(8))
  images = jax.jit(run.model.sample)(run.params, keys, condition).images
  np.testing.assert_allclose(images, given["images"], rtol=1e-4, atol=1e-4)


def test_its_bound_is_what_it_was(folder, call, tmp_path):
  flags = ["--features=none", "--inception=none", "--config.eval.likelihoods=vlb"]
  code, _, err = call(evaluate.main, f"--workdir={folder}", *flags, f"--out={tmp_path}")
  assert code == 0, err
  (path,) = tmp_path.rglob("metrics.json")
  figure = json.loads(path.read_text())["likelihoods"]["vlb"]
  terms = [figure["terms"][name]["mean"] for name in ("denoising", "prior", "reconstruction")]
  expected = np.load(folder / "on_record.npz")["vlb"]
  np.testing.assert_allclose([figure["bits_per_dim"], *terms], expected, rtol=1e-4, atol=1e-6)
