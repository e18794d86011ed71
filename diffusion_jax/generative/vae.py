"""A variational autoencoder: networks, observation model and ELBO as one model."""

import dataclasses
import functools
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.distributions import gaussian_log_prob, nats_to_bits_per_dim
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.core.rng import Stream
from diffusion_jax.generative.base import GenerativeConfigBase, ModelBase, loss_keys
from diffusion_jax.likelihood import (
  VAE_LIKELIHOODS,
  DescribedBase,
  VAELikelihood,
)
from diffusion_jax.likelihood.outside import likelihoods_of
from diffusion_jax.losses import VAE_LOSSES, ElboTerms, elbo_terms
from diffusion_jax.models import DECODERS, VAES, VAENetworks, created_networks
from diffusion_jax.parallel.spread import gathering
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
)


@dataclasses.dataclass(frozen=True)
class EvidenceBound(DescribedBase):
  """Declarations of the ELBO, which every VAE measures by itself."""

  figure_name = "elbo"
  description = "evidence lower bound"


@dataclasses.dataclass(frozen=True)
class VAE(GenerativeConfigBase):
  """A variational autoencoder; all choices are in its sections."""

  description: ClassVar[str] = "variational autoencoder"
  sections: ClassVar[ChainMap[str, Any]] = ChainMap(
    {"model": VAES, "decoder": DECODERS, "loss": VAE_LOSSES}, VAE_LIKELIHOODS
  )

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> "VAEModel":
    """Return the model made of the config's sections.

    Args:
      parts: section name -> instance, for each of `sections`.
      spec: shape of the data.

    Raises:
      ValueError: parts that do not fit each other or the data.
    """
    decoder = parts["decoder"]
    counted_levels = decoder.num_levels(spec.num_levels)
    num_outputs = decoder.num_outputs(spec.channels)
    networks = gathering_networks(created_networks(VAENetworks, parts["model"], spec, num_outputs))
    estimators = likelihoods_of(VAE_LIKELIHOODS, parts)
    return VAEModel(spec, networks, decoder, parts["loss"], estimators, counted_levels)


