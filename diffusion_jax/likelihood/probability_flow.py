"""Exact likelihood of a continuous-time diffusion model, by its probability-flow ODE.

dx/dt = alpha' D(x, t) + sigma' (x - alpha D(x, t)) / sigma carries the data at t0 = min_time to the
prior at t = 1, and log p(x_t0) = log p_1(x_1) + integral of the divergence of dx/dt over t.
Sources: Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.2; Chen et al. 2018.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion_jax.core import distributions, rng
from diffusion_jax.core.broadcasting import sum_dims
from diffusion_jax.core.rng import Stream
from diffusion_jax.kernels.attention import plain_only
from diffusion_jax.likelihood.base import LikelihoodBase
from diffusion_jax.likelihood.dequantization import Dequantization, dequantize
from diffusion_jax.processes import Denoiser, Process, first_time
from diffusion_jax.types import Condition, Estimate, Examples, Keys

Example = Float[Array, "..."]


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(LikelihoodBase):
  """The likelihood by the probability-flow ODE of the network, without guidance.

  Pixel levels are dequantised, which makes the result an upper bound of the bits of the levels, see
  `dequantization`; the gap depends on the noise.

  Attributes:
    rtol: relative tolerance of the adaptive solver (Dormand and Prince's, order 5) per image.
    atol: absolute tolerance of the adaptive solver (Dormand and Prince's, order 5) per image.
    trace: trace of the Jacobian: `exact` costs one evaluation per dimension and suits small images;
      `hutchinson` is an unbiased estimate from `probes` random directions (Grathwohl et al. 2019,
      arXiv 1810.01367), constant along the path.
    probes: number of random directions, of Rademacher numbers.
    dequantization: noise over a level's width: `uniform`, or `truncated_normal` with the process's
      own scale at its first time, which is tighter for models that know their levels.
    max_steps: largest number of steps; a solution that needs more fails.
  """

  rtol: float = 1e-5
  atol: float = 1e-5
  trace: Literal["exact", "hutchinson"] = "hutchinson"
  probes: int = 1
  dequantization: Dequantization = "uniform"
  max_steps: int = 4096

  description = "likelihood by the probability-flow ODE"

  def __post_init__(self):
    if self.rtol <= 0 or self.atol <= 0:
      raise ValueError(f"rtol={self.rtol}, atol={self.atol} must be positive")
    if self.probes < 1 or self.max_steps < 1:
      raise ValueError(f"probes={self.probes}, max_steps={self.max_steps} must be at least 1")

  estimates = "exact"

  @property
  def figure_name(self) -> str:
    """Return "probability_flow"."""
    return "probability_flow"

  def serves(self, process: Process) -> bool:
    """Return True in continuous time, where the ODE exists."""
    return process.num_timesteps is None

  def estimate(self, model: Denoiser, examples: Examples, keys: Keys) -> Estimate:
    """Return bits/dim of each example; arguments as in `Likelihood`.

    Returns:
      bits_per_dim [B] and its terms "prior", "divergence" and "dequantization" (log2 of the noise's
      density; 0 for float data), which add up to it.
    """
    self.check(model, examples, keys, "a process in continuous time; use VariationalBound")
    process, x0 = model.process, examples.x0
    num_dims = math.prod(x0.shape[1:])
    noisy = dequantize(self.dequantization, process, keys, x0, examples.num_levels)

    def one(x, key, condition):
      return self._solve(_velocity(model, condition), process, x, self._probes(key, x.shape))

    condition = jax.tree.map(jnp.asarray, examples.condition)
    x1, divergence = jax.vmap(one)(noisy.x, rng.stream(keys, Stream.PROBES), condition)
    scale = jnp.full_like(x1, math.log(process.prior_std))
    prior = sum_dims(distributions.gaussian_log_prob(x1, jnp.zeros_like(x1), scale))
    nats = {"prior": -prior, "divergence": -divergence, "dequantization": noisy.log_q}
    bits = {n: distributions.nats_to_bits_per_dim(v, num_dims) for n, v in nats.items()}
    return Estimate(sum(bits.values(), start=jnp.zeros(len(x0))), bits)

  def _probes(self, key, shape: tuple[int, ...]) -> Float[Array, "P ..."] | None:
    if self.trace == "exact":
      return None
    return jax.random.rademacher(key, (self.probes, *shape), jnp.float32)

  def _solve(
    self, velocity: Callable[[Array, Example], Example], process: Process, x: Example, probes: Any
  ) -> tuple[Example, Float[Array, ""]]:
    """Return x at t = 1 and the integral of the divergence."""
    import diffrax  # imported here: it takes half a second that other estimators do not need

    def field(t, state, _):
      return divergence_of(lambda x: velocity(t, x), state[0], probes)

    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(field),
      diffrax.Dopri5(),
      t0=first_time(process),
      t1=1.0,
      dt0=None,
      y0=(x, jnp.zeros(())),
      stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
      max_steps=self.max_steps,
    )
    x1, divergence = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    return x1[0], divergence[0]


def divergence_of(
  function: Callable[[Example], Example], x: Example, probes: Float[Array, "P ..."] | None
) -> tuple[Example, Float[Array, ""]]:
  """Return the function's value and the trace of its Jacobian.

  Args:
    function: maps examples to examples.
    x: point of evaluation.
    probes: directions of Hutchinson's estimate, E[e^T J e] with E[e e^T] = I; None: exact, by one
      directional derivative per dimension.
  """
  if probes is None:
    probes = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    mean = 1.0
  else:
    mean = 1.0 / len(probes)
  with plain_only():  # a fused attention has no forward-mode derivative
    value, derivative = jax.linearize(function, x)
  return value, mean * jnp.sum(jax.vmap(lambda e: jnp.vdot(e, derivative(e)))(probes))


def _velocity(model: Denoiser, condition: Condition):
  """Return (t, x) -> dx/dt of one example."""
  condition = jax.tree.map(lambda c: c[None], condition)

  def velocity(t: Array, x: Example) -> Example:
    one = jnp.ones_like(t)
    (alpha, sigma), (d_alpha, d_sigma) = jax.jvp(model.process.alpha_sigma, (t,), (one,))
    x0 = model.denoise(x[None], t[None], condition)[0]
    return d_alpha * x0 + d_sigma * (x - alpha * x0) / sigma

  return velocity
