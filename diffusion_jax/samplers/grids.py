"""Time grids: the times at which a sampler evaluates the network, and the endpoint.

Computed on the host in NumPy float64; in jax.numpy if the process returns JAX arrays, as one with a
learned schedule does.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.processes import Process, namespace

Values = Float[Array | np.ndarray, "..."]
Spacing = Literal[
  "auto", "leading", "trailing", "linspace", "uniform", "quadratic", "karras", "log_snr"
]
Final = Literal["data", "min_time"]

BY_STEP = ("leading", "trailing", "linspace")
LEAST_LOG_SNR = -10.0
"""Log-SNR where even steps begin on a process with steps that ends below it.

Below it x_t is nearly pure noise, and the first step crosses that range. The authors of DPM-Solver
begin at -9.6 for cosine betas.
"""
SMALLEST_RATIO = 1e-3
"""sigma / alpha at which a path starts or ends if the process itself reaches 0.

It is an eighth of a grey level of 256.
"""

AUTO = "on T steps: trailing for ancestral and ddim, log_snr for the others"
"""Meaning of auto, stored with evaluations that depend on it; once it was always trailing."""


class Grid(NamedTuple):
  """S steps between S + 1 points, from the noisiest on.

  Attributes:
    t: times; the network is not evaluated at the last one, and 0 is the data.
    alpha, sigma: coefficients of each point; 1 and 0 for the data.
    half_log_snr: log(alpha / sigma), infinite at the data.
    to_data: True if the last point is the data.
  """

  t: Values
  alpha: Values
  sigma: Values
  half_log_snr: Values
  to_data: bool

  @property
  def num_steps(self) -> int:
    """Number of steps S."""
    return len(self.t) - 1

  @property
  def from_noise(self) -> bool:
    """True if alpha is 0 at the first point, as far as the host knows."""
    return namespace(self.alpha) is np and float(self.alpha[0]) == 0.0

  @property
  def to_noise(self) -> bool:
    """True if alpha is 0 at the last point, where a path backwards may end."""
    return namespace(self.alpha) is np and float(self.alpha[-1]) == 0.0


def make_grid(
  process: Process,
  num_steps: int,
  spacing: Spacing,
  final: Final,
  rho: float = 7.0,
  auto_by_step: Spacing = "log_snr",
) -> Grid:
  """Return the grid of a sampler.

  On a process with T steps, leading, trailing and linspace are those of `visited_steps`. The other
  spacings, on any process, have even steps from t = 1 to the process's min_time:
    uniform: in t. quadratic: in the square root of t.
    karras: in (sigma / alpha)^(1 / rho), Karras et al. 2022 (arXiv 2206.00364), equation 5.
    log_snr: in log(alpha^2 / sigma^2), Lu et al. 2022 (arXiv 2206.00927), section 3.3; on a process
      with steps from LEAST_LOG_SNR on.
  A process with steps uses the nearest of its steps. If several times have the same nearest step,
  they move to free neighbours, so that S evaluations stay S, for every S up to T.
  auto is `auto_by_step` on a process with steps; karras if alpha is always 1; uniform if alpha ends
  at 0, as on flow's straight paths; and log_snr for all other continuous ones. There, even times
  would make the last step so long in the log-SNR that multistep samplers extrapolate into nonsense
  (benchmarks/sampler_orders.py), although they suit ddim and euler slightly better.

  Args:
    process: any process.
    num_steps: number of steps S, at least 1.
    spacing: see above.
    final: "data": the last step goes from min_time to alpha 1, sigma 0; if min_time itself has no
      noise, it is this endpoint. "min_time": the last of the S steps ends there.
    rho: exponent of karras.
    auto_by_step: meaning of auto on a process with steps, which differs between samplers.

  Raises:
    ValueError: the process does not have such a grid.
  """
  if spacing == "auto":
    spacing = suitable_spacing(process, auto_by_step)
  last = process.alpha_sigma(np.asarray([process.min_time]))[1]
  noiseless = namespace(last) is np and float(last[0]) == 0.0
  adds_data = final == "data" and not noiseless
  _check(process, num_steps, spacing, adds_data)
  t = _times(process, spacing, adds_data, rho, num_steps)
  return points(process, t, to_data=adds_data or noiseless)


def points(process: Process, t: Values, to_data: bool) -> Grid:
  """Build a grid from decreasing times; a last time with sigma = 0 is the data point.

  Args:
    process: any process.
    t: times from the noisiest on; S of them if the data is still to be added, else S + 1.
    to_data: True if the path ends at the data.
  """
  alpha, sigma = process.alpha_sigma(t)
  xp = namespace(alpha, sigma)
  with np.errstate(divide="ignore", over="ignore"):
    half = 0.5 * process.log_snr(t)
  if xp is np and to_data and sigma[-1] == 0:
    t, alpha, sigma, half = t[:-1], alpha[:-1], sigma[:-1], half[:-1]
  if not to_data:
    return Grid(t, alpha, sigma, half, False)
  return Grid(_with(t, 0.0), _with(alpha, 1.0), _with(sigma, 0.0), _with(half, np.inf), True)


def _with(values: Values, end: float) -> Values:
  return namespace(values).append(values, np.asarray([end], values.dtype))


def suitable_spacing(process: Process, auto_by_step: Spacing = "log_snr") -> Spacing:
  """Return the meaning of "auto"; a learned schedule counts as variance-preserving.

  Args:
    process: any process.
    auto_by_step: the result for a process with steps.
  """
  if process.num_timesteps is not None:
    return auto_by_step
  alpha, _ = process.alpha_sigma(np.asarray([1.0]))
  if namespace(alpha) is not np:
    return "log_snr"
  if alpha[0] == 1.0:
    return "karras"
  return "uniform" if alpha[0] == 0.0 else "log_snr"


def backwards(process: Process, grid: Grid) -> Grid:
  """Return the same points in reverse order; `last_time` replaces the data point."""
  t = grid.t[:-1] if grid.to_data else grid.t
  low = last_time(process)
  if grid.to_data and namespace(t) is np and low < t[-1]:
    t = np.append(t, low)
  return points(process, t[::-1], to_data=False)


def last_time(process: Process) -> Any:
  """Return min_time, or the time with sigma / alpha = SMALLEST_RATIO if that has no noise."""
  _, sigma = process.alpha_sigma(np.asarray([process.min_time]))
  if namespace(sigma) is np and sigma[0] == 0:
    return process.time_of(np.asarray([-2.0 * np.log(SMALLEST_RATIO)]))[0]
  return process.min_time


def _check(process: Process, num_steps: int, spacing: Spacing, adds_data: bool) -> None:
  limit = process.num_timesteps
  if limit is not None and not 1 <= num_steps <= limit:
    raise ValueError(
      f"steps={num_steps} must be between 1 and the process's {limit}; e.g. `sampler.steps={limit}`"
    )
  if num_steps < 1:
    raise ValueError(f"steps={num_steps} must be at least 1; set `sampler.steps=50`")
  if limit is not None and num_steps + (not adds_data) > limit:
    fewer = f" or `sampler.steps={limit - 1}`" if limit > 1 else ""
    raise ValueError(
      f"steps={num_steps} with final=min_time needs {num_steps + 1} points, of which the process "
      f"has {limit}; set `sampler.final=data`{fewer}"
    )
  if limit is None and spacing in BY_STEP:
    raise ValueError(
      f"spacing={spacing} numbers the steps of a process that has none; set "
      "`sampler.spacing=auto`, or uniform, quadratic, karras or log_snr"
    )


def _times(
  process: Process, spacing: Spacing, adds_data: bool, rho: float, num_steps: int
) -> Values:
  """Return decreasing times of the process's own points; a single one is 1."""
  num_timesteps, num_points = process.num_timesteps, num_steps + (not adds_data)
  if num_timesteps is None:
    return _even(process, spacing, rho, num_points)
  if spacing == "trailing" and not adds_data:
    steps = np.append(visited_steps(num_timesteps, num_steps, spacing), 1)
  elif spacing in BY_STEP:
    steps = visited_steps(num_timesteps, num_points, spacing)
  else:
    steps = np.round(_even(process, spacing, rho, num_points) * num_timesteps).astype(np.int64)
  return _apart(steps, num_timesteps) / num_timesteps


