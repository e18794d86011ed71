"""Configs as a whole: what is registered can be stored, read back and overridden."""

import json

import pytest

from diffusion_jax.core.config import build, to_dict
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
  ("old", "new"), [(False, "none"), (True, "block"), ("products", "products")]
)
def test_what_an_older_version_wrote_otherwise_is_read(tmp_path, old, new):
  config = load_experiment("configs/smoke.py", []).to_dict()
  config["model"]["remat"] = old
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert stored_experiment(tmp_path, []).sections["model"].remat == new


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
