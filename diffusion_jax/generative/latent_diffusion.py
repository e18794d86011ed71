"""Diffusion on the latents of a frozen autoencoder, as a model of images.

With z ~ q(z | x) from the encoder and a diffusion model p(z) of the latents,
-log p(x) <= E_q[-log p(x | z) + log q(z | x)] - log p(z): the ELBO with the diffusion model as
prior. The network works on s = scale z, with standard deviation 1, so log p(z) = log p(s) + d log
scale for d latent dimensions. Sources: Vahdat et al. 2021 (arXiv 2106.05931), equation 1; Rombach
et al. 2022 (arXiv 2112.10752), section 3.

The autoencoder's weights are stored as one vector with the diffusion model's parameters. Every
checkpoint contains them. Their gradient is zero, and the training step and averages leave them
unchanged bit for bit under every optimizer (`optimizers.apply_updates`).
"""

import contextlib
import dataclasses
import functools
import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.distributions import gaussian_log_prob, nats_to_bits_per_dim
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.core.rng import Stream
from diffusion_jax.generative.base import GenerativeConfigBase, ModelBase, loss_keys
from diffusion_jax.generative.diffusion import Diffusion
from diffusion_jax.generative.diffusion_model import DiffusionModel
from diffusion_jax.generative.vae import gathering_networks
from diffusion_jax.models import DECODERS, VAES, VAENetworks, created_networks
from diffusion_jax.parallel import sharding
from diffusion_jax.processes import PredictionName
from diffusion_jax.types import (
  UNCONDITIONAL,
  Aux,
  Batch,
  Condition,
  Estimate,
  ImageSpec,
  Key,
  Keys,
  Likelihood,
  LossOutput,
  Params,
  Samples,
  SpectrumEstimate,
  UserError,
)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion(GenerativeConfigBase):
  """A diffusion model of the latents of a trained autoencoder.

  Attributes:
    prediction: quantity that the network predicts, see `processes.denoiser`.
    sigma_data: standard deviation of the latents, which are scaled to 1; for prediction=edm.
    conditional: give the network the class; needs a labelled data set.
    label_dropout: fraction of training examples with a dropped condition (the parts in `dropped`),
      which trains the unconditional model for guidance.
    fields: named arrays of the data set as network inputs, such as embedding,mask.
    dropped: parts of the condition that are dropped together: label becomes the null class, names
      of `fields` become zeros.
  """

  prediction: PredictionName = "eps"
  sigma_data: float = 1.0
  conditional: bool = False
  label_dropout: float = 0.1
  fields: tuple[str, ...] = ()
  dropped: tuple[str, ...] = ("label",)

  description: ClassVar[str] = "latent diffusion model"
  sections: ClassVar[ChainMap[str, Any]] = ChainMap(
    {"autoencoder": VAES, "decoder": DECODERS}, *Diffusion.sections.maps
  )
  trains_on_latents = True

  def __post_init__(self):
    self._inner()

  def _inner(self) -> Diffusion:
    return Diffusion(
      self.prediction, self.sigma_data, self.conditional, self.label_dropout,
      fields=self.fields, dropped=self.dropped,
    )  # fmt: skip

  def warning(self, parts: Mapping[str, Any]) -> str | None:
    """Return a warning about settings that work but are hardly intended, or None."""
    return self._inner().warning(parts)

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> "LatentDiffusionModel":
    """Return the model of images made of the config's sections.

    Args:
      parts: section name -> instance, for each of `sections`; and "data", the source, whose folder
        only `init` reads.
      spec: shape of the images.

    Raises:
      ValueError: parts that do not fit each other or the data.
    """
    decoder, networks = parts["decoder"], _networks(parts, spec)
    if not parts["data"].has_latents:
      raise ValueError(
        "latent_diffusion needs latents: set `data.name=latents` `data.path=DIR`, "
        "made by python -m diffusion_jax.encode"
      )
    _check_clip(parts)
    height, width, channels = networks.latent_shape
    latents = ImageSpec(height, width, channels, None, spec.num_classes, spec.fields)
    inner = self._inner().create(parts, latents)
    return LatentDiffusionModel(spec, networks, decoder, inner, parts["data"].autoencoder)


