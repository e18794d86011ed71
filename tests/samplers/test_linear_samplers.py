"""Samplers on Gaussian data, where every step is a known linear map."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_step import coefficients

from diffusion_jax.core.broadcasting import expand
from diffusion_jax.processes import Denoiser, LinearVP
from diffusion_jax.samplers import DDIM, Ancestral, Guidance, initial_states
from diffusion_jax.samplers.grids import visited_steps
from diffusion_jax.types import Condition

PROCESS = LinearVP()
SPACINGS = ["leading", "trailing", "linspace"]

# Final standard deviation from x_T ~ N(0, 1) for data N(0, 0.25), by 50-digit arithmetic:
# steps, spacing -> DDIM, ancestral with the small variance, with the large one.
FINAL_STD = {
  (10, "leading"): (0.374128, 0.333263, 0.589025),
  (10, "trailing"): (0.369955, 0.333475, 0.493901),
  (10, "linspace"): (0.361612, 0.322835, 0.598766),
  (50, "leading"): (0.472439, 0.444123, 0.517229),
  (50, "trailing"): (0.471403, 0.444100, 0.511719),
  (50, "linspace"): (0.471915, 0.443193, 0.517574),
  (100, "leading"): (0.485981, 0.468256, 0.508490),
  (100, "trailing"): (0.485447, 0.468219, 0.506722),
  (100, "linspace"): (0.485848, 0.467954, 0.508578),
  (1000, "trailing"): (0.498495, 0.496110, 0.500752),
}


def posterior_mean(xt, t):
  """E[x0 | x_t] for data N(0, 0.25)."""
  alpha, sigma = (expand(c, xt) for c in PROCESS.alpha_sigma(t))
  return alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * xt


def propagated_std(steps) -> float:
  """Standard deviation after all steps, by the recursion on the variance in float64."""
  ab = PROCESS.alphas_cumprod[np.round(steps.t * 1000).astype(int)]
  gain = np.sqrt(ab) * 0.25 / (ab * 0.25 + 1 - ab)
  variance = 1.0
  for x0, xt, noise, g in zip(steps.x0, steps.xt, steps.noise, gain, strict=True):
    variance = (x0 * g + xt) ** 2 * variance + noise**2
  return variance**0.5


@functools.cache
def keys(num, seed):
  return jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(jax.random.key(seed), np.arange(num))


@functools.partial(jax.jit, static_argnums=1)
def starts(keys, shape):
  """The noise that the images of these keys start from."""
  return initial_states(PROCESS, keys, shape)


def draw(sampler, denoise, keys, shape, keep_estimates=False):
  """Its samples in NumPy; only the scan is compiled anew for each sampler, not the start."""
  return jax.tree.map(
    np.asarray, sampler.sample(denoise, PROCESS, keys, (len(keys), *shape), keep_estimates)
  )


def samplers(steps, spacing):
  return (
    DDIM(steps=steps, spacing=spacing),
    Ancestral(steps=steps, spacing=spacing, variance="fixed_small"),
    Ancestral(steps=steps, spacing=spacing, variance="fixed_large"),
  )


@pytest.mark.parametrize(("steps", "spacing"), FINAL_STD)
def test_coefficients_carry_a_gaussian_to_the_known_spread(steps, spacing):
  found = [propagated_std(coefficients(s, PROCESS)) for s in samplers(steps, spacing)]
  np.testing.assert_allclose(found, FINAL_STD[steps, spacing], atol=6e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_from_the_command_path_is_that_linear_map(spacing):
  """eta = 0 is deterministic: each image is its own start times one known number."""
  sampler = DDIM(steps=50, spacing=spacing, clip=False)
  out = draw(sampler, posterior_mean, keys(4, 0), (2, 2, 1)).images
  start = np.asarray(starts(keys(4, 0), (2, 2, 1)))
  np.testing.assert_allclose(out / start, FINAL_STD[50, spacing][0], rtol=2e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_draws_have_the_known_spread(variance):
  sampler = Ancestral(steps=50, variance=variance, clip=False)
  out = draw(sampler, posterior_mean, keys(1000, 1), (8, 8, 1)).images
  exact = FINAL_STD[50, "trailing"][1 if variance == "fixed_small" else 2]
  assert abs(out.std() / exact - 1) < 5 / np.sqrt(2 * out.size)
  assert abs(out.mean()) < 5 * exact / np.sqrt(out.size)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_at_eta_one_is_the_ancestral_sampler(spacing):
  ddim = coefficients(DDIM(steps=20, eta=1.0, spacing=spacing), PROCESS)
  small = coefficients(Ancestral(steps=20, variance="fixed_small", spacing=spacing), PROCESS)
  for a, b in zip(ddim, small, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(("variance", "power"), [("fixed_large", 1.0), ("fixed_small", 0.0)])
def test_all_steps_give_ddpms_own_posterior(variance, power):
  """Equation 7 of Ho et al. 2020 at T steps, written in betas."""
  betas = np.linspace(1e-4, 0.02, 1000)[::-1]
  ab = np.cumprod(1 - betas[::-1])[::-1]
  prev = np.append(ab[1:], 1.0)
  steps = coefficients(Ancestral(variance=variance), PROCESS)
  np.testing.assert_allclose(steps.x0, np.sqrt(prev) * betas / (1 - ab), rtol=1e-9)
  np.testing.assert_allclose(
    steps.xt, np.sqrt(1 - betas) * (1 - prev) / (1 - ab), rtol=1e-9, atol=1e-15
  )
  small = betas * (1 - prev) / (1 - ab)
  expected = np.where(power, betas, small)
  np.testing.assert_allclose(steps.noise[:-1] ** 2, expected[:-1], rtol=1e-9)
  assert steps.noise[-1] == 0


def test_visited_steps_of_each_spacing():
  assert visited_steps(1000, 4, "leading").tolist() == [751, 501, 251, 1]
  assert visited_steps(1000, 4, "trailing").tolist() == [1000, 750, 500, 250]
  assert visited_steps(1000, 4, "linspace").tolist() == [1000, 667, 334, 1]
  for spacing in SPACINGS:
    assert visited_steps(1000, 1000, spacing).tolist() == list(range(1000, 0, -1))


@pytest.mark.parametrize(
  ("num", "steps"),
  [(4000, 25), (4000, 50), (4000, 100), (4000, 200), (1000, 18), (8, 7), (100, 67)],
)
def test_linspace_is_the_respacing_of_improved_ddpm(num, steps):
  """Its strides (T - 1) / (S - 1) are added up from 0 and rounded to even at halves."""
  place, taken = 0.0, []
  for _ in range(steps):
    taken.append(round(place))
    place += (num - 1) / (steps - 1)
  assert visited_steps(num, steps, "linspace")[::-1].tolist() == [n + 1 for n in taken]
  if (num, steps) == (4000, 100):
    assert taken[:4] == [0, 40, 81, 121]


def test_a_single_step_of_linspace_begins_at_noise():
  assert visited_steps(1000, 1, "linspace").tolist() == [1000]


def test_steps_beyond_the_process_are_refused():
  with pytest.raises(ValueError, match="steps=1001 must be between 1 and the process's 1000"):
    coefficients(DDIM(steps=1001), PROCESS)
  with pytest.raises(ValueError, match="steps=0 must be at least 1"):
    DDIM(steps=0)


def test_eta_out_of_range_is_refused():
  with pytest.raises(ValueError, match="eta=2"):
    DDIM(eta=2.0)


def test_an_image_depends_on_its_own_key_alone():
  sampler = Ancestral(steps=5)
  whole = draw(sampler, posterior_mean, keys(6, 2), (3, 3, 1)).images
  part = draw(sampler, posterior_mean, keys(6, 2)[4:], (3, 3, 1)).images
  np.testing.assert_allclose(whole[4:], part, atol=1e-6)


def test_clipping_holds_each_estimate():
  far = lambda xt, t: jnp.full_like(xt, 9.0)  # noqa: E731
  for sampler in (DDIM(steps=3), Ancestral(steps=3)):
    assert (draw(sampler, far, keys(3, 0), (2, 2, 1)).images == 1.0).all()
    loose = dataclasses.replace(sampler, clip=False)
    np.testing.assert_allclose(draw(loose, far, keys(3, 0), (2, 2, 1)).images, 9.0, rtol=1e-5)


def label_reader(asked):
  """A network that answers with the label, so that guidance can be read off."""

  def network(x, time, condition, key):
    asked.append(x.shape[0])
    return x * 0 + condition.label[:, None, None, None].astype(jnp.float32)

  return Denoiser(network, PROCESS, "x0")


LABELS, NULL = Condition(jnp.asarray([1, 2])), Condition(jnp.asarray([10, 10]))


def test_guidance_is_the_line_through_both_estimates():
  asked, xt, t = [], np.ones((2, 2, 2, 1), np.float32), np.ones(2, np.float32)
  bound = Guidance(3.0).bind(label_reader(asked), LABELS, NULL)
  guided = np.asarray(jax.jit(bound)(xt, t))
  np.testing.assert_allclose(guided[:, 0, 0, 0], [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)])
  assert asked == [4]
  assert Guidance(3.0).num_evaluations == 2


def test_guidance_of_one_asks_once():
  asked, xt, t = [], np.ones((2, 2, 2, 1), np.float32), np.ones(2, np.float32)
  bound = Guidance(1.0).bind(label_reader(asked), LABELS, NULL)
  plain = np.asarray(jax.jit(bound)(xt, t))
  assert plain[:, 0, 0, 0].tolist() == [1.0, 2.0]
  assert asked == [2]
  assert Guidance(1.0).num_evaluations == 1


# ---- The estimates on the way -------------------------------------------------------------------


def four_keys():
  return keys(4, 3)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", range(3), ids=["ddim", "small", "large"])
def test_the_last_estimate_is_the_image_and_keeping_them_changes_nothing(kind, spacing):
  sampler = samplers(7, spacing)[kind]
  plain = draw(sampler, posterior_mean, four_keys(), (2, 2, 1))
  kept = draw(sampler, posterior_mean, four_keys(), (2, 2, 1), keep_estimates=True)
  assert plain.estimates is None
  assert kept.estimates.shape == (7, 4, 2, 2, 1)
  assert kept.num_evaluations == plain.num_evaluations == 7
  np.testing.assert_array_equal(kept.images, plain.images)
  np.testing.assert_allclose(kept.estimates[-1], kept.images, atol=1e-6)
  assert np.abs(kept.estimates[0] - kept.images).max() > 0.1


def test_estimates_follow_the_known_linear_map():
  """DDIM on Gaussian data: x_t is the start times one number, its estimate the gain times x_t."""
  sampler = DDIM(steps=9, clip=False)
  steps, shape = coefficients(sampler, PROCESS), (2, 2, 1)
  found = draw(sampler, posterior_mean, four_keys(), shape, keep_estimates=True).estimates
  start = np.asarray(starts(four_keys(), shape))
  ab = PROCESS.alphas_cumprod[np.round(steps.t * 1000).astype(int)]
  gain, factor = np.sqrt(ab) * 0.25 / (ab * 0.25 + 1 - ab), 1.0
  for estimate, x0, xt, g in zip(found, steps.x0, steps.xt, gain, strict=True):
    np.testing.assert_allclose(estimate, g * factor * start, rtol=2e-4, atol=1e-6)
    factor *= x0 * g + xt


def test_kept_estimates_are_clipped_as_the_sampler_used_them():
  far = lambda xt, t: jnp.full_like(xt, 9.0)  # noqa: E731
  for clip, value in ((True, 1.0), (False, 9.0)):
    sampler = Ancestral(steps=3, clip=clip)
    out = draw(sampler, far, four_keys(), (2, 2, 1), keep_estimates=True)
    np.testing.assert_array_equal(out.estimates, np.full((3, 4, 2, 2, 1), value, np.float32))
