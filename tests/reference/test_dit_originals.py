"""Files of DiT and SiT, written by PyTorch, give networks that compute the same."""

import argparse
import dataclasses
import importlib

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")

from dit_original import drawn  # noqa: E402

from diffusion_jax import sample  # noqa: E402
from diffusion_jax.core.config import Override  # noqa: E402
from diffusion_jax.models import DiT  # noqa: E402
from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import parameters_of, tensors_of_parameters  # noqa: E402
from diffusion_jax.porting.opening import open_source  # noqa: E402
from diffusion_jax.samplers import Euler  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

SMALL = {"side": 8, "patch": 2, "width": 48, "depth": 3, "heads": 3, "ratio": 4, "rows": 6}
LABELS = np.int32([0, 4, 5])
STEPS, UNIFORM = np.float32([0, 17, 999]), np.float32([0.0, 0.3, 1.0])
TOLD = argparse.Namespace(
  model="SiT-XL/2", path_type="Linear", prediction="velocity", num_classes=5, image_size=64
)


def images(channels):
  return np.random.default_rng(0).normal(size=(3, 8, 8, channels)).astype(np.float32)


def outputs_of(network, x, times, labels=LABELS):
  with torch.no_grad():
    made = network(
      torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(times), torch.from_numpy(labels)
    )
  return made.numpy().transpose(0, 2, 3, 1)


def imported(path, *fields):
  """The source, its experiment and the parameters of a file, with fields of the model as given."""
  source = open_source(path)
  given = ["heads=3", *fields]
  overrides = [Override("model", *field.split("=")) for field in given]
  experiment = experiment_of(source, {}, overrides)
  return source, experiment, parameters_of(source, experiment)


def network_of(experiment, spec) -> DiT:
  return experiment.sections["model"].create(spec, spec.num_classes + 1)


def same_bytes(found, state):
  expected = {name: value.numpy() for name, value in state.items() if name != "pos_embed"}
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].tobytes() == np.ascontiguousarray(value).tobytes(), name


@pytest.mark.parametrize("scan_blocks", [True, False])
@pytest.mark.parametrize("doubled", [True, False])
def test_a_flat_file_of_dit(scan_blocks, doubled, tmp_path):
  theirs = drawn(**SMALL, channels=4, doubled=doubled, is_sit=False)
  torch.save(theirs.state_dict(), tmp_path / "DiT-small.pt")
  source, experiment, params = imported(tmp_path / "DiT-small.pt", f"scan_blocks={scan_blocks}")
  spec, x = source.described.spec, images(4)
  assert (*spec.shape, spec.num_levels, spec.num_classes) == (8, 8, 4, None, 5)
  expected = outputs_of(theirs, x, STEPS)
  found = jax.jit(network_of(experiment, spec).apply)(params, x, STEPS, Condition(LABELS))
  assert np.abs(found - expected).max() < 1e-4 * expected.std()
  assert ("stacked_block" in params) == scan_blocks
  model = experiment.sections["model"]
  same_bytes(tensors_of_parameters(source.layout, params, model, 6), theirs.state_dict())


@pytest.mark.parametrize("doubled", [True, False])
def test_a_nested_file_of_sit_has_its_velocity(doubled, tmp_path):
  """Of the path from noise at 0 to data at 1: ours goes the other way."""
  theirs = drawn(**SMALL, channels=3, doubled=doubled, is_sit=True)
  other = drawn(1, **SMALL, channels=3, doubled=doubled, is_sit=True)
  optimizer = torch.optim.AdamW(other.parameters())
  torch.save(
    {"model": other.state_dict(), "ema": theirs.state_dict(), "opt": optimizer.state_dict(),
     "args": TOLD}, tmp_path / "0400000.pt",
  )  # fmt: skip
  source, experiment, params = imported(tmp_path / "0400000.pt")
  spec, x = source.described.spec, images(3)
  parts = experiment.sections
  expected = -outputs_of(theirs, x, np.float32(1) - UNIFORM)
  times = parts["process"].network_time(UNIFORM)
  found = jax.jit(network_of(experiment, spec).apply)(params, x, times, Condition(LABELS))
  assert np.abs(found - expected).max() < 1e-4 * expected.std()
  same_bytes(tensors_of_parameters(source.layout, params, parts["model"], 6), theirs.state_dict())
  assert parts["generative"].prediction == "velocity"
  assert source.origin["group"] == "ema"


def test_the_path_of_sit_is_walked_from_noise_to_data(tmp_path):
  """20 steps of Euler with their network and times, from the same noise."""
  theirs = drawn(**SMALL, channels=3, doubled=True, is_sit=True)
  torch.save({"ema": theirs.state_dict(), "args": TOLD}, tmp_path / "weights.pt")
  source, experiment, params = imported(tmp_path / "weights.pt")
  spec, x = source.described.spec, images(3)
  expected = x.copy()
  for i in range(20):
    expected += outputs_of(theirs, expected, np.full(3, i / 20, np.float32)) / 20
  model = dataclasses.replace(experiment.create(spec), sampler=Euler(steps=20))
  found = jax.jit(model.from_noise)(params, x, Condition(LABELS))
  assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_guidance_is_that_of_the_published_figures(tmp_path):
  """Of three of the four channels of latents, with the variances of the label's estimate."""
  theirs = drawn(**SMALL, channels=4, doubled=True, is_sit=False)
  torch.save(theirs.state_dict(), tmp_path / "DiT-small.pt")
  source, experiment, params = imported(tmp_path / "DiT-small.pt")
  model, x = experiment.create(source.described.spec), images(4)
  with_label, null = (
    outputs_of(theirs, x, np.full(3, 699, np.float32), labels)
    for labels in (LABELS, np.full(3, 5, np.int32))
  )
  eps = with_label[..., :4].copy()
  eps[..., :3] = null[..., :3] + 1.5 * (with_label - null)[..., :3]
  alpha, sigma = model.process.alpha_sigma(np.asarray([0.7]))
  denoise = jax.jit(model._guided(model.bind(params).denoiser, Condition(LABELS), 3))
  found, logits = denoise(jax.numpy.asarray(x), jax.numpy.full(3, 0.7))
  expected = (x - sigma * eps) / alpha
  assert np.abs(found - expected).max() < 1e-4 * expected.std()
  assert np.abs(logits - with_label[..., 4:]).max() < 1e-4 * with_label.std()


def test_the_program_makes_a_run_of_a_file(tmp_path, capsys):
  """It names what the file does not tell."""
  theirs = drawn(**SMALL, channels=3, doubled=True, is_sit=False)
  torch.save(theirs.state_dict(), tmp_path / "DiT-small.pt")
  args = [str(tmp_path / "DiT-small.pt"), f"--out={tmp_path / 'run'}", "--config.model.heads=3"]
  importlib.import_module("diffusion_jax.import").main(args)
  said = capsys.readouterr().out
  assert "imported" in said
  assert "parameters (DiT) into" in said
  assert "--config.guidance.weight=1.5, which the file does not tell" in said
  assert "model.heads" not in said
  assert "architecture=DiT, which the file does not tell" in said
  out = tmp_path / "images.npz"
  sample.main([
    f"--workdir={tmp_path / 'run'}", "--num=3", f"--out={out}",
    "--config.sampler.steps=2",
  ])  # fmt: skip
  assert np.load(out)["images"].shape == (3, 8, 8, 3)
