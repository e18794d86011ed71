"""A diffusion model of latents together with the autoencoder that decodes them, both ways."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from diffusion_jax.generative.latent_diffusion import LatentDiffusionModel, flatten
from diffusion_jax.models import AutoencoderKL
from diffusion_jax.porting.layout import Described, Source, parameters_like, parameters_of
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import Params, UserError


def with_autoencoder(source: Source, autoencoder: Source) -> Source:
  """Return a source of a network of latents as one of images, which an autoencoder decodes.

  Raises:
    UserError: the network has no latents, or those of another autoencoder.
  """
  described, other = source.described, autoencoder.described
  vae = other.sections["model"]
  latents = described.spec
  if latents.num_levels is not None or vae.get("latent_channels") != latents.channels:
    raise UserError(
      f"{autoencoder.where}: its latents have {vae.get('latent_channels')} channels, and the "
      f"images of {source.where} have {latents.channels}"
    )
  factor = 2 ** (len(vae["multipliers"]) - 1)
  spec = other.spec._replace(
    height=factor * latents.height, width=factor * latents.width, num_classes=latents.num_classes
  )
  sections = {
    **described.sections,
    "generative": {**described.sections["generative"], "name": "latent_diffusion"},
    "autoencoder": vae,
    "decoder": other.sections["decoder"],
    "vlb": {"clip": False},
  }
  renamed = [field.replace("model.", "autoencoder.", 1) for field in other.assumed]
  assumed = tuple(field for field in renamed if "." in field)
  return source._replace(
    described=Described(sections, spec, (*described.assumed, *assumed), described.layout),
    origin={**source.origin, "autoencoder": dict(autoencoder.origin)},
    autoencoder=autoencoder,
  )


def all_parameters_of(source: Source, experiment: Experiment) -> Params:
  """Return an experiment's parameters from a source, also the autoencoder's, float32.

  Raises:
    UserError: a tensor is missing, has another shape, or has no place in this network.
  """
  if source.autoencoder is None:
    return parameters_of(source, experiment)
  model = experiment.create(source.described.spec)
  wanted = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
  assert isinstance(model, LatentDiffusionModel)
  config = experiment.sections["autoencoder"]
  if (scale := getattr(config, "latent_scale", None)) is None:
    raise UserError(
      "`autoencoder.latent_scale=none`: the files do not tell the factor of the latents; set e.g. "
      "`autoencoder.latent_scale=0.18215`"
    )
  shapes = jax.eval_shape(model.networks.init, jax.random.key(0))
  decoder = parameters_like(shapes, source.autoencoder, config)
  network = parameters_like(wanted["diffusion"], source, experiment.sections["model"])
  frozen = {"autoencoder": flatten(decoder), "latent_scale": np.float32(scale)}
  return {"diffusion": network, **frozen}


def autoencoder_of(model: LatentDiffusionModel, params: Mapping[str, Any]) -> Params:
  """Return the autoencoder's parameters in the structure of its networks."""
  shapes = jax.eval_shape(model.networks.init, jax.random.key(0))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  return ravel_pytree(zeros)[1](jnp.asarray(params["autoencoder"]))


def autoencoder_experiment(experiment: Experiment) -> Experiment:
  """Return the sections of a VAE's run for the autoencoder of a latent diffusion model.

  Raises:
    UserError: it is none that diffusers has.
  """
  network = experiment.sections["autoencoder"]
  if not isinstance(network, AutoencoderKL):
    name = experiment.to_dict()["autoencoder"]["name"]
    raise UserError(f"`autoencoder.name={name}`: diffusers' pipelines have autoencoder_kl only")
  sections = {name: experiment.sections[name] for name in ("generative", "decoder")}
  return Experiment({**sections, "model": network}, experiment.layout)
