"""Where processes end: noise at any number of steps, and a line where it is not."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.processes import MAX_PRIOR_BITS, PROCESSES, LinearVP, end_kl, prior_bits
from diffusion_jax.runs import changes
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.samplers import DDIM, Euler

ROOT = Path(__file__).parents[2]
AS_DDPM = LinearVP(100, 1e-4, 0.02)
"""The betas of T = 1000 over 100 steps."""


def experiment(name, *overrides):
  flags = [parse_override(f"--config.{o}") for o in overrides]
  return load_experiment(f"{ROOT}/configs/{name}.py", flags)


@pytest.mark.parametrize("num", [50, 100, 400, 1000, 4000])
def test_linear_betas_end_alike_at_any_number_of_steps(num):
  """-log alpha_bar_T is about T (beta_1 + beta_T) / 2 = 10.05, and more for large betas."""
  config = LinearVP(num)
  assert (config.beta_start, config.beta_end) == (1e-4 * (1000 / num), 0.02 * (1000 / num))
  total = -np.log(config.alphas_cumprod[-1])
  assert 10.05 < total < 10.05 * (1 + 0.5 * config.beta_end)


def test_few_steps_are_capped_and_given_betas_are_as_given():
  assert (LinearVP(20).beta_end, LinearVP(21).beta_end) == (0.999, 0.02 * (1000 / 21))
  for num in range(2, 21):
    assert prior_bits(LinearVP(num)) < MAX_PRIOR_BITS
  assert AS_DDPM.alphas_cumprod[-1] == pytest.approx(0.3636, abs=1e-3)
  assert LinearVP() == LinearVP(1000, 1e-4, 0.02)
  with pytest.raises(ValueError, match=r"beta_end=1.2: both must be between 0 and 1.* leave them"):
    LinearVP(100, 0.1, 1.2)


def end_of(config, sampler, mean, std):
  """Mean and deviation of the samples of N(mean, std^2) by its exact denoiser, which is a line."""
  process = config
  tableau = sampler.tableau(process)
  slope, offset = 1.0, 0.0  # of the state in x_1
  for row, t in enumerate(tableau.t):
    alpha, sigma = (float(c) for c in process.alpha_sigma(np.asarray(t)))
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    keep, new = float(tableau.state.xt[row]), float(tableau.state.x0[row, 0])
    fixed = mean - gain * alpha * mean
    slope, offset = (keep + new * gain) * slope, (keep + new * gain) * offset + new * fixed
  return offset, abs(slope)


@pytest.mark.parametrize("sampler", [DDIM(steps=50, clip=False), Euler(steps=100)])
@pytest.mark.parametrize("num", [100, 200, 1000])
def test_samples_of_a_known_gaussian_have_its_mean_and_deviation(num, sampler):
  mean, std = end_of(LinearVP(num), sampler, -0.8, 0.2)
  assert mean == pytest.approx(-0.8, abs=0.005)
  assert std == pytest.approx(0.2, abs=0.03)


def test_betas_of_a_thousand_steps_over_a_hundred_leave_the_mean_behind():
  mean, std = end_of(AS_DDPM, DDIM(steps=100, clip=False), -0.8, 0.2)
  assert mean == pytest.approx(-0.683, abs=0.001)
  assert std == pytest.approx(0.243, abs=0.001)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_prior_term_is_that_of_the_bound_at_a_pixel_of_one(name):
  process = PROCESSES[name]()
  pixel = jnp.asarray([-1.0, 1.0])[:, None, None, None]
  nats = jax.jit(lambda x: end_kl(process, x))(pixel)
  np.testing.assert_allclose(nats / np.log(2), prior_bits(process), atol=3e-7)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.py")))
def test_every_config_ends_in_noise(name):
  assert experiment(name).warnings() == {}


@pytest.mark.parametrize(
  ("name", "overrides", "words"),
  [
    ("smoke", ["process.beta_end=0.02"], "a higher `process.beta_end=VALUE`"),
    ("smoke", ["process.name=ve", "process.sigma_max=2"], "a higher `process.sigma_max=VALUE`"),
    ("smoke", ["process.name=vp", "process.beta_max=2"], "a higher `process.beta_max=VALUE`"),
    ("smoke", ["process.name=sub_vp", "process.beta_max=2"], "`process.beta_max=VALUE`"),
    ("smoke", ["process.name=cosine", "process.shift=20"], "`process.log_snr_min=VALUE`"),
    ("smoke", ["process.name=cosine_vp", "process.num_timesteps=4", "process.max_beta=0.5"],
     "`process.num_timesteps=VALUE`"),
    ("vdm_digits", ["process.gamma_max=1"], "a higher `process.gamma_max=VALUE`"),
    ("latent_digits", ["process.log_snr_min=-1"], "a lower `process.log_snr_min=VALUE`"),
  ],
)  # fmt: skip
def test_a_process_that_ends_far_from_noise_is_said_in_one_line(name, overrides, words):
  found = experiment(name, *overrides).warnings()["warning"]
  assert "bits/dim from noise" in found
  assert words in found
  assert "\n" not in found


def test_a_stored_run_keeps_the_betas_that_it_was_trained_with():
  """Every config.json holds the numbers; DDPM's own thousand steps are the same by either rule."""
  new = experiment("smoke").to_dict()
  old = json.loads(json.dumps(new))
  old["process"] |= {"beta_start": 1e-4, "beta_end": 0.02}
  loaded = experiments.build_experiment(old)
  assert loaded.sections["process"].alphas_cumprod[-1] == pytest.approx(0.3636, abs=1e-3)
  assert loaded.to_dict()["process"] == old["process"]
  fatal, _ = changes.differences(loaded.to_dict(), new)
  assert any("process.beta_end: 0.02 -> 0.2" in line for line in fatal)
  stored = {**old, "process": {**old["process"], "num_timesteps": 1000}}
  now = experiment("smoke", "process.num_timesteps=1000").to_dict()
  assert changes.differences(experiments.build_experiment(stored).to_dict(), now) == ([], [])


def test_the_only_step_of_a_process_ends_in_noise():
  """Its beta is the last one, not the first."""
  assert prior_bits(LinearVP(num_timesteps=1, beta_end=0.9999)) < MAX_PRIOR_BITS
  assert prior_bits(LinearVP(num_timesteps=1)) < MAX_PRIOR_BITS
