"""Profiles of power-function averages against quadrature, and their combinations' optimality."""

import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_jax.training.power_function_ema import (
  combine,
  exponent_of,
  exponent_of_half_life,
  inner_products,
  width_of,
)


def profile(tau, time, width):
  gamma = exponent_of(width)
  return (gamma + 1) * tau**gamma / time ** (gamma + 1)


def test_the_papers_examples_of_exponents():
  """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
  assert round(exponent_of(0.05), 2) == 16.97
  assert round(exponent_of(0.10), 2) == 6.94


@pytest.mark.parametrize("width", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
  """By quadrature, in units of the run so far."""
  assert width_of(exponent_of(width)) == pytest.approx(width, rel=1e-9)
  near = [0.5, 1 - 10 * width, 1 - width] if width < 0.05 else None
  moments = [
    quad(lambda x, k=k: x**k * profile(x, 1.0, width), 0, 1, points=near, epsabs=1e-13)[0]
    for k in (0, 1, 2)
  ]
  assert moments[0] == pytest.approx(1.0, rel=1e-8)
  assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-5)


def test_a_half_life_holds_half_of_the_profile():
  gamma = exponent_of_half_life(300.0, 2000.0)
  share = quad(lambda x: (gamma + 1) * x**gamma / 2000.0 ** (gamma + 1), 1700, 2000)[0]
  assert share == pytest.approx(0.5, rel=1e-8)
  assert exponent_of_half_life(1000.0, 2000.0) == pytest.approx(0.0, abs=1e-12)


def test_inner_products_are_the_integrals_of_the_products():
  moments = [(100.0, 0.05), (100.0, 0.1), (64.0, 0.05), (7.0, 0.2), (99.9, 0.28)]
  times = np.array([t for t, _ in moments])
  found = inner_products(times, np.array([exponent_of(w) for _, w in moments]))
  for i, (t, w) in enumerate(moments):
    for j, (u, v) in enumerate(moments):
      exact = quad(lambda x: profile(x, t, w) * profile(x, u, v), 0, min(t, u), epsabs=1e-14)[0]  # noqa: B023
      assert found[i, j] == pytest.approx(exact, rel=1e-8)


def stored(num, widths=(0.05, 0.1)):
  """Times and exponents of `num` evenly spaced snapshots, the last at time `num`."""
  times = np.repeat(np.arange(1.0, num + 1), len(widths))
  return times, np.tile([exponent_of(w) for w in widths], num)


def test_the_combination_is_the_nearest_of_all_whose_weights_sum_to_one():
  """No change of the weights within that plane brings the profile nearer; the error is the norm."""
  times, gammas = stored(6)
  found = combine(times, gammas, 6.0, exponent_of(0.15))
  grid = (np.arange(200_000) + 0.5) * 6.0 / 200_000

  def distance(mixture):
    given = sum(
      w * np.where(grid <= t, (g + 1) * (grid / t) ** g / t, 0)
      for w, t, g in zip(mixture, times, gammas, strict=True)
    )
    wanted = profile(grid, 6.0, 0.15)
    return np.linalg.norm(given - wanted) / np.linalg.norm(wanted)

  assert found.weights.sum() == pytest.approx(1.0, abs=1e-9)
  assert distance(found.weights) == pytest.approx(found.error, rel=1e-3)
  rng = np.random.default_rng(0)
  for _ in range(10):
    change = rng.normal(size=len(times))
    change *= 1e-2 / np.linalg.norm(change)
    assert distance(found.weights + change - change.mean()) > found.error


def test_a_tracked_profile_is_its_own_combination():
  times, gammas = stored(8)
  found = combine(times, gammas, 8.0, exponent_of(0.1))
  np.testing.assert_allclose(found.weights, np.eye(16)[15], atol=1e-6)
  assert found.error < 1e-7


def test_more_snapshots_come_nearer_and_keep_their_weights_small():
  """The profile's error falls with the square of their number; nothing blows up with hundreds."""
  errors = []
  for num in (8, 32, 128, 512):
    found = combine(*stored(num), float(num), exponent_of(0.07))
    errors.append(found.error)
    assert np.abs(found.weights).sum() < 2
  ratios = np.array(errors[:-1]) / errors[1:]
  assert (ratios > 10).all()
  assert errors[0] < 0.02


def test_profiles_that_are_the_same_twice_do_no_harm():
  """Two snapshots between which every update was skipped."""
  times, gammas = stored(8)
  found = combine(
    np.append(times, times[2:4]), np.append(gammas, gammas[2:4]), 8.0, exponent_of(0.07)
  )
  assert found.error == pytest.approx(combine(times, gammas, 8.0, exponent_of(0.07)).error)
  assert np.abs(found.weights).sum() < 3
