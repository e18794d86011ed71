"""Error of every sampler against network evaluations: python benchmarks/sampler_orders.py

The data are a mixture of three Gaussians in one dimension, whose best denoiser is known, so that
the error is the sampler's alone. In one dimension the probability-flow ODE keeps the order of
points: its exact solution maps quantiles to quantiles. 64 points start at sigma / alpha = 80 and
stop at 0.002, on levels even in (sigma / alpha)^(1/7). Everything is computed in float64. It prints
the root mean square error, writes docs/sampler_orders.png, and with --json prints the errors alone.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import ndtr, ndtri

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import ContinuousLinearVP, EDMProcess, Flow
from diffusion_jax.samplers import (
  DPMSolverPP2M,
  DPMSolverPP3M,
  Euler,
  Heun,
  ProbabilityFlow,
  UniPC,
  linear,
)
from diffusion_jax.samplers.grids import points

WEIGHTS, MEANS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.9])
STDS = np.array([0.30, 0.35, 0.25])
NOISIEST, LAST = 80.0, 0.002
STARTS = NOISIEST * ndtri((np.arange(64) + 0.5) / 64)
SIZES = (8, 16, 32, 64, 128, 256)
TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)

PROCESSES = {"edm": EDMProcess(), "vp": ContinuousLinearVP(), "flow": Flow()}
SAMPLERS = {
  "euler": lambda n: Euler(steps=n),
  "heun": lambda n: Heun(steps=n),
  "heun, flow coordinate": lambda n: Heun(steps=n, coordinate="flow"),
  "dpm_solver_pp_2m": lambda n: DPMSolverPP2M(steps=n),
  "dpm_solver_pp_3m": lambda n: DPMSolverPP3M(steps=n),
  "dpm_solver_pp_3m, published": lambda n: DPMSolverPP3M(steps=n, published_weights=True),
  **{
    f"unipc {order} {variant}{'' if corrector else ', no corrector'}": (
      lambda n, o=order, v=variant, c=corrector: UniPC(n, solver_order=o, variant=v, corrector=c)
    )
    for order in (1, 2, 3)
    for variant in ("bh1", "bh2")
    for corrector in (True, False)
  },
}
PLOTTED = ("euler", "heun", "heun, flow coordinate", "dpm_solver_pp_2m", "dpm_solver_pp_3m")


def denoiser(process):
  """E[x0 | x_t] of the mixture, each pixel for itself."""

  def denoise(xt, t):
    alpha, sigma = (expand(c, xt[..., None]) for c in process.alpha_sigma(t))
    x, variance = xt[..., None], jnp.square(alpha * STDS) + jnp.square(sigma)
    residual = x - alpha * MEANS
    logits = jnp.log(WEIGHTS) - 0.5 * jnp.log(variance) - 0.5 * jnp.square(residual) / variance
    means = MEANS + alpha * jnp.square(STDS) / variance * residual
    return (jax.nn.softmax(logits) * means).sum(-1)

  return denoise


def cdf(x: np.ndarray, ratio: float) -> np.ndarray:
  """Of x_t / alpha_t where sigma_t / alpha_t is `ratio`."""
  return (WEIGHTS * ndtr((x[:, None] - MEANS) / np.sqrt(STDS**2 + ratio**2))).sum(-1)


def quantile_map(x: np.ndarray, first: float, last: float) -> np.ndarray:
  """x / alpha at the noise level `first` -> the same quantile at `last`, by bisection."""
  goal, low, high = cdf(x, first), np.full_like(x, -40.0), np.full_like(x, 40.0)
  for _ in range(100):
    middle = 0.5 * (low + high)
    below = cdf(middle, last) < goal
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return 0.5 * (low + high)


EXACT = quantile_map(STARTS, NOISIEST, LAST)


def grid(process, num_steps: int):
  """Karras' levels as times of any process."""
  levels = np.linspace(NOISIEST ** (1 / 7), LAST ** (1 / 7), num_steps + 1) ** 7
  return points(process, process.time_of(-2.0 * np.log(levels)), to_data=False)


def error(process, sampler, num_steps: int) -> float:
  """Root mean square error over the 64 points, in x / alpha."""
  steps = grid(process, num_steps)
  x = jnp.asarray(steps.alpha[0] * STARTS)[:, None, None, None]
  found = linear.integrate(sampler.tableau(process, steps), denoiser(process), x).images
  return float(np.sqrt(np.mean((found[:, 0, 0, 0] / steps.alpha[-1] - EXACT) ** 2)))


def adaptive(tolerance: float) -> tuple[float, float]:
  """Error and evaluations of the adaptive solver on EDM's process."""
  process = EDMProcess()
  sampler = ProbabilityFlow(rtol=tolerance, atol=tolerance, final="min_time")
  x = jnp.asarray(STARTS)[:, None, None, None]
  found = sampler.solve(denoiser(process), process, x)
  rms = np.sqrt(np.mean((found.images[:, 0, 0, 0] - EXACT) ** 2))
  return float(rms), float(found.num_evaluations)


def evaluations(name: str, num_steps: int) -> int:
  """None of these grids ends at the data."""
  return 2 * num_steps if name.startswith("heun") else num_steps


def plot(rows: dict[str, list[float]], ode: list[tuple[float, float]], file: Path) -> None:
  figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
  shown = [n for n in rows if n in PLOTTED or (n.startswith("unipc") and n.endswith("bh2"))]
  for name in shown:
    axes.loglog([evaluations(name, n) for n in SIZES], rows[name], "o-", ms=3, label=name)
  axes.loglog([e for _, e in ode], [rms for rms, _ in ode], "k^--", ms=4, label="probability_flow")
  axes.set(xlabel="network evaluations", ylabel="root mean square error")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  figure.savefig(file, dpi=110)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--processes", default="edm")
  parser.add_argument("--samplers", help="those whose names begin so, separated by ;")
  parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
  args = parser.parse_args()
  jax.config.update("jax_enable_x64", True)
  sizes = [int(n) for n in args.sizes.split(",")]
  wanted = tuple((args.samplers or "").split(";"))
  names = [name for name in SAMPLERS if name.startswith(wanted)]
  found = {
    p: {s: [error(PROCESSES[p], SAMPLERS[s](n), n) for n in sizes] for s in names}
    for p in args.processes.split(",")
  }
  if args.json:
    ode = [] if args.samplers else [adaptive(t) for t in TOLERANCES]
    print(json.dumps({"errors": found, "adaptive": ode}))
    return
  for process, rows in found.items():
    print(f"{process:32}" + "".join(f"{n:>14}" for n in sizes) + "   order")
    for name, errors in rows.items():
      order = np.log(errors[-2] / errors[-1]) / np.log(sizes[-1] / sizes[-2])
      print(f"  {name:30}" + "".join(f"{e:14.6e}" for e in errors) + f"{order:8.2f}")
  ode = [adaptive(t) for t in TOLERANCES]
  for tolerance, (rms, count) in zip(TOLERANCES, ode, strict=True):
    print(f"  probability_flow, tolerance {tolerance:.0e}: {rms:.6e} after {count:.1f} evaluations")
  if args.samplers is None and tuple(sizes) == SIZES:
    plot(found["edm"], ode, Path(__file__).parent.parent / "docs" / "sampler_orders.png")


if __name__ == "__main__":
  main()
