"""A run whose own parts were deleted after training: what does not need them works on."""

import shutil
import sys

import numpy as np
import pytest
import tiny

import diffusion_jax as dj
from diffusion_jax import evaluate, sample, train
from diffusion_jax.runs import gone

pytestmark = pytest.mark.costly

PARTS = """
import dataclasses
from diffusion_jax.data import Digits
from diffusion_jax.losses import Uncertainty
from diffusion_jax.samplers import DDIM
from diffusion_jax.training.optimizers import Adam

OwnLoss, OwnData, OwnSampler, OwnRule = (
  dataclasses.make_dataclass(name, [], bases=(base,), frozen=True,
                             namespace={"__module__": __name__})
  for name, base in (("OwnLoss", Uncertainty), ("OwnData", Digits), ("OwnSampler", DDIM),
                     ("OwnRule", Adam))
)
"""
NEEDED = {
  "loss.name=gone_parts:OwnLoss",
  "data.name=gone_parts:OwnData",
  "optimizer.name=gone_parts:OwnRule",
}
EVALUATE = ["--features=none", "--inception=none", "--config.eval.likelihoods=vlb"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run with its own loss (which has parameters), data and optimizer; and one with a sampler."""
  folder = tmp_path_factory.mktemp("gone")
  (folder / "gone_parts.py").write_text(PARTS)
  flags = [*tiny.TINY, "--config.training.num_steps=2", "--config.logging.tensorboard=false"]
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    own = [f"--config.{setting}" for setting in NEEDED]
    train.main([*flags, *own, f"--workdir={folder / 'run'}"])
    sampler = "--config.sampler.name=gone_parts:OwnSampler"
    train.main([*flags, sampler, f"--workdir={folder / 'sampled'}"])
    assert (
      sample.main([f"--workdir={folder / 'run'}", "--num=2", f"--out={folder / 'a.npz'}"]) is None
    )
  (folder / "gone_parts.py").unlink()
  shutil.rmtree(folder / "__pycache__", ignore_errors=True)
  del sys.modules["gone_parts"]
  gone.say_put_off.cache_clear()
  return folder


def test_samples_are_those_of_before_and_each_missing_part_is_told(trained, tmp_path, call):
  code, out, err = call(
    sample.main, f"--workdir={trained / 'run'}", "--num=2", f"--out={tmp_path}/b.npz"
  )
  assert code == 0, err
  warnings = [line for line in out.splitlines() if line.startswith("warning: config.")]
  assert {line.split()[1].removeprefix("config.").rstrip(":") for line in warnings} == NEEDED
  one, two = (np.load(file)["images"] for file in (trained / "a.npz", tmp_path / "b.npz"))
  np.testing.assert_array_equal(one, two)


def test_the_run_is_loaded_and_keeps_its_config(trained):
  run = dj.load_run(trained / "run")
  stored = run.config["loss"]
  assert (stored["name"], run.config["optimizer"]["name"]) == (
    "gone_parts:OwnLoss",
    "gone_parts:OwnRule",
  )
  assert stored.keys() > {"name"}
  assert run.sample(1).shape == (1, 8, 8, 1)
  with pytest.raises(
    dj.UserError, match=r"^config\.optimizer.name=gone_parts:OwnRule: no such module"
  ):
    _ = run.state


def test_what_needs_a_missing_part_is_one_line(trained, tmp_path, call):
  flags = [f"--workdir={trained / 'run'}", *EVALUATE, f"--out={tmp_path / 'eval'}"]
  code, _, err = call(evaluate.main, *flags)
  assert (code, err.count("\n")) == (2, 1), err
  assert err.startswith("error: config.data.name=gone_parts:OwnData: no such module")
  code, _, err = call(
    evaluate.main, *flags, "--config.eval.num_samples=32", "--config.data.name=digits"
  )
  assert code == 0, err


def test_a_missing_sampler_is_replaced_by_another(trained, tmp_path, call):
  flags = [f"--workdir={trained / 'sampled'}", "--num=2", f"--out={tmp_path}/c.png"]
  code, _, err = call(sample.main, *flags)
  assert code == 2
  assert "config.sampler.name=gone_parts:OwnSampler: no such module" in err
  code, _, err = call(sample.main, *flags, "--config.sampler.name=ddim", "--config.sampler.steps=3")
  assert code == 0, err


def test_another_part_of_the_training_is_refused(trained, tmp_path, call):
  flags = [f"--workdir={trained / 'run'}", "--num=2", f"--out={tmp_path}/d.png"]
  code, _, err = call(sample.main, *flags, "--config.loss.name=simple")
  assert code == 2
  assert "loss.name: gone_parts:OwnLoss -> simple" in err
  assert "omit that override" in err
