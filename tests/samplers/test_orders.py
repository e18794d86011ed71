"""Errors and orders of the samplers on a mixture in one dimension, in float64.

The problem is that of benchmarks/sampler_orders.py. Here tableaus are arguments of one compiled
function a process: those of one structure and of one number of rows share a program.
"""

import functools
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.samplers import linear

pytestmark = pytest.mark.costly

SIZES = (8, 16, 32, 64, 128, 256)

# Root mean square errors after each of SIZES steps, by an independent program: Euler = DDIM, Heun
# in EDM's coordinate and DPM-Solver++(2M).
KNOWN = {
  "euler": (1.802392e-1, 9.385499e-2, 4.780983e-2, 2.411346e-2, 1.210719e-2, 6.066011e-3),
  "heun": (1.629893e-1, 3.544698e-2, 8.190555e-3, 1.965915e-3, 4.814981e-4, 1.191428e-4),
  "dpm_solver_pp_2m": (
    1.276989e-1, 4.432298e-2, 9.500871e-3, 2.180036e-3, 5.233077e-4, 1.282699e-4
  ),
}  # fmt: skip

ORDERS = {
  "euler": 1,
  "heun": 2,
  "heun, flow coordinate": 2,
  "dpm_solver_pp_2m": 2,
  "dpm_solver_pp_3m": 3,
  **{
    f"unipc {p} {variant}{'' if corrector else ', no corrector'}": p + corrector
    for p in (1, 2, 3)
    for variant in ("bh1", "bh2")
    for corrector in (True, False)
  },
}


@pytest.fixture(scope="module")
def bench():
  file = Path(__file__).parents[2] / "benchmarks" / "sampler_orders.py"
  spec = importlib.util.spec_from_file_location("sampler_orders", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def measure(bench):
  """The benchmark's error of a sampler after `num` steps on a process, both by name."""

  @functools.cache
  def problem(name):
    process = bench.PROCESSES[name]
    denoise = bench.denoiser(process)
    return process, jax.jit(lambda tableau, x: linear.integrate(tableau, denoise, x).images)

  @functools.cache
  def run(process, sampler, num):
    process, solve = problem(process)
    grid = bench.grid(process, num)
    with jax.enable_x64(True):
      tableau = bench.SAMPLERS[sampler](num).tableau(process, grid)
      found = solve(tableau, (grid.alpha[0] * bench.STARTS)[:, None, None, None])
    assert found.dtype == np.float64
    found = np.asarray(found)[:, 0, 0, 0] / grid.alpha[-1]
    return np.sqrt(np.mean((found - bench.EXACT) ** 2))

  return run


@pytest.mark.parametrize("name", KNOWN)
def test_errors_of_euler_heun_and_2m_are_those_of_another_program(measure, name):
  found = [measure("edm", name, num) for num in SIZES]
  np.testing.assert_allclose(found, KNOWN[name], rtol=5e-7)


def test_the_benchmark_prints_them(bench, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["program", "--json", "--samplers=euler;heun, ", "--sizes=8,16"])
  before = jax.config.jax_enable_x64
  try:
    bench.main()
  finally:
    jax.config.update("jax_enable_x64", before)
  printed = json.loads(capsys.readouterr().out)
  assert printed["adaptive"] == []
  assert printed["errors"]["edm"].keys() == {"euler", "heun, flow coordinate"}
  np.testing.assert_allclose(printed["errors"]["edm"]["euler"], KNOWN["euler"][:2], rtol=5e-7)


OTHERS = (
  "euler", "heun", "heun, flow coordinate", "dpm_solver_pp_2m", "dpm_solver_pp_3m",
  "dpm_solver_pp_3m, published", "unipc 2 bh2", "unipc 2 bh2, no corrector", "unipc 3 bh2",
  "unipc 3 bh2, no corrector",
)  # fmt: skip


@pytest.fixture(scope="module")
def fine(bench, measure):
  """Errors after 64 and 256 steps, of all samplers on EDM's process and of some on the others."""
  names = {"edm": bench.SAMPLERS, "vp": OTHERS, "flow": OTHERS}
  return {p: {s: [measure(p, s, n) for n in (64, 256)] for s in names[p]} for p in names}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(fine, name):
  for errors in fine.values():
    if name in errors:
      coarse, half = errors[name]
      assert abs(np.log(coarse / half) / np.log(4) - ORDERS[name]) < 0.2


def test_every_process_is_solved_alike(fine):
  """At the same sigma / alpha no step depends on alpha, but by its scale."""
  errors = fine
  assert errors["vp"].keys() == errors["flow"].keys()
  assert len(errors["vp"]) == 10
  for name, found in errors["vp"].items():
    np.testing.assert_allclose(found, errors["edm"][name], rtol=1e-6)
    np.testing.assert_allclose(errors["flow"][name], errors["edm"][name], rtol=1e-6)


def test_the_published_weights_of_3m_lose_an_order(fine):
  for errors in fine.values():
    coarse, half = errors["dpm_solver_pp_3m, published"]
    assert np.log(coarse / half) / np.log(4) < 2.2


def test_the_adaptive_solver_reaches_the_quantile_map(bench):
  """Tolerances 1e-3, 1e-5, 1e-7, 1e-9: the error falls with them, the evaluations rise."""
  assert bench.TOLERANCES == (1e-3, 1e-5, 1e-7, 1e-9)
  with jax.enable_x64(True):
    errors, evaluations = zip(*map(bench.adaptive, bench.TOLERANCES), strict=True)
  assert np.all(np.array(errors) < [3e-2, 1e-3, 1e-5, 1e-7])
  assert np.all(np.diff(evaluations) > 0)
  assert evaluations[-1] < 300
