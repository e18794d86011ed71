"""The sampling program: one seed gives one set of images, wherever it runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from diffusion_jax import sample, train
from diffusion_jax.checkpoints import store
from diffusion_jax.core.picture_grid import LINE

pytestmark = pytest.mark.costly

VAE = [
  "--config=configs/vae_digits.py", "--config.training.num_steps=2",
  "--config.training.batch_size=16", "--config.logging.num_samples=4", "--config.model.channels=8",
  "--config.model.multipliers=1", "--config.logging.tensorboard=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture
def run(smoke_run):
  return smoke_run


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """A run of configs/vae_digits.py, trained for a moment."""
  workdir = tmp_path_factory.mktemp("runs") / "vae"
  train.main([*VAE, f"--workdir={workdir}"])
  return workdir


@pytest.fixture
def draw(run, call, tmp_path):
  """Samples to an .npz with these flags: (images, labels)."""

  def draw(*flags, workdir=run):
    code, _, err = call(sample.main, f"--workdir={workdir}", f"--out={tmp_path}/a.npz", *flags)
    assert code == 0, err
    with np.load(tmp_path / "a.npz") as file:
      return file["images"], file["labels"]

  return draw


def test_the_seed_alone_decides(draw):
  images, labels = draw("--num=12", "--seed=3")
  assert images.shape == (12, 8, 8, 1)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(labels, [*range(10), 0, 1])
  again, _ = draw("--num=12", "--seed=3")
  np.testing.assert_array_equal(again, images)
  other, _ = draw("--num=12", "--seed=4")
  assert (other != images).mean() > 0.5


def test_an_image_depends_on_its_number_not_on_its_batch(draw):
  images, _ = draw("--num=12", "--batch_size=64")
  split, _ = draw("--num=12", "--batch_size=8")
  few, _ = draw("--num=5", "--batch_size=8")
  assert np.abs(split.astype(int) - images).max() <= 1
  assert np.abs(few.astype(int) - images[:5]).max() <= 1


def test_one_device_gives_the_images_of_eight(draw, run, tmp_path):
  """A real process on one device against this one's eight."""
  images, labels = draw("--num=20", "--seed=1")
  flags = [f"--workdir={run}", "--num=20", "--seed=1", f"--out={tmp_path}/one.npz"]
  ended = subprocess.run(
    [sys.executable, "-m", "diffusion_jax.sample", *flags], check=True, text=True,
    capture_output=True, env={**os.environ, "XLA_FLAGS": ""},
  )  # fmt: skip
  assert "on 1 device(s)" in ended.stdout
  with np.load(tmp_path / "one.npz") as file:
    np.testing.assert_array_equal(file["labels"], labels)
    difference = np.abs(file["images"].astype(int) - images)
  assert difference.max() <= 1  # a rounding error may tip a pixel to the next level
  assert (difference > 0).mean() < 0.01


def test_labels_repeat_in_turn_and_matter(draw):
  images, labels = draw("--num=6", "--labels=7,2")
  np.testing.assert_array_equal(labels, [7, 2, 7, 2, 7, 2])
  other, _ = draw("--num=6", "--labels=3")
  assert (images != other).any()


def test_sampler_steps_and_guidance_come_from_flags(draw, call, run, tmp_path):
  plain, _ = draw("--num=2")
  changes = [
    ["--config.sampler.steps=9"],
    ["--config.sampler.eta=1.0"],
    ["--config.guidance.weight=5"],
    ["--config.sampler.name=ancestral", "--config.sampler.steps=100"],
  ]
  for change in changes:
    assert (draw("--num=2", *change)[0] != plain).any(), change
  _, out, _ = call(
    sample.main, f"--workdir={run}", "--num=2", f"--out={tmp_path}/b.png",
    "--config.sampler.name=ancestral", "--config.sampler.steps=100", "--config.guidance.weight=3",
  )  # fmt: skip
  assert "ancestral" in out
  assert re.search("clip True,.* guidance 3, seed 0: 2 images in", out)


def test_autoguidance_moves_away_from_an_older_checkpoint(draw, run):
  """Against itself nothing changes, whatever the weight; against a worse model the images do."""
  plain, _ = draw("--num=4", "--config.guidance.weight=1")
  itself, _ = draw("--num=4", f"--guide_workdir={run}", "--config.guidance.weight=3")
  assert np.abs(itself.astype(int) - plain).max() <= 1
  older = [f"--guide_workdir={run}", "--guide_step=30"]
  images = [draw("--num=4", *older, f"--config.guidance.weight={w}")[0] for w in (1.5, 3)]
  distance = [np.abs(i.astype(int) - plain).mean() for i in images]
  assert 0 < distance[0] < distance[1]


