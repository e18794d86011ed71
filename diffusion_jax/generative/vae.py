"""A variational autoencoder: networks, observation model and ELBO as one Generative."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.distributions import gaussian_log_prob, nats_to_bits_per_dim
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.likelihood import VAE_LIKELIHOODS
from diffusion_jax.losses import VAE_LOSSES, ElboTerms, elbo_terms
from diffusion_jax.models import DECODERS, VAES, VAENetworks
from diffusion_jax.types import Batch, Estimate, Generative, ImageSpec, Key, Keys, Params, Samples


@dataclasses.dataclass(frozen=True)
class VAE:
  """Config of the wiring; everything it needs stands in its sections."""

  sections: ClassVar[Mapping[str, Any]] = {
    "model": VAES,
    "decoder": DECODERS,
    "loss": VAE_LOSSES,
    **VAE_LIKELIHOODS,
  }

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> Generative:
    """Wires the built sections into a Generative.

    Args:
      parts: section name -> instance, for each of `sections`.
      spec: of the data set.

    Raises:
      ValueError: parts that do not fit each other or the data.
    """
    decoder = parts["decoder"]
    counted_levels = decoder.num_levels(spec.num_levels)
    networks = parts["model"].create(spec, decoder.num_outputs(spec.channels))
    wiring = _Wiring(spec, networks, decoder, parts["loss"])
    estimators = [parts[name] for name in VAE_LIKELIHOODS]
    needs_mean_kl = getattr(parts["loss"], "needs_mean_kl", False)
    return Generative(
      init=lambda key: (networks.init(key), {}),
      loss=lambda *args: _loss(wiring, *args),
      sample=lambda *args: _sample(wiring, *args),
      likelihoods={
        "elbo": lambda *args: _elbo(wiring, *args),
        **{e.figure_name: functools.partial(_weighted, wiring, e) for e in estimators},
      },
      encode=lambda *args: _encode(wiring, *args),
      decode=lambda params, latents: decoder.mean(networks.decode(params, latents)),
      num_levels=counted_levels,
      statistics=(lambda *args: _kl(wiring, *args)) if needs_mean_kl else None,
    )


class _Wiring(NamedTuple):
  spec: ImageSpec
  networks: VAENetworks
  decoder: Any
  loss: Any


def _terms(
  wiring: _Wiring, params: Params, keys: Keys, batch: Batch, dropout_key=None
) -> ElboTerms:
  x = from_levels(batch.image, wiring.spec.num_levels)
  mean, log_var = wiring.networks.encode(params, x, dropout_key)
  z = _posterior_sample(keys, mean, log_var)
  raw = wiring.networks.decode(params, z, dropout_key)
  log_prob = wiring.decoder.log_prob(raw, x, wiring.spec.num_levels)
  return elbo_terms(log_prob, _flat(mean), _flat(log_var))


def _flat(z: Float[Array, "B ..."]) -> Float[Array, "B D"]:
  return z.reshape(len(z), -1)


def _posterior_sample(keys: Keys, mean: Array, log_var: Array) -> Float[Array, "B ..."]:
  return mean + jnp.exp(0.5 * log_var) * rng.normal(keys, mean.shape[1:])


def _split_key(key: Key, batch: Batch, train: bool) -> tuple[Keys, Key | None]:
  """The examples' keys, and that of dropout, another for each microbatch."""
  example_key, dropout_key = jax.random.split(key)
  dropout_key = jax.random.fold_in(dropout_key, batch.index[0])
  return rng.example_keys(example_key, batch.index), dropout_key if train else None


def _kl(wiring: _Wiring, params: Params, key: Key, batch: Batch, train: bool) -> Array:
  """KL(q(z|x) || p(z)) of each latent dimension [B D], as `_loss` finds it, without the decoder."""
  x = from_levels(batch.image, wiring.spec.num_levels)
  mean, log_var = wiring.networks.encode(params, x, _split_key(key, batch, train)[1])
  return elbo_terms(jnp.zeros(len(x)), _flat(mean), _flat(log_var)).kl


def _loss(
  wiring: _Wiring, params, aux, key, batch: Batch, train: bool, mean_kl: Array | None = None
):
  keys, dropout_key = _split_key(key, batch, train)
  terms = _terms(wiring, params, keys, batch, dropout_key)
  metrics = {
    "bits_per_dim": nats_to_bits_per_dim(terms.negative_elbo, wiring.spec.num_dims),
    "reconstruction_nats": terms.reconstruction,
    "kl_nats": jnp.sum(terms.kl, axis=-1),
  }
  whole = () if mean_kl is None else (mean_kl,)
  return wiring.loss(terms, batch.mask, *whole), metrics, aux


def _elbo(wiring: _Wiring, params: Params, keys: Keys, batch: Batch) -> Estimate:
  terms = _terms(wiring, params, keys, batch)
  num_dims = wiring.spec.num_dims
  parts = {
    "reconstruction": nats_to_bits_per_dim(terms.reconstruction, num_dims),
    "kl": nats_to_bits_per_dim(jnp.sum(terms.kl, axis=-1), num_dims),
  }
  return Estimate(nats_to_bits_per_dim(terms.negative_elbo, num_dims), parts)


def _weighted(
  wiring: _Wiring, estimator: Any, params: Params, keys: Keys, batch: Batch
) -> Estimate:
  """An estimate from importance weights p(x, z) / q(z | x); x is encoded once."""
  x = from_levels(batch.image, wiring.spec.num_levels)
  mean, log_var = wiring.networks.encode(params, x)

  def log_weight(keys: Keys) -> Float[Array, "B"]:
    z = _posterior_sample(keys, mean, log_var)
    log_prob = wiring.decoder.log_prob(wiring.networks.decode(params, z), x, wiring.spec.num_levels)
    prior = gaussian_log_prob(z, jnp.zeros_like(z), jnp.zeros_like(z))
    posterior = gaussian_log_prob(z, mean, 0.5 * log_var)
    return log_prob + jnp.sum(_flat(prior - posterior), axis=-1)

  return estimator(log_weight, keys, wiring.spec.num_dims)


def _sample(wiring: _Wiring, params: Params, keys: Keys, labels=None) -> Samples:
  """Images of the prior: the mean of p(x | z) for z ~ N(0, I)."""
  del labels
  z = rng.normal(keys, wiring.networks.latent_shape)
  return Samples(wiring.decoder.mean(wiring.networks.decode(params, z)), 1)


def _encode(wiring: _Wiring, params: Params, key, batch: Batch) -> Float[Array, "B ..."]:
  x = from_levels(batch.image, wiring.spec.num_levels)
  mean, log_var = wiring.networks.encode(params, x)
  return _posterior_sample(rng.example_keys(key, batch.index), mean, log_var)
