"""Parts of an outside package in the programs: data set, optimizer and metric, one class each."""

import json

import numpy as np
import pytest
import tiny
from plug_ins import Stripes

from diffusion_jax import evaluate, plan, sample, train
from diffusion_jax.inference.restore import stored_spec
from diffusion_jax.types import FieldSpec

OWN = [
  *tiny.TINY, "--config.data.name=plug_ins:Stripes", "--config.training.num_steps=2",
  "--config.optimizer.name=plug_ins:SignDescent", "--config.process.num_timesteps=20",
  "--config.logging.tensorboard=false", "--config.eval.metrics=plug_ins:MeanGap",
  "--config.eval.reference_split=train", "--config.eval.likelihoods=",
  "--config.eval.spectrum_images=0", "--config.eval.num_samples=16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root, tmp_path):
  monkeypatch.chdir(root)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.costly
def test_a_data_set_an_optimizer_and_a_metric_run_through_the_programs(call, tmp_path):
  workdir = tmp_path / "run"
  code, out, err = call(train.main, *OWN, f"--workdir={workdir}")
  assert code == 0, err
  assert "stripes train, 32 images of 8x8x1, 256 levels, 4 classes" in out
  stored = json.loads((workdir / "config.json").read_text())
  assert stored["data"] == {"name": "plug_ins:Stripes", "num_images": 32}
  assert stored["optimizer"]["name"] == "plug_ins:SignDescent"
  code, _, err = call(sample.main, f"--workdir={workdir}", "--num=4", f"--out={tmp_path}/a.npz")
  assert code == 0, err
  assert np.load(tmp_path / "a.npz")["images"].shape == (4, 8, 8, 1)
  own = ["--config.eval.likelihoods=plug_ins:Constant", "--config.Constant.bits=3",
         "--config.eval.likelihood_split=train"]  # fmt: skip
  code, out, err = call(evaluate.main, f"--workdir={workdir}", "--inception=none", *own)
  assert code == 0, err
  found = json.loads((workdir / "eval/2/metrics.json").read_text())
  assert list(found["figures"]) == ["mean_gap_stripes_16"]
  assert list(found["likelihoods"]) == ["constant"]
  assert found["likelihoods"]["constant"]["bits_per_dim"] == 3
  assert found["likelihoods"]["constant"]["options"] == {"bits": 3}
  assert "one number for all images" in (workdir / "eval/2/report.html").read_text()
  code, out, err = call(evaluate.main, f"--workdir={workdir}", "--inception=none", *own)
  assert "evaluated already" in out


@pytest.mark.costly
def test_named_arrays_of_a_file_travel_through_training_and_evaluation(call, tmp_path):
  """In two parts a batch, in held-out passes with padding, and in a stored spec."""
  images, labels = Stripes(num_images=40).load("train").gather(np.arange(40))
  embedding = np.linspace(0, 1, 40 * 3).reshape(40, 3)
  arrays = {"images": images, "labels": labels, "train_embedding": embedding}
  held_out = {"test_images": images[:21], "test_labels": labels[:21],
              "test_embedding": embedding[:21]}  # fmt: skip
  np.savez(tmp_path / "a.npz", **arrays, **held_out)
  own = [flag for flag in OWN if not flag.startswith(("--config.data", "--config.eval"))]
  data = ["--config.data.name=arrays", f"--config.data.path={tmp_path}/a.npz"]
  flags = [*own, *data, "--config.data.fields=embedding", f"--workdir={tmp_path}/run",
           "--config.training.accumulation_steps=2", "--config.eval.batch_size=16"]  # fmt: skip
  code, out, err = call(train.main, *flags)
  assert code == 0, err
  assert "4 classes, embedding float32[3]" in out
  spec = stored_spec(tmp_path / "run/checkpoints", None)
  assert spec.fields == {"embedding": FieldSpec((3,), "float32")}
  held = json.loads((tmp_path / "run/held_out.json").read_text())
  assert held["step"] == 2
  code, _, err = call(
    sample.main, f"--workdir={tmp_path}/run", "--num=2", f"--out={tmp_path}/b.npz"
  )
  assert code == 0, err
  quick = ["--features=none", "--inception=none", "--config.spectrum.num_points=3",
           "--config.eval.spectrum_images=18"]  # fmt: skip
  code, _, err = call(evaluate.main, f"--workdir={tmp_path}/run", *quick)
  assert code == 0, err
  figures = json.loads((tmp_path / "run/eval/2/metrics.json").read_text())
  assert figures["likelihoods"]["vlb"]["num_images"] == 21
  code, _, err = call(train.main, *flags, "--config.data.fields=", "--config.training.num_steps=3")
  assert code == 2
  assert "data.fields" in err
  code, out, err = call(plan.main, *flags[:-3])
  assert code == 0, err


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("data.name=plug_ins:NoLoad", "data.name=plug_ins:NoLoad: load is missing (Return the split"),
    ("data.name=plug_ins:Pair", "Pair.load('train') gave tuple without name (Name for messages"),
    ("data.name=no_package:Set", "data.name=no_package:Set: no such module"),
    ("optimizer.name=plug_ins:NoRule", "NoRule: create is missing (Return the optax update rule"),
    ("eval.metrics=plug_ins:Bare", "Bare: name is missing"),
    ("eval.likelihoods=plug_ins:NoLoad", "NoLoad: figure_name is missing (Name of its value in"),
    ("model.end_time=true", "the network MLP needs a second time (condition.end_time), and"),
  ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_what_is_missing_is_said_before_a_folder_is_made(flag, line, dry, call, tmp_path):
  workdir = tmp_path / "run"
  code, _, err = call(train.main, *OWN, f"--config.{flag}", f"--workdir={workdir}", *dry)
  assert code == 2, err
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert line in err
  assert not workdir.exists()


def test_a_plan_of_data_that_must_be_read_asks_for_their_shape(call):
  code, _, err = call(plan.main, *OWN)
  assert code == 2
  assert "config.data (plug_ins:Stripes) are not known without reading them; give its shape" in err