def test_the_adaptive_sampler_draws_from_a_run(draw, tmp_path):
  """Its parameters are traced here, as nowhere in its own tests."""
  workdir = tmp_path / "vp"
  train.main([*TINY, "--config.process.name=vp", "--config.guidance.weight=1",
              "--config.logging.tensorboard=false", f"--workdir={workdir}"])  # fmt: skip
  adaptive, _ = draw("--num=3", "--config.sampler.name=probability_flow", workdir=workdir)
  heun = ["--config.sampler.name=heun", "--config.sampler.steps=200"]
  images, _ = draw("--num=3", *heun, workdir=workdir)
  assert np.abs(adaptive.astype(int) - images).mean() < 3  # two solutions of one equation
  flags = ["--config.sampler.name=probability_flow", "--seed=1"]
  other, _ = draw("--num=3", *flags, workdir=workdir)
  assert np.abs(adaptive.astype(int) - other).mean() > 20


def test_an_older_step_can_be_asked_for(draw):
  assert (draw("--num=2", "--step=30")[0] != draw("--num=2", "--step=60")[0]).any()


def test_a_grid_and_a_folder_hold_the_same_pixels(draw, run, call, tmp_path):
  images, _ = draw("--num=10")
  flags = [f"--workdir={run}", "--num=10"]
  assert call(sample.main, *flags, f"--out={tmp_path}/grid.png")[0] == 0
  assert call(sample.main, *flags, f"--out={tmp_path}/folder")[0] == 0
  grid = np.asarray(Image.open(tmp_path / "grid.png"))
  for i, image in enumerate(images[..., 0]):
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"folder/{i:06d}.png")), image)
    np.testing.assert_array_equal(grid[LINE:][2:34:4, 2 + 34 * i : 34 + 34 * i : 4], image)


def test_a_vae_draws_from_its_prior_and_reconstructs(vae, draw, call, tmp_path):
  images, labels = draw("--num=6", workdir=vae)
  assert images.shape == (6, 8, 8, 1)
  np.testing.assert_array_equal(labels, -1)
  flags = [f"--workdir={vae}", "--num=4", f"--out={tmp_path}/r.png", "--reconstruct"]
  assert call(sample.main, *flags)[0] == 0
  assert Image.open(tmp_path / "r.png").size == (2 * 34 + 2, 4 * 34 + 2)


