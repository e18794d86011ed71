"""Configs as a whole: what is registered can be stored, read back and overridden."""

import json

import pytest

from diffusion_jax.core.config import build, to_dict
from diffusion_jax.data.synthetic import Synthetic
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.runs import command_line, experiment
from diffusion_jax.runs.stored import check_continues, load_experiment, stored_experiment

SECTIONS = {
  f"{kind}.{name}": section
  for kind, model in GENERATIVES.items()
  for name, section in {**experiment.COMMON, **model.sections}.items()
}
ENTRIES = [
  pytest.param(section, name, id=f"{where}.{name}")
  for where, section in SECTIONS.items()
  for name in (section if not isinstance(section, type) else [None])
]


@pytest.mark.parametrize(("section", "name"), ENTRIES)
def test_the_defaults_of_every_entry_survive_config_json(section, name):
  entry = section() if name is None else section[name]()
  stored = json.dumps(to_dict(entry, section), allow_nan=False)
  assert build(section, json.loads(stored)) == entry


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (False, "none"),
    (True, "block"),
    ("products", "dots_with_no_batch_dims_saveable"),
    ("dots_with_no_batch_dims_saveable", "dots_with_no_batch_dims_saveable"),
  ],
)
def test_what_an_older_version_wrote_otherwise_is_read(tmp_path, old, new):
  config = load_experiment("configs/smoke.py", []).to_dict()
  config["model"]["remat"] = old
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert stored_experiment(tmp_path, []).sections["model"].remat == new
  if isinstance(old, str):  # in a script that started the run
    flag = command_line.parse_override(f"--config.model.remat={old}")
    assert load_experiment("configs/smoke.py", [flag]).sections["model"].remat == new


def test_a_run_of_an_older_version_continues_though_fields_were_added_since(tmp_path):
  """A field that its config.json lacks has the default, and any other value is a change."""
  now = load_experiment("configs/smoke.py", [])
  old = now.to_dict()
  del old["model"]["num_heads"]
  del old["generative"]["sigma_data"]
  del old["probability_flow"]
  (tmp_path / "config.json").write_text(json.dumps(old))
  assert check_continues(tmp_path, now) == []
  old["generative"]["sigma_data"] = 0.7
  (tmp_path / "config.json").write_text(json.dumps(old))
  with pytest.raises(command_line.UserError, match=r"generative.sigma_data: 0.7 -> 0.5"):
    check_continues(tmp_path, now)


@pytest.mark.parametrize(
  ("config", "flag", "words"),
  [
    (
      "ddpm_digits",
      "generative.name=vae",
      "name=vae: such a model has no section .*guidance, ",
    ),
    (
      "vae_digits",
      "generative.name=diffusion",
      "no section decoder, iwae, which belong to lat",
    ),
    (
      "vae_digits",
      "sampler.steps=5",
      "no section sampler, which belongs to diffusion and",
    ),
  ],
)
def test_sections_of_another_kind_of_model_are_told_as_such(config, flag, words):
  with pytest.raises(command_line.UserError, match=words) as error:
    load_experiment(config, [command_line.parse_override(f"--config.{flag}")])
  assert "Did you mean" not in str(error.value)


def test_synthetic_images_that_cannot_be_are_told_with_their_fields():
  for flag in ("num_images=3", "image_size=2", "num_classes=-1"):
    with pytest.raises(command_line.UserError, match=f"config.data: {flag} must be at least"):
      load_experiment("smoke", [command_line.parse_override(f"--config.data.{flag}")])
  for size in (10**6, 10**9):  # more than the memory, and than a number of bytes may be
    with pytest.raises(command_line.UserError, match=f"image_size={size}: .* give smaller ones"):
      Synthetic(num_images=10**6, image_size=size).load("train")


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"dta": {}}, "config has no section 'dta'. Did you mean 'data'"),
    ({"data": 5}, "config.data is 5; it must be a section with fields"),
    ({}, "config.generative.name is missing. Allowed: diffusion, latent_diffusion, vae"),
    ({"data": {"name": "digits"}}, "config.generative.name is missing"),
  ],
)
def test_the_real_mistake_of_a_config_without_a_model_is_named(raw, message):
  with pytest.raises(command_line.UserError, match=message):
    experiment.build_experiment(raw)
