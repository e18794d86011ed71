"""Transformers of diffusers become runs that compute the same, and runs become theirs."""

import argparse
import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")
pytest.importorskip("diffusers")

from diffusers_networks import diffusers  # noqa: E402

from diffusion_jax import sample  # noqa: E402
from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.latent_source import all_parameters_of  # noqa: E402
from diffusion_jax.porting.layout import parameters_of, tensors_of_parameters  # noqa: E402
from diffusion_jax.porting.opening import open_source  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

LABELS, STEPS = np.int32([0, 4, 5]), np.int64([0, 17, 999])


def transformer(channels=3, doubled=True, seed=0):
  """diffusers' network with random weights; its blocks embed time and class alike."""
  torch.manual_seed(seed)
  network = diffusers.DiTTransformer2DModel(
    num_attention_heads=3, attention_head_dim=16, in_channels=channels, num_layers=3,
    out_channels=channels * (1 + doubled), sample_size=8, patch_size=2, num_embeds_ada_norm=5,
  ).eval()  # fmt: skip
  with torch.no_grad():
    for value in network.parameters():
      value.normal_(0, 0.2)
  for block in network.transformer_blocks:
    block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
  return network


def saved(network, scheduler, folder):
  """The folder of a pipeline without an autoencoder."""
  network.save_pretrained(folder / "transformer")
  scheduler.save_pretrained(folder / "scheduler")
  (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
  return folder


def images(channels):
  return np.random.default_rng(0).normal(size=(3, 8, 8, channels)).astype(np.float32)


def outputs_of(network, x, times):
  with torch.no_grad():
    made = network(
      torch.from_numpy(x.transpose(0, 3, 1, 2)), timestep=torch.from_numpy(times),
      class_labels=torch.from_numpy(LABELS),
    ).sample  # fmt: skip
  return made.numpy().transpose(0, 2, 3, 1)


def same_bytes(found, network):
  expected = {name: value.detach().numpy() for name, value in network.state_dict().items()}
  expected.pop("pos_embed.pos_embed", None)
  assert found.keys() == expected.keys()
  assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("doubled", [True, False])
@pytest.mark.parametrize("scan_blocks", [True, False])
def test_a_folder_computes_the_same_and_goes_back(channels, doubled, scan_blocks, tmp_path):
  theirs = transformer(channels, doubled)
  folder = saved(theirs, diffusers.DDIMScheduler(clip_sample=False), tmp_path)
  source = open_source(folder)
  spec, experiment = source.described.spec, experiment_of(source, {}, [])
  assert (*spec.shape, spec.num_levels) == (8, 8, channels, 256 if channels == 3 else None)
  model = dataclasses.replace(experiment.sections["model"], scan_blocks=scan_blocks)
  experiment = dataclasses.replace(experiment, sections={**experiment.sections, "model": model})
  params, x = parameters_of(source, experiment), images(channels)
  assert ("stacked_block" in params) == scan_blocks
  found = jax.jit(model.create(spec, 6).apply)(params, x, np.float32(STEPS), Condition(LABELS))
  expected = outputs_of(theirs, x, STEPS)
  assert np.abs(found - expected).max() < 1e-4 * expected.std()
  same_bytes(tensors_of_parameters(source.layout, params, model, 6), theirs)


def test_each_setting_of_diffusers_is_one_that_the_outputs_show(tmp_path):
  theirs = transformer()
  with torch.no_grad():  # small tokens, on which epsilon has an effect
    for name, value in theirs.named_parameters():
      value.mul_(1e-2 if name.startswith("pos_embed") or "norm1.linear" in name else 1)
    theirs.pos_embed.pos_embed.mul_(1e-2)
  source = open_source(saved(theirs, diffusers.DDPMScheduler(), tmp_path))
  experiment = experiment_of(source, {}, [])
  params, model, x = parameters_of(source, experiment), experiment.sections["model"], images(3)
  expected = outputs_of(theirs, x, STEPS)
  for fields in ({"frequency_shift": 0}, {"mlp_epsilon": 1e-2}):
    other = dataclasses.replace(model, **fields).create(source.described.spec, 6)
    found = jax.jit(other.apply)(params, x, np.float32(STEPS), Condition(LABELS))
    assert np.abs(found - expected).max() > 1e-3 * expected.std(), fields


def test_blocks_that_embed_unlike_are_refused(tmp_path):
  theirs = transformer()
  with torch.no_grad():
    theirs.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
  source = open_source(saved(theirs, diffusers.DDPMScheduler(), tmp_path))
  with pytest.raises(Exception, match=r"blocks\.1\..*linear_1\.bias is not equal to"):
    parameters_of(source, experiment_of(source, {}, []))


def test_the_programs_there_and_back(tmp_path, capsys):
  """From a folder with diffusers' old name of the class to a run, and to a folder again."""
  theirs = transformer()
  folder = saved(theirs, diffusers.DDIMScheduler(), tmp_path / "theirs")
  about = folder / "transformer" / "config.json"
  about.write_text(about.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
  run, out = tmp_path / "run", tmp_path / "ours"
  importlib.import_module("diffusion_jax.import").main([str(folder), f"--out={run}"])
  assert "--config.model.frequency_shift=1, which the file does not tell" in capsys.readouterr().out
  export = importlib.import_module("diffusion_jax.export")
  export.main([f"--workdir={run}", "--format=diffusers", f"--out={out}"])
  said = capsys.readouterr().out
  assert "DiTPipeline decodes latents by an autoencoder" in said
  back = diffusers.DiTTransformer2DModel.from_pretrained(out, subfolder="transformer")
  same_bytes({n: v.numpy() for n, v in back.state_dict().items()}, theirs)
  assert dict(back.config).items() >= {"num_embeds_ada_norm": 5, "norm_eps": 1e-5}.items()
  scheduler = diffusers.DDIMScheduler.from_pretrained(out, subfolder="scheduler")
  assert scheduler.config.timestep_spacing == "leading"
  assert 'subfolder="transformer"' in (out / "README.md").read_text()
  pipeline = diffusers.DiTPipeline.from_pretrained(out, vae=Pixels())
  given = {"guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "np"}
  made = pipeline([0, 3], generator=torch.Generator().manual_seed(0), **given).images
  assert made.shape == (2, 8, 8, 3)
  assert made.std() > 0.05


class Pixels(torch.nn.Module):
  """What a model of pixels gives the pipeline in place of an autoencoder."""

  config = argparse.Namespace(scaling_factor=1.0)
  device, dtype = torch.device("cpu"), torch.float32

  def decode(self, latents):
    return argparse.Namespace(sample=latents)


def autoencoder():
  torch.manual_seed(1)
  return diffusers.AutoencoderKL(
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    block_out_channels=(16, 32), norm_num_groups=8, sample_size=16, scaling_factor=0.5,
  ).eval()  # fmt: skip


def test_a_pipeline_of_latents_with_its_autoencoder(tmp_path, capsys, monkeypatch):
  """A run whose images are those of the pipeline, and the same pipeline again."""
  scheduler = diffusers.DDIMScheduler(  # noise would be divided by alphas of a float32 table
    clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
  )
  theirs = diffusers.DiTPipeline(transformer(4), autoencoder(), scheduler)
  folder, run, out = (tmp_path / name for name in ("theirs", "run", "ours"))
  theirs.save_pretrained(folder)
  noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
  module = importlib.import_module("diffusers.pipelines.dit.pipeline_dit")
  given = {"guidance_scale": 1.0, "num_inference_steps": 5, "output_type": "np"}
  start = lambda *args, **options: torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())  # noqa: E731
  monkeypatch.setattr(module, "randn_tensor", start)
  expected = theirs([0, 3], **given).images

  importlib.import_module("diffusion_jax.import").main([str(folder), f"--out={run}"])
  assert "autoencoder that decodes" not in capsys.readouterr().out
  source = open_source(folder)
  experiment = experiment_of(source, {}, [])
  model, params = experiment.create(source.described.spec), all_parameters_of(source, experiment)
  inner = dataclasses.replace(
    model.inner, sampler=dataclasses.replace(model.inner.sampler, steps=5)
  )
  latents = jax.jit(inner.from_noise)(params["diffusion"], noise, Condition(np.int32([0, 3])))
  found = np.asarray(jax.jit(model.decode)(params, latents))
  assert np.abs(np.clip(found / 2 + 0.5, 0, 1) - expected).max() < 1e-4 * expected.std()

  sample.main([f"--workdir={run}", "--num=2", f"--out={tmp_path / 'images.npz'}", "--batch_size=2",
               "--config.sampler.steps=2"])  # fmt: skip
  assert np.load(tmp_path / "images.npz")["images"].shape == (2, 16, 16, 3)
  export = importlib.import_module("diffusion_jax.export")
  export.main([f"--workdir={run}", "--format=diffusers", f"--out={out}"])
  again = diffusers.DiTPipeline.from_pretrained(out)
  np.testing.assert_array_equal(again([0, 3], **given).images, expected)
  assert "DiTPipeline.from_pretrained" in (out / "README.md").read_text()