def _apart(steps: Int[np.ndarray, "P"], num_timesteps: int) -> Int[np.ndarray, "P"]:
  """Move equal steps to the next free ones above, or below if T is reached.

  Args:
    steps: step numbers of 1..T in non-increasing order, at most T of them.
    num_timesteps: number of steps T.
  """
  i = np.arange(len(steps))
  above_next = np.maximum.accumulate((steps + i)[::-1])[::-1] - i
  return np.minimum(above_next, num_timesteps - i)


def _even(process: Process, spacing: Spacing, rho: float, num_points: int) -> Values:
  low = process.min_time
  if spacing == "uniform":
    return np.linspace(1.0, low, num_points)
  if spacing == "quadratic":
    return np.linspace(1.0, np.sqrt(low), num_points) ** 2
  return _even_in_noise(process, spacing, rho, num_points)


def _even_in_noise(process: Process, spacing: Spacing, rho: float, num_points: int) -> Values:
  """Return even times in a function of the log-SNR; the endpoints are exactly 1 and min_time."""
  log_snr = process.log_snr(np.asarray([1.0, process.min_time]))
  xp = namespace(log_snr)
  if xp is np and not np.isfinite(log_snr if spacing == "log_snr" else log_snr[0]).all():
    raise ValueError(
      f"spacing={spacing} needs a finite log-SNR at both ends, not {log_snr[0]} and {log_snr[1]}; "
      "set `sampler.spacing=uniform`"
    )
  if spacing == "log_snr":
    low = log_snr[0] if process.num_timesteps is None else max(log_snr[0], LEAST_LOG_SNR)
    inner = xp.linspace(low, log_snr[1], num_points)[1:-1]
  else:
    root = xp.exp(-0.5 * log_snr / rho)
    inner = -2.0 * rho * xp.log(xp.linspace(root[0], root[1], num_points)[1:-1])
  times = process.time_of(inner)
  one, low = (xp.asarray([end], times.dtype) for end in (1.0, process.min_time))
  return xp.concatenate([one, times, low])[:num_points]


