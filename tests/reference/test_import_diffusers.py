"""Pipelines of diffusers become runs and back, and diffusers samples from what we trained."""

import functools
import importlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
diffusers = pytest.importorskip("diffusers")

import diffusion_jax as dj  # noqa: E402
from diffusion_jax import export, sample  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

importer = importlib.import_module("diffusion_jax.import")

DDPM = {
  "norm_num_groups": 32, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0,
  "norm_eps": 1e-6, "attention_head_dim": None,
}  # fmt: skip
DEFAULTS = {"norm_num_groups": 16, "attention_head_dim": 8}  # of today's UNet2DModel
SHIFTED = {
  "norm_num_groups": 32, "attn_norm_num_groups": 32, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


def random_network(num_classes=None, **fields):
  torch.manual_seed(0)
  network = diffusers.UNet2DModel(
    sample_size=8, in_channels=3, out_channels=3, num_class_embeds=num_classes,
    block_out_channels=[32, 64], layers_per_block=1, **fields,
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
  ).eval()  # fmt: skip
  with torch.no_grad():
    for parameter in network.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  return network


@pytest.mark.parametrize(
  ("fields", "num_classes"), [(DDPM, None), (DDPM, 3), (DEFAULTS, None), (SHIFTED, 3)]
)
@pytest.mark.parametrize("serialization", [True, False])
def test_a_pipeline_computes_the_same_here_and_comes_back_bit_by_bit(
  fields, num_classes, serialization, tmp_path, call
):
  if not serialization and (fields, num_classes) != (DDPM, None):
    pytest.skip("one file of pickles is enough")
  network = random_network(num_classes, **fields)
  schedule = diffusers.DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large")
  folder, run, again = tmp_path / "theirs", tmp_path / "run", tmp_path / "again"
  diffusers.DDPMPipeline(network, schedule).save_pretrained(
    folder, safe_serialization=serialization
  )
  code, _, err = call(importer.main, folder, f"--out={run}")
  assert (code, err) == (0, "")
  images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
  time, labels = np.float32([0, 17, 999]), np.arange(3, dtype=np.int32) if num_classes else None
  wanted = outputs(network, images, time, labels)
  ours = dj.load_run(run)
  found = jax.jit(ours.model.backbone.apply)(ours.params, images, time, Condition(labels))
  assert np.abs(np.asarray(found) - wanted).max() < 1e-4 * wanted.std()
  code, _, err = call(export.main, f"--workdir={run}", "--format=diffusers", f"--out={again}")
  assert (code, err) == (0, "")
  back = diffusers.DDPMPipeline.from_pretrained(again)
  tensors = network.state_dict()
  assert back.unet.state_dict().keys() == tensors.keys()
  assert all(torch.equal(value, tensors[name]) for name, value in back.unet.state_dict().items())
  assert back.scheduler.config.variance_type == "fixed_large"
  code, _, err = call(
    sample.main, f"--workdir={run}", "--num=3", f"--out={tmp_path / 'a.npz'}",
    "--config.sampler.steps=3",
  )  # fmt: skip
  assert code == 0, err


def outputs(network, images, time, labels):
  """What diffusers' network makes of images B H W C."""
  named = {} if labels is None else {"class_labels": torch.from_numpy(labels)}
  with torch.no_grad():
    x = torch.from_numpy(images.transpose(0, 3, 1, 2))
    return network(x, torch.from_numpy(time), **named).sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_diffusers_draws_the_digits_that_are_asked_for(root, tmp_path):
  """At least 90% of 200 samples of DDPMPipeline, with the labels given as the card says."""
  run, out = tmp_path / "run", tmp_path / "exported"
  groups = "--config.model.norm_groups=8"  # diffusers has one number of groups
  for name, *flags in (
    ("train", "--config=ddpm_digits", f"--workdir={run}", groups),
    ("export", f"--workdir={run}", "--format=diffusers", f"--out={out}"),
  ):
    command = [sys.executable, "-m", f"diffusion_jax.{name}", *flags]
    subprocess.run(command, check=True, cwd=root)
  pipeline = diffusers.DDPMPipeline.from_pretrained(out)
  labels = torch.arange(200) % 10
  pipeline.unet.forward = functools.partial(pipeline.unet.forward, class_labels=labels)
  generator = torch.Generator().manual_seed(0)
  images = pipeline(batch_size=200, generator=generator, output_type="np").images
  benchmark = runpy.run_path(str(root / "benchmarks" / "digits_agreement.py"))
  classifier, _ = benchmark["fit_classifier"]()
  levels = np.round(images.reshape(200, -1) * 16.0)
  share = float(np.mean(classifier.predict(levels) == labels.numpy()))
  print(f"agreement of diffusers' samples with the label asked for: {share:.1%} of 200")
  assert share >= 0.90
