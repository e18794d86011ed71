"""Edit given images with deterministic samplers: encode, interpolate, inpaint."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffusion_jax.core import rng
from diffusion_jax.core.broadcasting import dims, expand
from diffusion_jax.processes import Process
from diffusion_jax.samplers import linear
from diffusion_jax.samplers.base import Data, Denoise, initial_states, keys_per_example
from diffusion_jax.samplers.grids import backwards
from diffusion_jax.samplers.linear import LinearSampler, Replace, Tableau
from diffusion_jax.types import Key, Keys, Samples


def encode(denoise: Denoise, process: Process, x0: Data, sampler: LinearSampler) -> Data:
  """Return the noise x_1 that the sampler maps to these examples, by its own steps backwards.

  The path starts at alpha x0, where the grid's noise is least, and solves the same ODE, so that
  `decode` returns the images up to the error of the solver. With DDIM this is DDIM inversion: Song
  et al. 2021 (arXiv 2010.02502), section 4.3. Estimates are not clipped.

  Args:
    denoise: (xt, t) -> x0 estimate.
    process: process of the denoiser.
    x0: images in [-1, 1].
    sampler: a deterministic fixed-step sampler.

  Raises:
    ValueError: the sampler draws noise.
  """
  _check_deterministic(sampler)
  grid = backwards(process, sampler.grid(process))
  x = jnp.asarray(grid.alpha[0], x0.dtype) * x0
  return linear.integrate(sampler.tableau(process, grid), denoise, x).images


def decode(denoise: Denoise, process: Process, x1: Data, sampler: LinearSampler) -> Data:
  """Return the examples that the deterministic sampler generates from the noise x_1.

  Raises:
    ValueError: the sampler draws noise.
  """
  _check_deterministic(sampler)
  return linear.integrate(sampler.tableau(process), denoise, x1, clip=sampler.clip).images


def interpolate(first: Data, second: Data, fraction: Float[Array | np.ndarray, "K"]) -> Array:
  """Interpolate noise spherically, each pair of examples along its own great circle.

  sin((1 - w) angle) / sin(angle) first + sin(w angle) / sin(angle) second; a straight line if the
  two are parallel. Source: Shoemake 1985 (doi 10.1145/325334.325242); for diffusion models Song et
  al. 2021 (arXiv 2010.02502), appendix D.5.

  Args:
    first, second: noise [N ...], drawn as x_1 or from `encode`.
    fraction: weight w of each of the K points, 0 = first, 1 = second.

  Returns:
    Noise [K N ...].
  """
  axes = dims(first)
  norms = [jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (first, second)]
  cosine = (first * second).sum(axes, keepdims=True) / (norms[0] * norms[1])
  angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
  w = expand(jnp.asarray(fraction, first.dtype), first[None])
  parallel = jnp.sin(angle) < 1e-4
  sine = jnp.where(parallel, 1.0, jnp.sin(angle))
  a = jnp.where(parallel, 1.0 - w, jnp.sin((1.0 - w) * angle) / sine)
  b = jnp.where(parallel, w, jnp.sin(w * angle) / sine)
  return a * first + b * second


def inpaint(
  denoise: Denoise,
  process: Process,
  key: Key | Keys,
  known: Data,
  is_known: Bool[Array, "N ..."],
  sampler: LinearSampler,
) -> Samples:
  """Draw examples with given known dimensions, by replacing these at every noise level.

  After each step the known pixels become alpha_t x_0 + sigma_t z with fresh z. This works with any
  model, but it does not sample the exact conditional distribution: the unknown pixels depend on the
  known ones only through the denoiser. Source: Song et al. 2021 (arXiv 2011.13456), appendix I.2;
  it is RePaint (Lugmayr et al. 2022, arXiv 2201.09865) without resampling.

  Args:
    denoise: (xt, t) -> x0 estimate.
    process: process of the denoiser.
    key: one key, or one per example.
    known: images in [-1, 1]; unknown pixels may have any value.
    is_known: True for known pixels.
    sampler: any fixed-step sampler.
  """
  tableau, keys = sampler.tableau(process), keys_per_example(key, len(known))
  replace = known_again(process, tableau, keys, known, is_known, sampler.grid(process).to_data)
  x = initial_states(process, keys, known.shape[1:]).astype(known.dtype)
  return linear.integrate(tableau, denoise, x, keys, sampler.clip, replace=replace)


def known_again(
  process: Process,
  tableau: Tableau,
  keys: Keys,
  known: Data,
  is_known: Bool[Array | np.ndarray, "N ..."],
  to_data: bool,
) -> Replace:
  """Return the `replace` of `linear.integrate` that sets known dimensions after each row.

  Args:
    process: process of the denoiser.
    tableau: the sampler's coefficients.
    keys: one per example.
    known: examples in [-1, 1]; unknown dimensions may have any value.
    is_known: True for known dimensions.
    to_data: True if the last state is data, which becomes exactly `known` there.
  """
  times = jnp.append(jnp.asarray(tableau.t, known.dtype), jnp.asarray(tableau.end, known.dtype))
  alpha, sigma = process.alpha_sigma(times)
  if to_data:
    alpha, sigma = alpha.at[-1].set(1.0), sigma.at[-1].set(0.0)
  noise_keys = rng.stream(keys, rng.Stream.INPAINTING)

  def replace(x, step):
    z = rng.normal(rng.numbered(noise_keys, step), known.shape[1:])
    there = alpha[step] * known + sigma[step] * z.astype(known.dtype)
    return jnp.where(is_known, there, x)

  return replace


def _check_deterministic(sampler: Any) -> None:
  if sampler.stochastic:
    raise ValueError(
      f"{sampler} draws noise, so that images have no one encoding; use `sampler.name=ddim` "
      "with `sampler.eta=0`, or heun or unipc"
    )
