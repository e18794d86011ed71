"""A transformer of latents and its autoencoder become one model; without PyTorch."""

import json

import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models import AutoencoderKL, DiT
from diffusion_jax.models.embeddings import position_embedding
from diffusion_jax.porting.diffusers_export import describe_pipeline, make_pipeline
from diffusion_jax.porting.dit_weights import DIT
from diffusion_jax.porting.imported import experiment_of
from diffusion_jax.porting.kl_weights import AUTOENCODER_KL
from diffusion_jax.porting.latent_source import all_parameters_of, with_autoencoder
from diffusion_jax.porting.layout import Content, Described, Source, tensors_of_parameters
from diffusion_jax.porting.opening import open_source
from diffusion_jax.types import ImageSpec, UserError
from diffusion_jax.weight_files.safetensors_file import write_safetensors

LATENTS, IMAGES = ImageSpec(8, 8, 4, None, 5), ImageSpec(16, 16, 3, 256, 5)
NETWORK = DiT(depth=1, hidden=48, heads=16, patch=2, learned_variance=True)
VAE = AutoencoderKL(channels=8, multipliers=(1, 2), num_blocks=1, norm_groups=4)


def drawn(init):
  leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))
  return jax.tree.unflatten(tree, [normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def tensors():
  """Of a file of DiT, and of a folder of AutoencoderKL."""
  network = tensors_of_parameters(
    DIT.layout, drawn(NETWORK.create(LATENTS, 6).init), NETWORK, 6
  ) | {"pos_embed": position_embedding(4, 4, 48)[None]}
  init = VAE.create(IMAGES, 3).init
  return network, tensors_of_parameters(AUTOENCODER_KL.layout, drawn(init), VAE, 0)


def sources(tensors, scale=0.18215, latent_channels=4):
  described = DIT.describe(Content(tensors[0], {}, None, "DiT.pt"))
  network = Source(DIT.layout, described, tensors[0], {"format": "pt"}, "DiT.pt")
  model = {
    "name": "autoencoder_kl", "channels": 8, "multipliers": (1, 2), "num_blocks": 1,
    "norm_groups": 4, "latent_scale": scale, "latent_channels": latent_channels,
  }  # fmt: skip
  sections = {"model": model, "decoder": {"name": "gaussian", "std": 0.1}}
  vae = Described(sections, ImageSpec(32, 32, 3, 256, 0), ("model.norm_groups", "decoder.std"))
  return network, Source(AUTOENCODER_KL.layout, vae, tensors[1], {"format": "s"}, "vae")


def test_both_become_a_latent_diffusion_model_and_come_back_bit_by_bit(tensors):
  source = with_autoencoder(*sources(tensors))
  assert source.described.spec == IMAGES
  assert source.described.notes == ()
  assert source.described.assumed[-2:] == ("autoencoder.norm_groups", "decoder.std")
  assert source.origin == {"format": "pt", "autoencoder": {"format": "s"}}
  experiment = experiment_of(source, {}, [])
  params = all_parameters_of(source, experiment)
  model = experiment.create(IMAGES)
  wanted = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, wanted)
  assert params["latent_scale"] == np.float32(0.18215)
  back = tensors_of_parameters(DIT.layout, params["diffusion"], NETWORK, 6)
  assert all(back[name].tobytes() == tensors[0][name].tobytes() for name in back)
  inside = named_leaves(model._autoencoder(params))
  stored = tensors[1]["decoder.conv_out.weight"]
  np.testing.assert_array_equal(
    inside["decoder/conv_out/conv/kernel"], stored.transpose(2, 3, 1, 0)
  )


def test_an_exported_pipeline_has_the_autoencoder_too(tensors):
  network, vae = sources(tensors)
  sections = network.described.sections
  diffusers_model = {**sections["model"], "frequency_shift": 1}
  described = network.described._replace(sections={**sections, "model": diffusers_model})
  source = with_autoencoder(network._replace(described=described), vae)
  experiment = experiment_of(source, {}, [])
  pipeline = make_pipeline(experiment, IMAGES, all_parameters_of(source, experiment))
  assert (pipeline.name, pipeline.lacks) == ("DiTPipeline", "")
  assert (pipeline.network["sample_size"], pipeline.network["in_channels"]) == (8, 4)
  assert pipeline.vae.network["scaling_factor"] == pytest.approx(0.18215)
  found, expected = pipeline.vae.tensors, tensors[1]
  assert {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}


def test_other_latents_and_an_unknown_scale_are_refused(tensors):
  with pytest.raises(UserError, match=r"vae: its latents have 8 channels, .* DiT\.pt have 4"):
    with_autoencoder(*sources(tensors, latent_channels=8))
  source = with_autoencoder(*sources(tensors, scale=None))
  with pytest.raises(UserError, match=r"`autoencoder\.latent_scale=none`"):
    all_parameters_of(source, experiment_of(source, {}, []))
  with pytest.raises(UserError, match=r"`model\.frequency_shift=0`: diffusers"):
    describe_pipeline(experiment_of(source, {}, []), IMAGES)


def test_files_of_both_are_opened_together(tensors, tmp_path):
  """A file of SiT, and the folder of an AutoencoderKL beside it or in the pipeline."""
  write_safetensors(tmp_path / "SiT.safetensors", tensors[0], {})
  vae = tmp_path / "vae"
  vae.mkdir()
  config = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
  }  # fmt: skip
  (vae / "config.json").write_text(json.dumps(config))
  write_safetensors(vae / "diffusion_pytorch_model.safetensors", tensors[1], {})
  source = open_source(tmp_path / "SiT.safetensors", autoencoder=vae)
  assert (source.layout.name, source.described.spec) == ("SiT", IMAGES)
  assert source.described.sections["generative"]["name"] == "latent_diffusion"
  params = all_parameters_of(source, experiment_of(source, {}, []))
  assert params["latent_scale"] == np.float32(0.18215)
  assert "encoder.conv_in.weight" in source.autoencoder.tensors