def _networks(parts: Mapping[str, Any], spec: ImageSpec) -> VAENetworks:
  num_outputs = parts["decoder"].num_outputs(spec.channels)
  networks = gathering_networks(
    created_networks(VAENetworks, parts["autoencoder"], spec, num_outputs)
  )
  if len(networks.latent_shape) != 3:
    raise ValueError(
      "the autoencoder's latents are a vector; train one with spatial latents, "
      "`model.latent_channels=4`, and set `autoencoder.latent_channels=4` here"
    )
  height, width, channels = networks.latent_shape
  if (height, width, 2 * channels) == spec.shape:  # a batch could be either
    raise ValueError(
      f"the autoencoder's latents are as large as the images, {spec.shape}; train one with more "
      "`model.multipliers=...` or another `model.latent_channels=N`"
    )
  return networks


def _check_clip(parts: Mapping[str, Any]) -> None:
  """Raise a ValueError for clipping to [-1, 1], since latents exceed this range."""
  serves = parts["process"].num_timesteps is not None
  for name in ("sampler", *(["vlb"] if serves else [])):
    if parts[name].clip:
      raise ValueError(
        f"{name}.clip=true cuts x0 estimates to [-1, 1], which latents exceed; set "
        f"`{name}.clip=False`"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusionModel(ModelBase):
  """A diffusion model of latents between a frozen encoder and decoder.

  Attributes:
    spec: shape of the images.
    networks: the autoencoder.
    observation: the autoencoder's model p(x | z).
    inner: the diffusion model of s = scale z.
    stored: function that reads the autoencoder's weights and the scale from the latents' folder.
  """

  kind = "latent_diffusion"

  spec: ImageSpec
  networks: VAENetworks
  observation: Any
  inner: DiffusionModel
  stored: Callable[[], Any]

  @property
  def capabilities(self) -> frozenset[str]:
    return frozenset({"trajectory", "loss_by_log_snr", "encode"})

  @property
  def needs_average(self) -> bool:
    return self.inner.needs_average

  @property
  def num_levels(self) -> int | None:
    return self.observation.num_levels(self.spec.num_levels)

  @property
  def num_classes(self) -> int:
    return self.inner.num_classes

  @property
  def fields(self) -> tuple[str, ...]:
    return self.inner.fields

  @property
  def trains_on(self) -> tuple[tuple[int, ...], Any]:
    height, width, channels = self.networks.latent_shape
    return (height, width, 2 * channels), np.float32

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    return {
      name: functools.partial(self._bound, prior) for name, prior in self.inner.likelihoods.items()
    }

  @property
  def described_likelihoods(self) -> Mapping[str, Any]:
    return self.inner.described_likelihoods

  def init(self, key: Key) -> tuple[Params, Aux]:
    """Return the diffusion model's parameters, and the frozen autoencoder's from the folder.

    If the latents' folder is missing or now belongs to another autoencoder, the latter are NaN:
    only their shapes matter, to restore them from a checkpoint. A new run checks the folder first.
    """
    shapes = jax.eval_shape(self.networks.init, key)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    weights, scale = np.full(size, np.nan, np.float32), math.nan
    with contextlib.suppress(UserError):
      stored = self.stored()
      if stored.weights.size == size:
        weights, scale = stored
    diffusion, loss_state = self.inner.init(key)
    frozen = {"autoencoder": jnp.asarray(weights), "latent_scale": jnp.float32(scale)}
    return {"diffusion": diffusion, **frozen}, loss_state

  def loss(
    self,
    params: Params,
    loss_state: Aux,
    key: Key,
    batch: Batch,
    *,
    train: bool,
    average: Params | None = None,
    batch_mean: Array | None = None,
  ) -> LossOutput:
    """Return the diffusion model's loss; z is drawn again for each call."""
    latents = self._draw(params, loss_keys(key, batch, train).examples, batch)
    batch, own = batch._replace(image=latents), average and average["diffusion"]
    return self.inner.loss(
      params["diffusion"], loss_state, key, batch, train=train, average=own, batch_mean=batch_mean
    )

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    samples = self.inner.sample(params["diffusion"], keys, condition)
    return samples._replace(images=self.decode(params, samples.images))

  def trajectory(
    self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL
  ) -> Float[Array, "S N H W C"]:
    path = self.inner.trajectory(params["diffusion"], keys, condition)
    return jax.lax.map(lambda latents: self.decode(params, latents), path)

  def loss_by_log_snr(self, params: Params, keys: Keys, batch: Batch) -> SpectrumEstimate:
    latents = batch._replace(image=self._draw(params, keys, batch))
    return self.inner.loss_by_log_snr(params["diffusion"], keys, latents)

  def encode(self, params: Params, key: Key, batch: Batch) -> Float[Array, "B h w c"]:
    return self._draw(params, rng.example_keys(key, batch.index), batch)

  def decode(self, params: Params, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
    """Return the mean of p(x | z) for z = latents / scale."""
    return self.observation.mean(self._raw(params, latents))

  def _autoencoder(self, params: Params) -> Params:
    """Return the autoencoder's parameters in the structure of its networks."""
    shapes = jax.eval_shape(self.networks.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return ravel_pytree(zeros)[1](jax.lax.stop_gradient(params["autoencoder"]))

  def _scale(self, params: Params) -> Float[Array, ""]:
    return jax.lax.stop_gradient(params["latent_scale"])

  def _posterior(self, params: Params, batch: Batch) -> tuple[Array, Array]:
    """Return mean and log-variance per example; encode unless the batch has them already."""
    if batch.image.shape[1:] == self.spec.shape:
      x = from_levels(batch.image, self.spec.num_levels)
      return self.networks.encode(self._autoencoder(params), x)
    mean, log_var = jnp.split(jnp.asarray(batch.image), 2, axis=-1)
    return mean, log_var

  def _draw(self, params: Params, keys: Keys, batch: Batch) -> Float[Array, "B h w c"]:
    """Draw one s = scale z, z ~ q(z | x), per example."""
    mean, log_var = self._posterior(params, batch)
    noise = rng.normal(rng.stream(keys, Stream.POSTERIOR), mean.shape[1:])
    return self._scale(params) * (mean + jnp.exp(0.5 * log_var) * noise)

  def _raw(self, params: Params, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W P"]:
    return self.networks.decode(self._autoencoder(params), latents / self._scale(params))

  def _bound(self, prior: Likelihood, params: Params, keys: Keys, batch: Batch) -> Estimate:
    """Return the bound on the images, with the likelihood `prior` as log p(z)."""
    x = from_levels(batch.image, self.spec.num_levels)
    mean, log_var = self._posterior(params, batch)
    latents = self._draw(params, keys, batch)
    z, raw = latents / self._scale(params), self._raw(params, latents)
    num_latents = math.prod(z.shape[1:])
    bound = prior(params["diffusion"], keys, batch._replace(image=latents))
    density = bound.bits_per_dim * num_latents * math.log(2)
    nats = {
      "reconstruction": -self.observation.log_prob(raw, x, self.spec.num_levels),
      "posterior": jnp.sum(gaussian_log_prob(z, mean, 0.5 * log_var), axis=(1, 2, 3)),
      "prior": density - num_latents * jnp.log(self._scale(params)),
    }
    bits = {n: nats_to_bits_per_dim(v, self.spec.num_dims) for n, v in nats.items()}
    return Estimate(sum(bits.values(), start=jnp.zeros(len(x))), bits)


def flatten(params: Params) -> Float[np.ndarray, "P"]:
  """Return an autoencoder's parameters as the vector that `LatentDiffusion` stores."""
  leaves = [sharding.fetch(jnp.asarray(leaf)).ravel() for leaf in jax.tree.leaves(params)]
  return np.concatenate(leaves).astype(np.float32)