@dataclasses.dataclass(frozen=True, eq=False)
class VAEModel(ModelBase):
  """An encoder and a decoder with their loss and likelihood estimators.

  Attributes:
    spec: shape of the data.
    networks: networks of q(z | x) and of the raw parameters of p(x | z).
    decoder: the observation model p(x | z).
    elbo_loss: the loss, computed from the terms of the ELBO.
    estimators: estimators from importance weights, by name.
    counted_levels: see `num_levels`.
  """

  kind = "vae"

  spec: ImageSpec
  networks: VAENetworks
  decoder: Any
  elbo_loss: Any
  estimators: Mapping[str, Any]
  counted_levels: int | None

  @property
  def capabilities(self) -> frozenset[str]:
    return frozenset({"encode"})

  @property
  def num_levels(self) -> int | None:
    return self.counted_levels

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    weighted = {n: functools.partial(self._weighted, e) for n, e in self.estimators.items()}
    return {"elbo": self._elbo, **weighted}

  @property
  def described_likelihoods(self) -> Mapping[str, Any]:
    return {"elbo": EvidenceBound(), **self.estimators}

  @property
  def needs_batch_mean(self) -> bool:
    return self.elbo_loss.needs_mean_kl

  def init(self, key: Key) -> tuple[Params, Aux]:
    return self.networks.init(rng.stream(key, Stream.NETWORK)), {}

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
    del average
    keys = loss_keys(key, batch, train)
    terms = self._terms(params, keys.examples, batch, keys.dropout)
    metrics = {
      "bits_per_dim": nats_to_bits_per_dim(terms.negative_elbo, self.spec.num_dims),
      "reconstruction_nats": terms.reconstruction,
      "kl_nats": jnp.sum(terms.kl, axis=-1),
    }
    whole = () if batch_mean is None else (batch_mean,)
    return LossOutput(self.elbo_loss(terms, batch.mask, *whole), metrics, loss_state)

  def batch_statistics(
    self, params: Params, key: Key, batch: Batch, *, train: bool
  ) -> Float[Array, "B D"]:
    """Return KL(q(z|x) || p(z)) of each latent dimension, as in `loss`, without the decoder."""
    x = from_levels(batch.image, self.spec.num_levels)
    mean, log_var = self.networks.encode(params, x, loss_keys(key, batch, train).dropout)
    return elbo_terms(jnp.zeros(len(x)), _flat(mean), _flat(log_var)).kl

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    """Return images of the prior: the mean of p(x | z) for z ~ N(0, I)."""
    del condition
    z = rng.normal(rng.stream(keys, Stream.START), self.networks.latent_shape)
    return Samples(self.decode(params, z), 1)

  def encode(self, params: Params, key: Key, batch: Batch) -> Float[Array, "B ..."]:
    x = from_levels(batch.image, self.spec.num_levels)
    mean, log_var = self.networks.encode(params, x)
    return _posterior_sample(rng.example_keys(key, batch.index), mean, log_var)

  def decode(self, params: Params, latents: Float[Array, "B ..."]) -> Float[Array, "B H W C"]:
    """Return the mean of p(x | z)."""
    return self.decoder.mean(self.networks.decode(params, latents))

  def _terms(self, params: Params, keys: Keys, batch: Batch, dropout_key=None) -> ElboTerms:
    x = from_levels(batch.image, self.spec.num_levels)
    mean, log_var = self.networks.encode(params, x, dropout_key)
    z = _posterior_sample(keys, mean, log_var)
    raw = self.networks.decode(params, z, dropout_key)
    log_prob = self.decoder.log_prob(raw, x, self.spec.num_levels)
    return elbo_terms(log_prob, _flat(mean), _flat(log_var))

  def _elbo(self, params: Params, keys: Keys, batch: Batch) -> Estimate:
    terms = self._terms(params, keys, batch)
    num_dims = self.spec.num_dims
    in_bits = {
      "reconstruction": nats_to_bits_per_dim(terms.reconstruction, num_dims),
      "kl": nats_to_bits_per_dim(jnp.sum(terms.kl, axis=-1), num_dims),
    }
    return Estimate(nats_to_bits_per_dim(terms.negative_elbo, num_dims), in_bits)

  def _weighted(
    self, estimator: VAELikelihood, params: Params, keys: Keys, batch: Batch
  ) -> Estimate:
    """Return an estimate from importance weights p(x, z) / q(z | x); x is encoded once."""
    x = from_levels(batch.image, self.spec.num_levels)
    mean, log_var = self.networks.encode(params, x)

    def log_weight(keys: Keys) -> Float[Array, "B"]:
      z = _posterior_sample(keys, mean, log_var)
      log_prob = self.decoder.log_prob(self.networks.decode(params, z), x, self.spec.num_levels)
      prior = gaussian_log_prob(z, jnp.zeros_like(z), jnp.zeros_like(z))
      posterior = gaussian_log_prob(z, mean, 0.5 * log_var)
      return log_prob + jnp.sum(_flat(prior - posterior), axis=-1)

    return estimator.estimate(log_weight, keys, self.spec.num_dims)


def gathering_networks(networks: VAENetworks) -> VAENetworks:
  """Return an autoencoder's networks that gather split parameters where they use them."""
  return VAENetworks(
    networks.init,
    gathering(networks.encode),
    gathering(networks.decode),
    networks.latent_shape,
  )


def _flat(z: Float[Array, "B ..."]) -> Float[Array, "B D"]:
  return z.reshape(len(z), -1)


def _posterior_sample(keys: Keys, mean: Array, log_var: Array) -> Float[Array, "B ..."]:
  noise = rng.normal(rng.stream(keys, Stream.POSTERIOR), mean.shape[1:])
  return mean + jnp.exp(0.5 * log_var) * noise
