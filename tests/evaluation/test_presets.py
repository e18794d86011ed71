"""What a preset fills in, and what it leaves as the user has set it."""

import dataclasses

import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.evaluation import presets
from diffusion_jax.runs.evaluating import Evaluating
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


def filled(options, *flags):
  overrides = [parse_override(flag) for flag in flags]
  changed, line = presets.fill_in(Experiment({"eval": options}, {"eval": Evaluating}), overrides)
  return changed.eval, line


def test_without_a_preset_the_fields_are_as_they_are():
  assert filled(Evaluating(num_samples=7)) == (Evaluating(num_samples=7), "")


def test_quick_is_a_first_look():
  options, line = filled(Evaluating(preset="quick"))
  assert options == Evaluating(
    preset="quick", num_samples=1000, likelihood_images=256, spectrum_images=0
  )
  assert line == (
    "eval.preset=quick: num_samples=1000, num_seeds=1, likelihood_images=256, "
    "likelihood_repeats=1, spectrum_images=0"
  )


def test_full_is_what_a_paper_reports():
  options, _ = filled(Evaluating(preset="full"))
  assert (options.num_seeds, options.spectrum_images) == (3, 2048)
  assert options.num_samples is None  # as many as the reference, at most 50,000
  assert options.likelihood_images is None  # every held-out image


def test_flags_win_even_with_the_default_and_so_do_fields_of_the_config():
  kept = Evaluating(preset="quick", num_samples=64)
  options, line = filled(kept, "--config.eval.spectrum_images=2048", "--config.eval.num_seeds=1")
  assert (options.num_samples, options.spectrum_images) == (64, 2048)
  assert options.likelihood_images == 256
  assert line.endswith("; as you set them: num_samples=64, num_seeds=1, spectrum_images=2048")


def test_a_preset_given_as_a_flag_replaces_what_the_config_sets():
  kept = Evaluating(preset="quick", num_seeds=3, likelihood_repeats=2)
  flags = ("--config.eval.preset=quick", "--config.eval.likelihood_repeats=2")
  options, line = filled(kept, *flags)
  assert (options.num_seeds, options.likelihood_repeats) == (1, 2)
  assert line.endswith("; as you set them: likelihood_repeats=2")


def test_presets_name_fields_of_the_section():
  names = {field.name for field in dataclasses.fields(Evaluating)}
  assert all(set(preset) <= names for preset in presets.PRESETS.values())


def test_an_unknown_preset_is_refused_with_the_nearest(root):
  flag = "--config.eval.preset=quik"
  with pytest.raises(UserError, match=r"one of quick, full\. Did you mean 'quick'\?"):
    load_experiment(f"{root}/configs/smoke.py", [parse_override(flag)])


def test_likelihood_images_must_be_at_least_one():
  with pytest.raises(ValueError, match="likelihood_images=0 must be at least 1"):
    Evaluating(likelihood_images=0)
