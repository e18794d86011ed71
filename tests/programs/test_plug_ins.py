"""Parts of an outside package in the programs: data set, optimizer and metric, one class each."""

import json

import numpy as np
import pytest
import tiny
from plug_ins import Stripes

from diffusion_jax import evaluate, plan, sample, train
from diffusion_jax.inference.restore import stored_spec
from diffusion_jax.runs import own_parts
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
    (
      "eval.likelihoods=plug_ins:NoLoad",
      "NoLoad: derive it from LikelihoodBase (diffusion_jax.like",
    ),
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


SHAPE = "needed float32[3,8,8,1]"
BROKEN = {
  "loss": {
    "ErrorTakesOne": "ErrorTakesOne: error must take (self, model: ",
    "ErrorIsAField": "ErrorIsAField: error must be a method, not a field",
    "OnlyStubs": "OnlyStubs: derive it from LossBase (diffusion_jax.losses.base), and define ",
    "ScalarLoss": "ScalarLoss.error returned float32[]; needed float32[3], one value per example",
    "LossOfPixels": "LossOfPixels.error returned float32[3,8,8,1]; needed float32[3]",
    "IntegerLoss": "IntegerLoss.error returned int32[3]; needed float32[3]",
    "BareLoss": "loss returned float32[3]; needed LossOutput(values)",
    "LossRaises": "AttributeError: 'Noised' object has no attribute 'nothing' (broken_parts.py, ",
    "AssertsItsField": "AssertsItsField): AssertionError: scale is not negative (broken_parts.py",
    "UnknownAnnotation": "UnknownAnnotation: the type of a field cannot be read: name 'Nowhere'",
  },
  "sampler": {
    "NoSamples": "sampler returned float32[3,8,8,1]; needed Samples(images, num_evaluations)",
    "OneSample": f"sampler returned float32[1,8,8,1]; {SHAPE}",
    "KeepsNothing": "KeepsNothing: sample must take (self, denoise: ",
    "SamplerStubs": "SamplerStubs: derive it from SamplerBase (diffusion_jax.samplers.base), and ",
  },
  "model": {
    "CroppingNetwork": f"network returned float32[3,1,8,1]; {SHAPE}",
    "NetworkTakesTwo": "NetworkTakesTwo.apply() takes 3 positional arguments but 6 were",
    "NetworkOfOtherNames": "NetworkOfOtherNames): KeyError: 'weight' (broken_parts.py, line ",
    "HalfParameters": "init returned the parameter w as bfloat16[3]; needed float32",
    "NoParameters": "init returned no parameters",
    "NoNetwork": "NoNetwork.create returned None; needed Network(init, apply)",
    "NetworkRaises": "NetworkRaises): KeyError: 'width' (broken_parts.py, line ",
  },
  "process": {
    "OneCoefficient": "alpha_sigma returned float64[5]; needed (alpha, sigma)",
    "NegativeNoise": "sigma must be positive",
    "FixedNumber": "network_time returned float32[3] for 5 times",
  },
  "optimizer": {
    "UpdatesNothing": "UpdatesNothing.create returned None; needed an optax.GradientTransformation",
    "OptimizerRaises": "OptimizerRaises): RuntimeError: boom (broken_parts.py, line ",
    "NoRates": "NoRates: create must take (self, num_steps: int, rates: ",
  },
  "data": {
    "DataAreGone": "DataAreGone): FileNotFoundError: no such folder: /data/x (broken_parts.py, ",
    "LengthRaises": "LengthRaises): KeyError: 'length' (broken_parts.py, line ",
  },
}
CASES = [(s, name, line) for s, parts in BROKEN.items() for name, line in parts.items()]


@pytest.mark.parametrize(("section", "name", "line"), CASES, ids=[name for _, name, _ in CASES])
def test_a_part_that_cannot_be_used_is_one_line_before_a_folder_is_made(
  section, name, line, call, tmp_path
):
  """Names alone are no contract: what a part's code raises or returns is found by a trace."""
  small = [f for f in tiny.TINY if section != "model" or "config.model" not in f]
  small = [*small, "--config.process.name=flow", "--config.generative.prediction=velocity"]
  workdir = tmp_path / "run"
  chosen = f"--config.{section}.name=broken_parts:{name}"
  code, _, err = call(train.main, *small, chosen, f"--workdir={workdir}")
  assert (code, err.count("\n")) == (2, 1), err
  assert err.startswith(f"error: config.{section}") or section == "model" or "UnknownAnn" in name
  assert line in err
  assert not workdir.exists()


@pytest.mark.costly
def test_a_sampler_is_checked_before_an_image_is_drawn(call, smoke_run, tmp_path):
  chosen = "--config.sampler.name=broken_parts:OneSample"
  out = tmp_path / "a.npz"
  code, _, err = call(sample.main, f"--workdir={smoke_run}", "--num=4", f"--out={out}", chosen)
  assert code == 2
  assert f"sampler returned float32[1,8,8,1]; {SHAPE}" in err
  assert list(tmp_path.iterdir()) == []


def test_parts_of_this_package_are_not_traced(monkeypatch, call, tmp_path):
  """So that the first step of a shipped config does not come later."""
  monkeypatch.setattr(own_parts, "_parameters", lambda *args: pytest.fail("traced"))
  code, _, err = call(train.main, *tiny.TINY, f"--workdir={tmp_path}/run", "--dry_run")
  assert code == 0, err


def test_a_plan_of_data_that_must_be_read_asks_for_their_shape(call):
  code, _, err = call(plan.main, *OWN)
  assert code == 2
  assert "config.data (plug_ins:Stripes) are not known without reading them; give its shape" in err
