"""Check each bits/dim estimator of a diffusion model on Gaussian data, denoised exactly.

The exact value is the entropy of the data. An estimator that declares `exact` must match it; one
that declares `upper_bound` must not fall below it. DDPM's bound has its own closed form.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.rows import Row, audit_entries, failure
from diffusion_jax.likelihood import (
  DIFFUSION_LIKELIHOODS,
  ContinuousBound,
  Likelihood,
  VariationalBound,
)
from diffusion_jax.models import NOISE_SCHEDULES
from diffusion_jax.processes import PROCESSES, DiscreteVP, LinearLogSNR, Process
from diffusion_jax.types import Examples

NUM = 200
PLACES = ("linear_vp", "cosine_vp", "vp", "sub_vp", "cosine", "linear_log_snr", "edm", "flow")
END_TOLERANCE = 2e-3
"""Tolerance in bits/dim: processes end slightly before pure data and pure noise."""

ROUNDING = 1e-4
"""Tolerance in bits/dim for the mean of a hundred float32 terms with six digits each."""


def audit_likelihoods(registry: Mapping[str, Any] = DIFFUSION_LIKELIHOODS) -> Iterator[Row]:
  """Yield the rows of every registered estimator on each process that it supports."""
  yield from audit_entries(registry, Likelihood, "an estimator", _rows)


def _rows(name: str, config: Any) -> Iterator[Row]:
  estimator = config()
  if estimator.estimates not in ("exact", "upper_bound"):
    reason = f"estimates={estimator.estimates!r} must be 'exact' or 'upper_bound'"
    yield failure(name, f"it does not declare what it is: {reason}")
    return
  served = {n: PROCESSES[n]() for n in PLACES}
  for process_name, process in served.items():
    if estimator.serves(process):
      yield _row(f"{name} on {process_name}", estimator, process)
  if config is ContinuousBound:
    yield from (_learned(name, estimator, kind) for kind in NOISE_SCHEDULES)
  if config is VariationalBound:
    yield from (_ddpm(variance) for variance in ("fixed_small", "fixed_large", "learned"))


def _measure(estimator: Likelihood, process: Process) -> tuple[float, float]:
  """Return the mean bits/dim over the data and its standard error.

  The exact value of each image is subtracted, so the variation between images does not count.
  """
  model, images = oracles.gaussian_denoiser(process), oracles.gaussian_images(NUM)
  run = jax.jit(lambda keys, x0: estimator.estimate(model, Examples(x0), keys).bits_per_dim)
  above, error = oracles.mean_and_error(
    np.float64(run(oracles.keys(NUM), images)) - oracles.exact_bits(images)
  )
  return oracles.entropy_bits() + above, error


def _row(entry: str, estimator: Any, process: Process) -> Row:
  fields = {f.name for f in dataclasses.fields(estimator)}
  if "clip" in fields:  # Gaussian data exceed [-1, 1]
    estimator = dataclasses.replace(estimator, clip=False)
  measured, error = _measure(estimator, process)
  relation = "equal" if estimator.estimates == "exact" else "at_least"
  expected = oracles.entropy_bits()
  return Row(entry, "bits/dim", expected, measured, error, END_TOLERANCE, relation)


def _learned(name: str, estimator: Any, kind: str) -> Row:
  """Compare two schedules with the same endpoints and draws; only the path between differs."""
  fixed = LinearLogSNR()
  config = NOISE_SCHEDULES[kind](-fixed.log_snr_max, -fixed.log_snr_min)
  process = config.bind(config.init(jax.random.key(0)))
  expected, measured = (_measure(estimator, p)[0] for p in (fixed, process))
  quantity = "bits/dim, those of linear_log_snr"
  return Row(f"{name} on {kind}", quantity, expected, measured, None, ROUNDING)


def _ddpm(variance: Any) -> Row:
  """Compare DDPM's bound for T = 1000 linear betas with the sum of its KLs in closed form."""
  process = PROCESSES["linear_vp"]()
  measured, error = _measure(VariationalBound(variance, clip=False), process)
  if variance == "learned":
    expected = learned_bound_bits(process)
  else:
    large = variance == "fixed_large"
    expected = np.mean([ddpm_bound_bits(process, v**0.5, large) for v in oracles.VARIANCES])
  return Row(
    f"vlb, {variance}, on linear_vp", "bits/dim by its KLs", float(expected), measured, error
  )


def ddpm_bound_bits(process: DiscreteVP, std: float, large: bool) -> float:
  """Return the bound for N(0, std^2) data and the exact denoiser, in bits/dim.

  KL_t = [ln(s / p) + (p + c^2 m) / s - 1] / 2 with the model's variance s, the posterior's p, its
  mean's coefficient c of x0, and m = Var(x0 | x_t); both variances at t = 1 are those of t = 2.
  """
  now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
  beta = 1 - now / before
  posterior = beta * (1 - before) / (1 - now)
  posterior[0] = posterior[1]
  model = np.append(posterior[0], beta[1:]) if large else posterior
  left = std**2 * (1 - now) / (now * std**2 + 1 - now)
  coefficient = np.sqrt(before) * beta / (1 - now)
  kl = 0.5 * (np.log(model / posterior) + (posterior + coefficient**2 * left) / model - 1)[1:]
  prior = 0.5 * (now[-1] * std**2 - now[-1] - np.log1p(-now[-1]))
  decoder = 0.5 * (np.log(2 * math.pi * model[0]) + left[0] / model[0])
  return float((prior + kl.sum() + decoder) / math.log(2))


def learned_bound_bits(process: DiscreteVP) -> float:
  """Return the lowest bound in bits/dim for a mean and a variance per dimension.

  With the variances s of `oracles.best_variances` KL_t = ln(s / p) / 2 in each dimension, and the
  reconstruction is (ln(2 pi s) + 1) / 2 at t = 1.
  """
  now, before = process.alphas_cumprod[1:], process.alphas_cumprod[:-1]
  posterior = ((1 - now / before) * (1 - before) / (1 - now))[1:, None]
  best = oracles.best_variances(process).reshape(len(now), -1)
  kl = 0.5 * np.log(best[1:] / posterior).sum(0)
  prior = 0.5 * (now[-1] * oracles.VARIANCES.mean() - now[-1] - np.log1p(-now[-1]))
  decoder = 0.5 * (np.log(2 * math.pi * best[0]) + 1)
  return float((prior + kl + decoder).mean() / math.log(2))