WRONG = {
  "no run": (["--workdir=/no/where"], "--workdir=/no/where: no run there (config.json is missing)"),
  "labels": (["--labels=1,10"], "--labels=1,10: must be numbers from 0 to 9, e.g. 0,1,2"),
  "label words": (["--labels=cat"], "--labels=cat: must be numbers from 0 to 9"),
  "no labels": (["--labels="], "must be numbers from 0 to 9"),
  "num": (["--num=0"], "--num=0: must be at least 1"),
  "seed": (["--seed=-1"], "--seed=-1: must be between"),
  "step": (["--step=13"], "--step=13: no such checkpoint"),
  "step word": (["--step=newest"], "--step=newest: must be latest or a number"),
  "out": (["--out=a.jpg"], "--out=a.jpg: use a name ending in .png or .npz"),
  "out nowhere": (["--out=/proc/none/a.png"], "--out=/proc/none/a.png cannot be written"),
  "another process": (
    ["--config.process.name=cosine_vp"],
    "was trained with other settings (process.beta_end: 0.02 -> None; process.beta_schedule",
  ),
  "another prediction": (
    ["--config.generative.prediction=x0"],
    "(generative.prediction: eps -> x0), which its weights depend on; omit that override"
    ". These may change: eval, ",
  ),
  "another width": (
    ["--config.model.hidden=16"],
    "was trained with other settings (model.hidden: 32 -> 16)",
  ),
  "override": (["--config.sampler.stesp=3"], "no field 'stesp'. Did you mean 'steps'"),
  "steps": (["--config.sampler.steps=1000"], "steps=1000"),
  "guide": (["--guide_workdir=/no/where"], "--guide_workdir=/no/where: no run there"),
  "guide step": (["--guide_step=x"], "--guide_step=x: must be latest or a number"),
  "guided by nothing": (
    ["--config.guidance.against=model"],
    "guidance.against=model needs the run of an inferior model: python -m diffusion_jax.samp",
  ),
  "reconstruct": (["--reconstruct", "--out=x.png"], "cannot reconstruct: it has no encoder"),
  "reconstruct to arrays": (["--reconstruct"], "--reconstruct writes a grid; use a name ending in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags_give_one_line_and_exit_code_2(name, run, call, tmp_path):
  flags, message = WRONG[name]
  code, _, err = call(sample.main, f"--workdir={run}", f"--out={tmp_path}/x.npz", *flags)
  assert code == 2
  assert message in err
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert not (tmp_path / "x.npz").exists()


def test_a_guide_must_fit(call, run, vae, tmp_path):
  flags = [f"--workdir={run}", f"--out={tmp_path}/x.npz", f"--guide_workdir={run}"]
  for change, message in (
    ([f"--workdir={vae}"], "this run is no diffusion model"),
    (["--config.guidance.weight=1"], "guidance.weight=1 is off; set --config.guidance.weight=2"),
    ([f"--guide_workdir={vae}"], "guidance needs two models of one process"),
    (["--reconstruct"], "reconstructions are not guided"),
  ):
    code, _, err = call(sample.main, *flags, *change)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_run_without_a_checkpoint(call, tmp_path, run):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text((run / "config.json").read_text())
  code, _, err = call(sample.main, f"--workdir={tmp_path}/run", f"--out={tmp_path}/x.npz")
  assert code == 2
  assert "holds no checkpoint; train first" in err
  assert err.count("\n") == 1


def test_a_folder_with_something_in_it_is_not_written_into(call, run, tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "note").touch()
  code, _, err = call(sample.main, f"--workdir={run}", f"--out={tmp_path}/mine")
  assert code == 2
  assert "the folder is not empty" in err


def test_another_model_than_the_checkpoints_is_refused(call, run, tmp_path):
  """An edited config.json, or one of another run: what to set again, and no advice to train."""
  config = json.loads((run / "config.json").read_text())
  config["model"]["hidden"] = 16
  copy = shutil.copytree(run, tmp_path / "run")
  (copy / "config.json").write_text(json.dumps(config))
  code, _, err = call(sample.main, f"--workdir={copy}", f"--out={tmp_path}/x.npz")
  assert code == 2
  assert "config.json was edited, or is another run's: model.hidden is 16; set model.hidden=" in err
  assert "--fresh" not in err
  assert err.count("\n") == 1


def test_samples_that_are_not_finite_are_refused_and_nothing_is_written(call, run, tmp_path):
  flags = [f"--workdir={run}", f"--out={tmp_path}/x.npz", "--num=4", "--config.sampler.clip=false"]
  code, _, err = call(sample.main, *flags, "--config.guidance.weight=1e39")
  assert code == 2
  assert "error: 4 of 4 images are not finite (NaN or infinity); use weaker guidance" in err
  assert err.count("\n") == 1
  assert not (tmp_path / "x.npz").exists()


def test_sampling_leaves_the_run_alone(run, draw):
  before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  draw("--num=2")
  assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
  assert store.saved_steps(run / "checkpoints") == [30, 60]


def cut_off(monkeypatch, call, batches, *flags):
  """The program, asked to stop by SIGTERM while it draws the batch after so many."""
  quantise, count = sample.to_uint8, iter(range(100))

  def asked_to_stop(images):
    if next(count) == batches:
      os.kill(os.getpid(), signal.SIGTERM)
    return quantise(images)

  with monkeypatch.context() as patch:
    patch.setattr(sample, "to_uint8", asked_to_stop)
    code, out, _ = call(sample.main, *flags)
  assert code == 75
  assert out.splitlines()[-1] == "SIGTERM: the same command continues"


def test_cut_off_beside_live_training_the_same_command_goes_on(run, call, tmp_path, monkeypatch):
  """From the checkpoint that it began with, while that is there, to the same file, bit for bit."""
  copy = shutil.copytree(run, tmp_path / "run")
  later = (copy / "checkpoints/60").rename(tmp_path / "60")
  own = [f"--workdir={copy}", "--num=20", "--batch_size=8"]
  assert call(sample.main, *own, f"--out={tmp_path}/straight.npz")[0] == 0
  flags = [*own, f"--out={tmp_path}/cut.npz"]
  cut_off(monkeypatch, call, 1, *flags)
  later.rename(copy / "checkpoints/60")
  assert not (tmp_path / "cut.npz").exists()
  code, _, err = call(sample.main, *flags, "--seed=1", "--config.sampler.steps=3")
  assert code == 2
  assert re.search(r"other images there \(sampler.steps: \d+ -> 3; seed: 0 -> 1\); repeat", err)
  assert err.count("\n") == 1
  code, out, err = call(sample.main, *flags)
  assert code == 0, err
  assert "restored the EMA weights of step 30" in out
  assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "straight.npz").read_bytes()
  newer = [*own, f"--out={tmp_path}/newer.npz"]
  (copy / "checkpoints/60").rename(later)
  cut_off(monkeypatch, call, 1, *newer)
  later.rename(copy / "checkpoints/60")
  shutil.rmtree(copy / "checkpoints/30")
  code, out, err = call(sample.main, *newer)
  assert code == 0, err
  assert "made from other weights or images, now gone: starting over" in out
  with np.load(tmp_path / "newer.npz") as new, np.load(tmp_path / "cut.npz") as old:
    assert (new["images"] != old["images"]).any()