def visited_steps(num_timesteps: int, num_steps: int, spacing: Spacing) -> Int[np.ndarray, "S"]:
  """Return steps n of 1..T from the noisiest down.

  With i = 0..S-1, in the literature's numbering from 0 (n - 1):
    leading: i floor(T / S); it starts at 0 and may stop short of T - 1.
    trailing: round(T - i T / S) - 1; it starts at T - 1 and stops short of 0.
    linspace: S numbers from 0 to T - 1, rounded: the respacing of Improved DDPM. A single one is
      T - 1.
  Source: Lin et al. 2024 (arXiv 2305.08891), table 2.

  Raises:
    ValueError: more steps than the process has, or none.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(
      f"steps={num_steps} must be between 1 and the process's {num_timesteps}; e.g. "
      f"`sampler.steps={num_timesteps}`"
    )
  i = np.arange(num_steps)
  if spacing == "leading":
    zero_based = (i * (num_timesteps // num_steps))[::-1]
  elif spacing == "trailing":
    zero_based = np.round(num_timesteps - i * (num_timesteps / num_steps)).astype(np.int64) - 1
  else:
    strides = [(num_timesteps - 1) / max(num_steps - 1, 1)] * (num_steps - 1)
    rising = np.round(np.cumsum([0.0, *strides])).astype(np.int64)  # summed as in the original
    zero_based = rising[::-1] if num_steps > 1 else np.asarray([num_timesteps - 1])
  return zero_based + 1
