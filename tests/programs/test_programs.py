"""Every program once with a U-Net of two levels and attention, as configs/smoke.py has it.

The tests of the programs themselves use a network that compiles sooner: tests/tiny.py.
"""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import edit, evaluate, plan, sample, train
from diffusion_jax.checkpoints import store
from diffusion_jax.core.picture_grid import LINE
from diffusion_jax.extractors import train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path
from diffusion_jax.runs.stored import stored_experiment

pytestmark = pytest.mark.costly
FLAGS = [
  "--config=configs/smoke.py", "--config.process.num_timesteps=20",
  "--config.data.num_images=100", "--config.training.num_steps=4",
  "--config.checkpoint.every_steps=2", "--config.logging.every_steps=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, request):
  """A finished run."""
  workdir = tmp_path_factory.mktemp("unet") / "smoke"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(request.config.rootpath)
    train.main([*FLAGS, f"--workdir={workdir}"])
  return workdir


def test_train(workdir):
  assert store.saved_steps(workdir / "checkpoints") == [2, 4]
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
  assert list(found) == [2, 4]
  assert all(0.3 < loss < 3 for loss in found.values())  # the variance of the noise, untrained
  assert json.loads((workdir / "held_out.json").read_text())["step"] == 4


def test_sample(workdir, call, tmp_path):
  images = []
  for labels in ("3", "4"):
    flags = [f"--workdir={workdir}", "--num=3", f"--out={tmp_path}/a.npz", f"--labels={labels}"]
    code, _, err = call(sample.main, *flags)
    assert code == 0, err
    images.append(np.load(tmp_path / "a.npz")["images"])
  assert images[0].shape == (3, 8, 8, 1)
  assert images[0].std() > 10
  flags = [f"--workdir={workdir}", "--num=3", f"--out={tmp_path}/b.npz"]
  wild = ["--config.guidance.weight=1e39", "--config.sampler.clip=false"]
  code, _, err = call(sample.main, *flags, *wild)
  assert (code, err.count("\n")) == (2, 1)
  assert "3 of 3 images are not finite (NaN or infinity); use weaker guidance" in err


def test_edit(workdir, call, tmp_path):
  flags = [f"--workdir={workdir}", "--num=2", "--inpaint=left", f"--out={tmp_path}/a.png"]
  code, _, err = call(edit.main, *flags)
  assert code == 0, err
  grid = np.asarray(Image.open(tmp_path / "a.png"))[LINE:]  # below the names of the classes
  given, _, filled = (grid[2 + 34 * r : 34 + 34 * r, 2:70] for r in range(3))
  np.testing.assert_array_equal(filled[:, 16:32], given[:, 16:32])
  assert (filled[:, :16] != given[:, :16]).any()


def test_evaluate(workdir, call, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  data = stored_experiment(workdir, []).data
  source = data.load("train")
  train_domain(
    source, data.load("test"), default_features_path(source), Recipe(num_steps=3, batch_size=16)
  )
  flags = [
    "--inception=none", "--config.eval.num_samples=24", "--config.eval.spectrum_images=8",
    "--config.spectrum.num_points=2",
  ]  # fmt: skip
  code, _, err = call(evaluate.main, f"--workdir={workdir}", *flags)
  assert code == 0, err
  metrics = json.loads((workdir / "eval/4/metrics.json").read_text())
  assert metrics["figures"]["fd_synthetic_24"]["value"] > 0
  assert metrics["likelihoods"]["vlb"]["num_images"] == 25
  assert (workdir / "eval/4/report.html").is_file()


def test_plan(call, tmp_path):
  flags = [*FLAGS[:1], "--config.model.multipliers=1", f"--json={tmp_path}/plan.json"]
  code, _, err = call(plan.main, *flags)
  assert code == 0, err
  figures = json.loads((tmp_path / "plan.json").read_text())
  assert figures["step"]["executed_flops"] == figures["step"]["model_flops"] > 1e6
  assert {row["kind"] for row in figures["collectives"]} == {"all-reduce"}
