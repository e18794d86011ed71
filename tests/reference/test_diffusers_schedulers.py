"""Imported pipelines sample as diffusers does, from the same noise, with its own schedulers."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
pytest.importorskip("diffusers")

from diffusers_networks import diffusers  # noqa: E402

from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import parameters_of  # noqa: E402
from diffusion_jax.porting.opening import open_source  # noqa: E402
from diffusion_jax.processes import log_ratio  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

STEPS, SHAPE = 20, (3, 8, 8, 3)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler


def network(out_channels=3):
  torch.manual_seed(0)
  return diffusers.UNet2DModel(
    sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), out_channels=out_channels,
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, flip_sin_to_cos=False,
    freq_shift=1,
  ).eval()  # fmt: skip


def imported(theirs, scheduler, folder):
  """The model and parameters of a pipeline, with STEPS steps."""
  theirs.save_pretrained(folder / "unet")
  scheduler.save_pretrained(folder / "scheduler")
  (folder / "model_index.json").write_text("{}")
  source = open_source(folder)
  experiment = experiment_of(source, {}, [])
  model = experiment.create(source.described.spec)
  backbone = model.backbone._replace(
    apply=compiled(experiment.sections["model"], source.described.spec)
  )
  sampler = dataclasses.replace(model.sampler, steps=STEPS)
  model = dataclasses.replace(model, sampler=sampler, backbone=backbone)
  return model, parameters_of(source, experiment)


@functools.cache
def compiled(config, spec):
  """One for all tests with the same network."""
  return jax.jit(config.create(spec, 0).apply)


def draws():
  rng = np.random.default_rng(0)
  return rng.normal(size=(STEPS + 1, *SHAPE)).astype(np.float32)


def ours(model, params, noise):
  """The samples from the first of these noises, with the others added by the steps."""
  tableau = model.sampler.tableau(model.process)
  denoise = model._guided(model.bind(params).denoiser, Condition(), SHAPE[0])
  x, state = noise[0], tableau.state
  for row in range(STEPS):
    z = noise[row + 1]
    x0 = denoise(jnp.asarray(x), jnp.full(SHAPE[0], tableau.t[row], jnp.float32))
    if tableau.width is not None:
      x0, logits = x0
      z = z * np.exp(0.5 * log_ratio(logits, tableau.width[row]))
    x0 = np.clip(x0, -1, 1) if model.sampler.clip else np.asarray(x0)
    added = 0.0 if state.noise is None else state.noise[row] * z
    x = np.float32(state.x0[row, 0] * x0 + state.xt[row] * x + added)
  return x


def in_torch(array):
  return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def loop(theirs, scheduler, noise, monkeypatch, **options):
  """What a pipeline of diffusers does, with given noise."""
  left = iter(noise[1:])
  module = importlib.import_module(type(scheduler).__module__)
  draw = lambda *args, **options: in_torch(next(left))  # noqa: E731
  monkeypatch.setattr(module, "randn_tensor", draw, raising=False)
  scheduler.set_timesteps(STEPS)
  x = in_torch(noise[0])
  with torch.no_grad():
    for time in scheduler.timesteps:
      x = scheduler.step(theirs(x, time).sample, time, x, **options).prev_sample
  return x.numpy().transpose(0, 2, 3, 1)


def assert_same(found, expected):
  assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize(
  ("spacing", "variance", "prediction"),
  [
    ("leading", "fixed_small", "epsilon"),
    ("trailing", "fixed_large", "epsilon"),
    ("linspace", "fixed_large", "v_prediction"),
    ("leading", "learned_range", "epsilon"),
    ("trailing", "learned_range", "sample"),
  ],
)
def test_ddpm_with_fewer_steps(spacing, variance, prediction, tmp_path, monkeypatch):
  """Trailing steps end above 0, where theirs adds noise to the finished image, and ours none."""
  theirs = network(6 if variance == "learned_range" else 3)
  scheduler = diffusers.DDPMScheduler(
    timestep_spacing=spacing, variance_type=variance, prediction_type=prediction
  )
  model, params = imported(theirs, scheduler, tmp_path)
  noise = draws()
  noise[-1] = 0.0
  assert_same(ours(model, params, noise), loop(theirs, scheduler, noise, monkeypatch))


@pytest.mark.parametrize(
  ("spacing", "schedule", "clip"),
  [
    ("leading", "linear", False), ("trailing", "linear", True),
    ("trailing", "scaled_linear", False), ("leading", "squaredcos_cap_v2", True),
  ],
)  # fmt: skip
def test_ddim(spacing, schedule, clip, tmp_path, monkeypatch):
  """Where it clips, ours recomputes the noise, as theirs can."""
  theirs = network()
  scheduler = diffusers.DDIMScheduler(
    timestep_spacing=spacing, beta_schedule=schedule, clip_sample=clip
  )
  model, params = imported(theirs, scheduler, tmp_path)
  noise = draws()
  expected = loop(theirs, scheduler, noise, monkeypatch, use_clipped_model_output=clip)
  assert_same(ours(model, params, noise), expected)


@pytest.mark.parametrize(("num", "shift"), [(1000, 1.0), (1000, 3.0), (100, 0.5)])
def test_flow_matching(num, shift, tmp_path, monkeypatch):
  theirs = network()
  scheduler = FLOW(num_train_timesteps=num, shift=shift)
  model, params = imported(theirs, scheduler, tmp_path)
  noise = draws()
  expected = loop(theirs, scheduler, noise, monkeypatch)
  assert_same(ours(model, params, noise), expected)
  assert_same(np.asarray(jax.jit(model.from_noise)(params, noise[0])), expected)


@pytest.mark.parametrize(
  ("scheduler", "kind"),
  [
    (diffusers.DDIMScheduler(), diffusers.DDIMPipeline),
    (diffusers.DDPMScheduler(), diffusers.DDPMPipeline),
    (FLOW(shift=2.0), diffusers.DDPMPipeline),
  ],
)
def test_an_exported_pipeline_samples_as_the_one_that_was_imported(scheduler, kind, tmp_path):
  folder, run, out = (tmp_path / name for name in ("theirs", "run", "ours"))
  diffusers.DDPMPipeline(network(), scheduler).save_pretrained(folder)
  importlib.import_module("diffusion_jax.import").main([str(folder), f"--out={run}"])
  export = importlib.import_module("diffusion_jax.export")
  export.main([f"--workdir={run}", "--format=diffusers", f"--out={out}"])

  def samples(folder):
    pipeline = kind.from_pretrained(folder)
    given = {"num_inference_steps": 4, "output_type": "np", "batch_size": 2}
    return pipeline(generator=torch.Generator().manual_seed(0), **given).images

  np.testing.assert_array_equal(samples(out), samples(folder))
  found = diffusers.DiffusionPipeline.from_pretrained(out)
  assert type(found) is kind
  assert type(found.scheduler) is type(scheduler)
