"""The evaluation program: what it writes, what it refuses, and that nothing is measured twice."""

import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest
import tiny
from PIL import Image

from diffusion_jax import evaluate, features, stats, train
from diffusion_jax.checkpoints import store
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.data import Synthetic
from diffusion_jax.evaluation import checkpoint_steps, external_images, foreign_statistics
from diffusion_jax.extractors import Extractor, train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path
from diffusion_jax.extractors.inception_extractor import NETWORK
from diffusion_jax.runs.workdir import lock

pytestmark = pytest.mark.costly

QUICK = [
  "--inception=none", "--config.eval.num_samples=40", "--config.eval.batch_size=16",
  "--config.eval.spectrum_images=16", "--config.spectrum.num_points=4",
]  # fmt: skip
FIGURES_ALONE = ["--config.eval.likelihoods=", "--config.eval.spectrum_images=0"]
MODEL = [
  *tiny.MODEL, "--config.process.num_timesteps=20",
  "--config.data.num_images=100", "--config.logging.tensorboard=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  """A user's cache that holds the features of the synthetic data, trained for a moment."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    data = Synthetic(num_images=100, image_size=8, channels=1)
    source = data.load("train")
    recipe = Recipe(num_steps=3, batch_size=16)
    train_domain(source, data.load("test"), default_features_path(source), recipe)
    yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of configs/smoke.py with checkpoints at steps 2 and 4."""
  workdir = tmp_path_factory.mktemp("runs") / "smoke"
  length = ["--config.training.num_steps=4", "--config.checkpoint.every_steps=2"]
  train.main(["--config=configs/smoke.py", f"--workdir={workdir}", *MODEL, *length])
  return workdir


@pytest.fixture
def run(trained, tmp_path):
  """A copy of that run for one test."""
  return shutil.copytree(trained, tmp_path / "smoke")


@pytest.fixture
def measure(call):
  """Evaluates a run with these flags: (metrics.json of step 4, output)."""

  def measure(workdir, *flags):
    code, out, err = call(evaluate.main, f"--workdir={workdir}", *QUICK, *flags)
    assert code == 0, err
    return json.loads((workdir / "eval/4/metrics.json").read_text()), out

  return measure


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
  """A run that was evaluated once, with two seeds and a sweep: (workdir, metrics)."""
  workdir = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "smoke")
  flags = ["--config.eval.num_seeds=2", "--config.eval.likelihood_repeats=2",
           "--sweep=sampler.steps=1,3", "--sweep=guidance.weight=1,2"]  # fmt: skip
  evaluate.main([f"--workdir={workdir}", *QUICK, *flags])
  return workdir, json.loads((workdir / "eval/4/metrics.json").read_text())


def test_the_figures_carry_what_repeats_them(evaluated):
  workdir, metrics = evaluated
  figure = metrics["figures"]["fd_synthetic_40"]
  assert figure["num_samples"] == 40
  assert figure["num_reference"] == 100
  assert len(figure["values"]) == 2
  assert figure["standard_deviation"] > 0
  assert metrics["schema"] == 1
  assert metrics["model"]["step"] == 4
  assert metrics["model"]["images_seen"] == 4 * 16
  assert metrics["samples"]["seeds"] == [0, 1]
  assert metrics["samples"]["sampler"] == {
    "name": "ddim", "steps": 4, "eta": 0.0, "spacing": "auto", "clip": True, "final": "data",
    "rho": 7.0,
  }  # fmt: skip
  assert "trailing for ancestral and ddim" in metrics["samples"]["auto_spacing"]
  assert metrics["samples"]["num_evaluations"] == 8
  stamp = metrics["references"]["synthetic"]
  assert stamp["extractor_sha256"] == metrics["extractors"]["synthetic"]["sha256"]
  assert (stamp["split"], stamp["num"], stamp["augmentation"]) == ("train", 100, "none")
  assert f"--workdir={workdir}" in metrics["repeat"]
  assert "--step=4" in metrics["repeat"]
  assert metrics["run"]["devices"]


def test_fewer_samples_than_classes_show_the_classes_that_were_drawn(run, measure):
  flags = ["--config.eval.num_samples=3", "--features=none", "--config.eval.likelihoods="]
  measure(run, *flags, "--config.eval.spectrum_images=0")
  assert (run / "eval/4/samples.png").is_file()
  page = (run / "eval/4/report.html").read_text()
  assert page.count(">real</p>") == page.count(">samples</p>") == 3


def test_the_samples_are_there_and_are_those_of_the_sampling_program(evaluated, call, tmp_path):
  from diffusion_jax import sample

  workdir, metrics = evaluated
  folder = workdir / "eval/4" / metrics["samples"]["folder"]
  images = np.concatenate([np.load(p)["images"] for p in sorted(folder.glob("*.npz"))])
  labels = np.concatenate([np.load(p)["labels"] for p in sorted(folder.glob("*.npz"))])
  flags = [f"--workdir={workdir}", "--num=40", f"--out={tmp_path}/a.npz"]
  assert call(sample.main, *flags)[0] == 0
  with np.load(tmp_path / "a.npz") as drawn:
    np.testing.assert_array_equal(labels[:40], drawn["labels"])
    assert np.abs(images[:40].astype(int) - drawn["images"]).max() <= 1
  assert not (workdir / "eval/4/work").exists()


def test_likelihood_and_spectrum(evaluated):
  _, metrics = evaluated
  vlb = metrics["likelihoods"]["vlb"]
  assert vlb["num_images"] == 25  # every held-out image
  assert vlb["repeats"] == 2
  parts = sum(term["mean"] for term in vlb["terms"].values())
  assert vlb["bits_per_dim"] == pytest.approx(parts, rel=1e-5)
  assert sum(vlb["curves"]["curve"]["bits_per_dim"]) == pytest.approx(
    parts - vlb["terms"]["prior"]["mean"], rel=1e-5
  )
  assert 0 <= vlb["standard_error_images"] <= vlb["standard_error"]
  assert vlb["standard_error_monte_carlo"] > 0
  spectrum = metrics["spectrum"]
  assert spectrum["log_snr"] == sorted(spectrum["log_snr"])
  assert spectrum["train"]["num_images"] == spectrum["test"]["num_images"] == 16
  assert len(spectrum["train"]["eps_mse"]) == len(spectrum["log_snr"])


def test_a_sweep_is_a_grid(evaluated):
  _, metrics = evaluated
  rows = {(r["overrides"]["sampler.steps"], r["overrides"]["guidance.weight"]): r
          for r in metrics["sweep"]}  # fmt: skip
  assert {k: row["num_evaluations"] for k, row in rows.items()} == {
    ("1", "1"): 1, ("1", "2"): 2, ("3", "1"): 3, ("3", "2"): 6
  }  # fmt: skip
  assert len({row["figures"]["fd_synthetic_40"]["value"] for row in rows.values()}) == 4


def test_the_report_and_its_pictures(evaluated):
  workdir, metrics = evaluated
  folder = workdir / "eval/4"
  html = (folder / "report.html").read_text()
  for text in ("fd_synthetic_40", "vlb", metrics["extractors"]["synthetic"]["sha256"][:8]):
    assert text in html
  for name in ("samples", "classes", "progression", "nearest"):
    assert np.asarray(Image.open(folder / f"{name}.png")).std() > 0


def content(workdir):
  return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}


def test_the_same_again_does_nothing_and_other_settings_replace_nothing(run, call, measure):
  """Refused with what differs before anything is drawn; --out and --fresh measure it."""
  first, _ = measure(run)
  again, out = measure(run)
  assert "step 4: evaluated already" in out
  assert again == first
  before = content(run)
  err = refused(call, evaluate.main, f"--workdir={run}", *QUICK, "--seed=7", "--step=all")
  assert f"{run}/eval/4 holds an evaluation with other settings (seed: 0 -> 7); give --out=" in err
  assert content(run) == before
  flags = [f"--workdir={run}", *QUICK, "--seed=7"]
  assert call(evaluate.main, *flags, f"--out={run.parent}/other")[0] == 0
  other = json.loads((run.parent / "other/4/metrics.json").read_text())
  assert other["figures"]["fd_synthetic_40"] != first["figures"]["fd_synthetic_40"]
  assert content(run) == before
  moved, out = measure(run, "--seed=7", "--fresh")
  assert f"moved the evaluation with other settings to {run}/eval/4.old1" in out
  assert moved["figures"] == other["figures"]
  assert json.loads((run / "eval/4.old1/metrics.json").read_text()) == first
  assert "evaluated already" in measure(run, "--seed=7", "--fresh")[1]


def test_a_run_that_cannot_be_written_is_measured_elsewhere(run, call, tmp_path):
  """A file in the place of its eval/ refuses even root, to whom no permission matters."""
  (run / "eval").write_text("")
  before = content(run)
  flags = [f"--workdir={run}", *QUICK, "--config.eval.likelihoods=none"]
  err = refused(call, evaluate.main, *flags)
  assert f"{run}/eval cannot be written (File exists); give --out=FOLDER for the evaluation" in err
  assert call(evaluate.main, *flags, f"--out={tmp_path}/out")[0] == 0
  metrics = json.loads((tmp_path / "out/4/metrics.json").read_text())
  assert "likelihoods" not in metrics  # none is none, not all
  assert content(run) == before
  err = refused(call, evaluate.main, *flags, f"--out={run}/eval/x")
  assert "cannot be written (Not a directory); choose another" in err


def test_data_without_a_test_split_are_refused_before_anything_is_drawn(run, call, monkeypatch):
  monkeypatch.setattr(Synthetic, "has_split", lambda self, split: split == "train")
  own = [f"--workdir={run}", *QUICK]
  with monkeypatch.context() as patch:
    patch.setattr(evaluate.contexts, "equip", None)
    err = refused(call, evaluate.main, *own)
    assert "the data set has no test split; measure the training split with" in err
    flags = ["--config.eval.likelihoods=none", "--config.eval.reference_split=test"]
    assert "no test split" in refused(call, evaluate.main, *own, *flags)
  assert not list((run / "eval").glob("[0-9]*"))
  code, _, err = call(evaluate.main, *own, "--config.eval.likelihoods=none")
  assert code == 0, err
  assert "likelihoods" not in json.loads((run / "eval/4/metrics.json").read_text())


def test_what_was_drawn_is_not_drawn_again(run, measure, monkeypatch):
  """More seeds and another figure reuse the samples on disk; so does a lost metrics.json."""
  first, _ = measure(run)
  (run / "eval/4/metrics.json").unlink()
  again, out = measure(run)
  assert "40 of 40 samples, 40 drawn before" in out
  assert {k: v for k, v in again.items() if k != "run"} == {
    k: v for k, v in first.items() if k != "run"
  }


def test_all_steps_and_a_comparison(run, measure, call, monkeypatch):
  _, out = measure(run, "--step=all")
  assert [p.name for p in sorted((run / "eval").glob("[0-9]*"))] == ["2", "4"]
  with monkeypatch.context() as patch:  # nothing is measured again for it
    patch.setattr(evaluate.measure, "evaluate_checkpoint", None)
    code, out, err = call(evaluate.main, f"--workdir={run}", *QUICK, f"--compare={run}")
  assert code == 0, err
  assert "Comparison" in (run / "eval/4/report.html").read_text()
  assert "its report is written again" in out


def lose_data(run, step):
  for file in (run / "checkpoints" / str(step) / "state").glob("**/d/*"):
    file.unlink()


def lose_meta(run, step):
  (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")


@pytest.mark.parametrize(("flag", "damage"), [("--step=all", lose_data), ("--watch", lose_meta)])
def test_a_damaged_step_of_several_is_named_and_the_others_are_measured(flag, damage, run, call):
  damage(run, 2)
  flags = [f"--workdir={run}", *QUICK, "--features=none", flag]
  code, out, err = call(evaluate.main, *flags)
  assert (code, err) == (0, "")
  assert out.count("step 2: this checkpoint is damaged (") == 2  # at once, and at the end
  assert out.splitlines()[-1].startswith("measured 1 of 2; step 2: this checkpoint is damaged (")
  assert [p.name for p in sorted((run / "eval").glob("[0-9]*"))] == ["4"]
  damage(run, 4)
  code, _, err = call(evaluate.main, *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert ("checkpoint 4 cannot be read" if damage is lose_meta else "could be measured") in err


def test_watching_takes_each_checkpoint_as_it_comes(run, measure, monkeypatch):
  monkeypatch.setattr(checkpoint_steps, "POLL_SEC", 0.05)
  later = run / "checkpoints" / "4"
  hidden = later.rename(run / "later")
  timer = threading.Timer(1.0, lambda: hidden.rename(later))
  timer.start()
  _, out = measure(run, "--watch")
  timer.join()
  place = [out.index(f"restored the EMA weights of step {step}") for step in (2, 4)]
  assert place == sorted(place)
  assert {p.name for p in (run / "eval").glob("[0-9]*")} == {"2", "4"}


@pytest.mark.parametrize("when", ["before it is read", "while it is measured"])
def test_a_checkpoint_that_the_run_deletes_ends_no_watch(run, measure, monkeypatch, when):
  """Training goes on and keeps its newest checkpoints only."""
  name = "restore_average" if when == "before it is read" else "evaluate_checkpoint"
  module = evaluate.drawing if name == "restore_average" else evaluate.measure
  original = getattr(module, name)

  def late(bench, what, *more):
    step = what if name == "restore_average" else what.step
    if step == 2:
      shutil.rmtree(run / "checkpoints/2")
    return original(bench, what, *more)

  monkeypatch.setattr(module, name, late)
  metrics, out = measure(run, "--watch")
  skipped = "step 2: the run has deleted this checkpoint; skipped" in out
  assert skipped == (when == "before it is read")
  assert (run / "eval/2/metrics.json").exists() != skipped
  assert metrics["model"]["step"] == 4


def test_a_signal_while_a_checkpoint_is_read_stops_and_blames_no_checkpoint(run, call, monkeypatch):
  """The reader takes any exception for damage: none may come out of the signal's handler."""
  read = store.restore_checkpoint

  def asked_to_stop(*args, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return read(*args, **options)

  monkeypatch.setattr(store, "restore_checkpoint", asked_to_stop)
  code, out, _ = call(evaluate.main, f"--workdir={run}", *QUICK)
  assert code == 75
  assert out.splitlines()[-1] == "SIGTERM: the same command continues"
  assert "damaged" not in out
  assert not list(run.glob("eval/[0-9]*/metrics.json"))


def test_images_of_any_program_have_the_figures_of_the_run(evaluated, call, tmp_path):
  """The run's own samples as PNG files, against its data set, a folder of it, and statistics."""
  workdir, metrics = evaluated
  folder = workdir / "eval/4" / metrics["samples"]["folder"]
  images = np.concatenate([np.load(p)["images"] for p in sorted(folder.glob("*.npz"))])[:40]
  (tmp_path / "png").mkdir()
  for i, image in enumerate(images):
    Image.fromarray(image[..., 0]).save(tmp_path / "png" / f"{i:03d}.png")
  expected = metrics["figures"]["fd_synthetic_40"]["values"][0]
  data = ["--config=configs/smoke.py", *[f for f in MODEL if ".data." in f]]
  found = default_features_path(Synthetic(num_images=100, image_size=8, channels=1).load("train"))
  assert call(stats.main, *data, f"--features={found}", f"--out={tmp_path}/s.npz")[0] == 0
  own = [f"--samples={tmp_path}/png", "--inception=none", f"--out={tmp_path}/m.json"]
  for flags in (data, [f"--features={found}", f"--reference={tmp_path}/s.npz"]):
    code, out, err = call(evaluate.main, *own, *flags)
    assert code == 0, err
    value = json.loads((tmp_path / "m.json").read_text())["figures"]["fd_synthetic_40"]["value"]
    assert value == pytest.approx(expected, rel=1e-5)
    assert "fd_synthetic_40" in out
  (tmp_path / "rgb").mkdir()  # the same pictures, stored in colour
  for file in (tmp_path / "png").iterdir():
    Image.open(file).convert("RGB").save(tmp_path / "rgb" / file.name)
  code, _, err = call(evaluate.main, f"--samples={tmp_path}/rgb", *own[1:], *data)
  assert code == 0, err
  figures = json.loads((tmp_path / "m.json").read_text())["figures"]
  assert figures["fd_synthetic_40"]["value"] == pytest.approx(expected, rel=1e-5)
  np.savez(tmp_path / "b.npz", images=images)
  same = [f"--features={found}", f"--reference={tmp_path}/b.npz"]
  assert call(evaluate.main, *own, *same)[0] == 0
  figures = json.loads((tmp_path / "m.json").read_text())["figures"]
  assert abs(figures["fd_synthetic_given40"]["value"]) < 1e-9
  np.savez(tmp_path / "adm.npz", arr_0=images, mu=np.zeros(4), sigma=np.eye(4))
  err = refused(call, evaluate.main, *own, f"--features={found}", f"--reference={tmp_path}/adm.npz")
  assert "adm.npz has the arrays arr_0, mu, sigma; statistics of features must be mu and" in err


def test_a_metric_from_outside_is_measured_and_reported(run, measure):
  """And an outcome that has it is not replaced by one that lacks it."""
  metrics, out = measure(run, "--config.eval.metrics=fid,plug_ins:MeanGap", *FIGURES_ALONE)
  assert list(metrics["figures"]) == ["fd_synthetic_40", "mean_gap_synthetic_40"]
  assert (
    metrics["figures"]["mean_gap_synthetic_40"]["description"]
    in (run / "eval/4/report.html").read_text()
  )
  assert "mean_gap_synthetic_40" in out
  again, _ = measure(run, "--config.eval.metrics=fid,plug_ins:MeanGap", *FIGURES_ALONE)
  assert again == metrics


def test_a_vae_has_its_bounds_and_its_pictures(tmp_path, call):
  workdir = tmp_path / "vae"
  flags = [
    "--config.training.num_steps=2", "--config.training.batch_size=16",
    "--config.model.channels=8", "--config.model.multipliers=1", "--config.data.name=synthetic",
    "--config.data.num_images=100", "--config.data.image_size=8", "--config.data.channels=1",
    "--config.logging.num_samples=4", "--config.logging.tensorboard=false",
    "--config.iwae.num_draws=7", "--config.iwae.chunk=3",
  ]  # fmt: skip
  train.main(["--config=configs/vae_digits.py", f"--workdir={workdir}", *flags])
  quick = [f for f in QUICK if "spectrum.num" not in f]
  code, _, err = call(evaluate.main, f"--workdir={workdir}", *quick)
  assert code == 0, err
  metrics = json.loads((workdir / "eval/2/metrics.json").read_text())
  elbo, iwae = (metrics["likelihoods"][n]["bits_per_dim"] for n in ("elbo", "iwae_7"))
  assert iwae < elbo
  assert metrics["likelihoods"]["elbo"]["options"] == {}
  assert metrics["likelihoods"]["iwae_7"]["options"] == {"num_draws": 7, "chunk": 3}
  assert metrics["likelihoods"]["iwae_7"]["description"] == "importance-weighted bound"
  assert metrics["model"]["kind_description"] == "variational autoencoder"
  assert "spectrum" not in metrics
  assert (workdir / "eval/2/reconstructions.png").exists()
  assert not (workdir / "eval/2/progression.png").exists()


def refused(call, main, *flags):
  """The one line with which a program refuses these flags."""
  code, _, err = call(main, *flags)
  assert code == 2, err
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  return err


WRONG = {
  "no step": (["--step=3"], "--step=3: no such checkpoint"),
  "step word": (["--step=newest"], "--step=newest: must be latest, all or a number"),
  "watched step": (["--step=4", "--watch"], "--watch takes every checkpoint"),
  "seed": (["--seed=-1"], "--seed=-1: must be between 0"),
  "nothing to sweep with": (
    ["--sweep=sampler.steps=2,3", "--features=none", "--inception=none"],
    "--sweep=sampler.steps=2,3: no feature network for the samples (--features=none and "
    "--inception=none); give --features=FILE",
  ),
  "sweep": (["--sweep=steps"], "--sweep=steps: write section.field=value,value"),
  "sweep field": (["--sweep=sampler.stesp=3"], "no field 'stesp'. Did you mean 'steps'"),
  "sweep value": (["--sweep=sampler.steps=3,1000"], "sampler: steps=1000 must be between"),
  "swept weights": (
    ["--sweep=model.hidden=16"],
    "a sweep varies the sampling: sampler",
  ),
  "swept seed": (["--sweep=training.seed=1,2"], "sampler or guidance, e.g. --sweep=sampler.steps"),
  "swept twice": (
    ["--sweep=sampler.steps=1", "--sweep=sampler.steps=3"],
    "sampler.steps is swept twice; write each",
  ),
  "swept value twice": (
    ["--sweep=sampler.steps=3,1,3"],
    "a value is repeated; write each field",
  ),
  "another process": (
    ["--config.process.name=cosine_vp"],
    "was trained with other settings (process.beta_end: 0.999 -> None; process.beta_schedule",
  ),
  "another prediction": (
    ["--config.generative.prediction=x0"],
    "(generative.prediction: eps -> x0), which its weights depend on; omit that override",
  ),
  "compare": (["--compare=/no/where"], "--compare=/no/where: no metrics.json there"),
  "samples": (["--config.eval.num_samples=1"], "num_samples=1 must be at least 2"),
  "likelihood": (["--config.eval.likelihoods=elbo"], "likelihoods=elbo: this model has vlb"),
  "metric": (
    ["--config.eval.metrics=kod"],
    "config.eval.metrics is 'kod'. Did you mean 'kid'? Allowed: coverage",
  ),
  "metric gone": (
    ["--config.eval.metrics=fid,no_package.metrics:Mine"],
    "config.eval.metrics=no_package.metrics:Mine: no such module; install the package",
  ),
  "metric alone": (["--config.eval.metrics=plug_ins:Bare"], "Bare: name is missing (Name of the"),
  "average": (["--ema=decay:0.5"], "--ema=decay:0.5: this run did not track that average"),
  "swept guide": (
    ["--sweep=guidance.against=null_class,model"],
    "guidance.against=model needs the run of an inferior model",
  ),
  "out": (["--out=/proc/none/x"], "--out=/proc/none/x cannot be written"),
  "out file": (["--out=x.json"], "--out=x.json: is a folder with --workdir, e.g. --out=metrics"),
  "features": (["--features=/no/file.npz"], "--features=/no/file.npz: no such file"),
  "inception": (["--inception=/no/file.pth"], "/no/file.pth"),
  "both": (["--samples=x"], "give --workdir=RUN to measure a run, or --samples"),
  "reference": (
    ["--reference=/no/x.npz"],
    "--reference=/no/x.npz: no such file; give an .npz",
  ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags_give_one_line_and_exit_code_2(name, trained, call, monkeypatch):
  """All of it before features are trained, references computed or samples drawn."""
  monkeypatch.setattr(evaluate.contexts, "equip", None)
  flags, message = WRONG[name]
  before = set(trained.rglob("*"))
  own = [f for f in QUICK if f.partition("=")[0] not in [flag.partition("=")[0] for flag in flags]]
  assert message in refused(call, evaluate.main, f"--workdir={trained}", *own, *flags)
  assert {p for p in set(trained.rglob("*")) - before if p.is_file()} <= {trained / "eval/.lock"}


@pytest.mark.parametrize("kind", ["truncated", "other"])
def test_wrong_inception_weights_are_refused_before_any_sample(kind, run, call, tmp_path):
  from diffusion_jax.models.inception import weights as inception_weights

  size = inception_weights.SIZE if kind == "other" else 1000
  (tmp_path / "w.pth").write_bytes(b"\0" * size)
  flags = [f for f in QUICK if not f.startswith("--inception")]
  err = refused(call, evaluate.main, f"--workdir={run}", *flags, f"--inception={tmp_path}/w.pth")
  expected = inception_weights.SHA256 if kind == "other" else "1,000 bytes"
  assert expected in err
  assert not list(run.glob("eval/[0-9]*"))


def test_missing_inception_weights_are_said_and_the_rest_is_measured(run, call):
  flags = [f for f in QUICK if not f.startswith("--inception")]
  code, out, _ = call(evaluate.main, f"--workdir={run}", *flags)
  assert code == 0
  (line,) = [line for line in out.splitlines() if "Not measured: " in line]
  assert "Inception features, fd_dinov2, fd_clip" in line
  page = run / "eval/4/report.html"
  assert line.endswith(f"; why, and what to do: {page}")
  assert "python -m diffusion_jax.prepare inception" in page.read_text()
  metrics = json.loads((run / "eval/4/metrics.json").read_text())
  assert [line.split()[0] for line in metrics["missing"]] == [
    "Inception",
    "fd_dinov2:",
    "fd_clip:",
    "fd_infinity_synthetic_40",
  ]
  assert "fd_synthetic_40" in metrics["figures"]


def test_statistics_of_others_give_further_figures(run, measure, monkeypatch, tmp_path):
  """ADM's file of the run's own training images: the same distance under its own name."""
  images = Synthetic(num_images=100, image_size=8, channels=1).load("train")
  pictures = as_pictures(images.gather(np.arange(len(images)))[0], images.spec.num_levels)
  monkeypatch.setattr(foreign_statistics, "WIDTHS", {"mu": 4, "mu_s": 3})

  def apply(params, images):
    flat = images.reshape(len(images), -1) / 255.0
    return flat[:, 20:24], flat[:, :2], flat[:, 30:33]

  stamp = {"network": NETWORK, "sha256": "0", "resize": "none"}
  inception = Extractor("inception", stamp, np.float32(0), apply)
  monkeypatch.setattr(evaluate.contexts, "optional_inception", lambda *_: ([inception], []))
  pool, _, spatial = (np.float64(part) for part in apply(None, pictures))
  arrays = {"mu": pool.mean(0), "sigma": np.cov(pool.T)}
  arrays |= {"mu_s": spatial.mean(0), "sigma_s": np.cov(spatial.T)}
  np.savez(tmp_path / "adm.npz", arr_0=pictures[:20], **arrays)
  flags = ["--features=none", *FIGURES_ALONE, f"--reference={tmp_path}/adm.npz"]
  metrics, _ = measure(run, *flags)
  figures = metrics["figures"]
  for name in ("fid", "sfid"):
    own, theirs = figures[f"{name}_40"]["value"], figures[f"{name}_adm_40"]["value"]
    assert theirs == pytest.approx(own, rel=1e-5)
    assert f"{name}_adm_40" not in metrics["anchors"]
  assert figures["precision_adm_40"]["num_reference"] == 20
  assert "fid_40" in metrics["anchors"]
  assert list(metrics["references"]) == ["inception", "inception_adm"]
  assert "Reference inception_adm" in (run / "eval/4/report.html").read_text()
  assert "evaluated already" in measure(run, *flags)[1]


def test_data_that_have_changed_are_refused(run, call):
  flags = [*QUICK, "--config.data.num_images=90"]
  assert "was trained on synthetic" in refused(call, evaluate.main, f"--workdir={run}", *flags)


def test_a_second_evaluator_is_refused(run, call):
  (run / "eval").mkdir(exist_ok=True)
  with lock(run / "eval", "evaluating"):
    err = refused(call, evaluate.main, f"--workdir={run}", *QUICK)
  assert "is already evaluating there" in err


@pytest.fixture
def folder(tmp_path):
  """Eight grey images of 8x8, and flags that measure them."""
  (tmp_path / "images").mkdir()
  rng = np.random.default_rng(0)
  for i in range(8):
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"images/{i}.png")
  return tmp_path / "images"


def test_samples_that_cannot_be_measured(folder, call, tmp_path, monkeypatch):
  features_file = default_features_path(
    Synthetic(num_images=100, image_size=8, channels=1).load("train")
  )
  own = [f"--features={features_file}", "--inception=none", f"--reference={folder}"]

  def message(path, *flags):
    return refused(call, evaluate.main, f"--samples={path}", *(flags or own))

  (tmp_path / "empty").mkdir()
  assert "no pictures there" in message(tmp_path / "empty")
  assert "no such folder or .npz" in message(tmp_path / "none")
  (tmp_path / "one").mkdir()
  shutil.copy(folder / "0.png", tmp_path / "one")
  assert "holds 1 image; a sample metric needs at least 2" in message(tmp_path / "one")
  Image.new("L", (9, 8)).save(folder / "wide.png")
  assert "images of mixed sizes (0.png is 8x8, wide.png is 9x8)" in message(folder)
  (folder / "wide.png").write_text("no picture")
  assert "1 of 9 pictures cannot be read: wide.png (" in message(folder)
  (folder / "wide.png").unlink()
  np.savez(tmp_path / "float.npz", images=np.zeros((4, 8, 8, 1)))
  assert "it must be uint8" in message(tmp_path / "float.npz")
  np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
  assert "it needs an array images" in message(tmp_path / "other.npz")
  assert "--samples needs exactly one of --reference" in message(folder, "--inception=none")
  assert "nothing to measure with" in message(folder, "--inception=none", f"--reference={folder}")
  big = tmp_path / "big.npz"
  np.savez(big, images=np.zeros((4, 16, 16, 1), np.uint8))
  assert "take (8, 8, 1)" in message(big)
  monkeypatch.setattr(external_images, "measure_images", None)  # all of it is said before
  assert "must end in .json" in message(folder, *own, "--out=x.txt")
  (tmp_path / "mine.json").write_text('{"name": 1}')
  flags = [*own, f"--out={tmp_path}/mine.json"]
  assert "exists and is no metrics.json" in message(folder, *flags)
  assert "cannot be written" in message(folder, *own, "--out=/proc/none/m.json")
  flags = [*own[:2], f"--reference={big}"]
  assert "take (8, 8, 1)" in message(folder, *flags)


def test_statistics_of_another_extractor_are_refused_with_both_stamps(folder, call, tmp_path):
  data = ["--config=configs/smoke.py", *[f for f in MODEL if ".data." in f]]
  other, ours = tmp_path / "other.npz", tmp_path / "ours.npz"
  for path, seed in ((other, 1), (ours, 2)):
    flags = [*data, f"--out={path}", f"--seed={seed}", "--num_steps=1", "--batch_size=8"]
    assert call(features.main, *flags)[0] == 0
  assert call(stats.main, *data, f"--features={other}", f"--out={tmp_path}/s.npz")[0] == 0
  flags = [f"--samples={folder}", "--inception=none", f"--reference={tmp_path}/s.npz"]
  err = refused(call, evaluate.main, *flags, f"--features={ours}")
  assert "the reference differs in extractor_sha256" in err
  for path in (other, ours):
    with np.load(path) as file:
      assert str(file["sha256"]) in err
  data_bytes = (tmp_path / "s.npz").read_bytes()
  (tmp_path / "s.npz").write_bytes(data_bytes[:500])
  assert "s.npz is damaged or cut short" in refused(
    call, evaluate.main, *flags, f"--features={ours}"
  )


def test_statistics_need_one_source_of_images(call, tmp_path):
  out = f"--out={tmp_path}/s.npz"
  assert "one of the two" in refused(call, stats.main, out)
  assert "must end in .npz" in refused(call, stats.main, "--images=x", "--out=s.txt")
  assert "no such folder" in refused(call, stats.main, "--images=/no/where", out)
  nowhere = "--out=/proc/none/s.npz"
  assert f"{nowhere} cannot be written" in refused(call, stats.main, "--images=/no/where", nowhere)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(run, measure):
  for file in (run / "checkpoints/4/state").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:10])
  evaluate_flags = [f"--workdir={run}", *QUICK]
  evaluate.main(evaluate_flags)
  assert store.saved_steps(run / "checkpoints") == [2, 4]
  assert (run / "eval/2/metrics.json").exists()
