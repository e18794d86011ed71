"""Errors and orders of the samplers on a mixture in one dimension, in float64.

The figures come from benchmarks/sampler_orders.py, started as a process of its own, because JAX
computes in float64 only in a process that was started so.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

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
def measure():
  """Runs the benchmark with flags: -> its errors, and the adaptive solver's."""

  def run(*flags):
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    command = [sys.executable, "benchmarks/sampler_orders.py", "--json", *flags]
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

  return run


def test_errors_of_euler_heun_and_2m_are_those_of_another_program(measure):
  sizes = ",".join(map(str, SIZES))
  found = measure("--samplers=euler;heun;dpm_solver_pp_2m", f"--sizes={sizes}")["errors"]["edm"]
  for name, errors in KNOWN.items():
    np.testing.assert_allclose(found[name], errors, rtol=5e-7, err_msg=name)


SOME = "euler;heun;dpm_solver_pp;unipc 2 bh2;unipc 3 bh2"


@pytest.fixture(scope="module")
def fine(measure):
  """Errors after 64 and 256 steps, of all samplers on EDM's process and of some on the others."""
  sizes = "--sizes=64,256"
  edm, others = measure(sizes), measure(sizes, "--processes=vp,flow", f"--samplers={SOME}")
  return edm | {"errors": edm["errors"] | others["errors"]}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(fine, name):
  for errors in fine["errors"].values():
    if name in errors:
      coarse, half = errors[name]
      assert abs(np.log(coarse / half) / np.log(4) - ORDERS[name]) < 0.2


def test_every_process_is_solved_alike(fine):
  """At the same sigma / alpha no step depends on alpha, but by its scale."""
  errors = fine["errors"]
  assert errors["vp"].keys() == errors["flow"].keys()
  assert len(errors["vp"]) == 10
  for name, found in errors["vp"].items():
    np.testing.assert_allclose(found, errors["edm"][name], rtol=1e-6)
    np.testing.assert_allclose(errors["flow"][name], errors["edm"][name], rtol=1e-6)


def test_the_published_weights_of_3m_lose_an_order(fine):
  for errors in fine["errors"].values():
    coarse, half = errors["dpm_solver_pp_3m, published"]
    assert np.log(coarse / half) / np.log(4) < 2.2


def test_the_adaptive_solver_reaches_the_quantile_map(fine):
  """Tolerances 1e-3, 1e-5, 1e-7, 1e-9: the error falls with them, the evaluations rise."""
  errors, evaluations = zip(*fine["adaptive"], strict=True)
  assert np.all(np.array(errors) < [3e-2, 1e-3, 1e-5, 1e-7])
  assert np.all(np.diff(evaluations) > 0)
  assert evaluations[-1] < 300
