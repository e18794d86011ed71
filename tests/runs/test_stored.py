"""The config that a run was started with, read back."""

import json
import re

import pytest

from diffusion_jax.checkpoints import store
from diffusion_jax.runs.stored import check_same_data, load_experiment, stored_config
from diffusion_jax.types import UserError


def test_changed_data_name_the_classes_that_are_new_and_gone(tmp_path):
  saved = {"name": "x train", "num": 4, "fingerprint": "a", "classes": ["cat", "ship"]}
  now = saved | {"fingerprint": "b", "classes": ["bird", "cat"]}
  with pytest.raises(
    UserError, match="fingerprint b\\), classes: bird new; ship gone; restore the"
  ):
    check_same_data(tmp_path, saved, now)


DAMAGED = {
  "cut off": (b'{"generative": {"na', "it is not JSON"),
  "empty": (b"", "it is not JSON"),
  "binary": (b"\x89PNG\x00\xff", "it is not JSON"),
  "list": (b"[]", "it does not hold the sections of a config"),
  "no sections": (b'{"generative": 3}', "it does not hold the sections of a config"),
  "another project's": (b'{"model": {"type": "bert"}}', "its section generative is missing"),
  "without a section": (b"", "its section model is missing or has no name"),
}


def damaged(name):
  content = DAMAGED[name][0]
  if name == "without a section":
    sections = load_experiment("smoke", []).to_dict()
    content = json.dumps({n: s for n, s in sections.items() if n != "model"}).encode()
  return content


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_config_is_named(tmp_path, name):
  (tmp_path / "config.json").write_bytes(damaged(name))
  words = re.escape(f"config.json is damaged ({DAMAGED[name][1]}")
  with pytest.raises(UserError, match=words):
    stored_config(tmp_path)


@pytest.fixture
def saved(tmp_path, monkeypatch):
  """A run's folder whose checkpoints have the configs that a test puts here, by step."""
  configs = {5: load_experiment("smoke", []).to_dict()}
  monkeypatch.setattr(store, "saved_steps", lambda directory: sorted(configs))

  def read_meta(directory, step=None):
    step = max(configs) if step is None else step
    if configs[step] is None:
      raise UserError(f"checkpoint {step} cannot be read")
    return {"step": step, "config": configs[step]}

  monkeypatch.setattr(store, "read_meta", read_meta)
  return configs


@pytest.mark.parametrize("name", [*DAMAGED, "missing"])
def test_the_copy_in_a_checkpoint_is_used_and_that_is_said_once(name, saved, tmp_path, capsys):
  fault = "is missing"
  if name != "missing":
    (tmp_path / "config.json").write_bytes(damaged(name))
    fault = f"is damaged ({DAMAGED[name][1]}"
  assert stored_config(tmp_path) == stored_config(tmp_path) == saved[5]
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(f"{tmp_path}/config.json {fault}")
  assert line.endswith(": using the copy in checkpoint 5")


EDITS = {
  "model.channels": (16, "model.channels is 16; set model.channels=8 again"),
  "training.seed": (9, "training.seed is 9; set training.seed=0 again"),
  "loss.name": ("no_such", "config.loss.name is 'no_such'. Allowed: "),
  "model.chanels": (8, "config.model has no field 'chanels'"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_the_weights_do_not_fit_is_told_with_what_to_set_again(name, saved, tmp_path):
  section, field = name.split(".")
  saved[3] = None  # damaged
  config = json.loads(json.dumps(saved[5]))
  value, words = EDITS[name]
  config[section][field] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match=r"config\.json was edited, or is another run's") as error:
    stored_config(tmp_path)
  assert words in str(error.value)
  assert "delete the file: each checkpoint has a copy" in str(error.value)
  assert "fresh" not in str(error.value)
  saved[1] = config  # the checkpoints above were copied here by mistake
  assert stored_config(tmp_path) == config


def test_what_may_change_may_be_edited_and_what_all_lack_is_not_an_edit(saved, tmp_path):
  config = json.loads(json.dumps(saved[5]))
  config["eval"]["batch_size"] = 7
  config["training"]["num_steps"] += 1
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert stored_config(tmp_path) == config
  for one in (config, saved[5]):
    one["model"]["gone"] = 1  # of another version
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert stored_config(tmp_path) == config


def facts(content):
  return {"name": f"set {content}", "num": 1500, "fingerprint": content}


def test_changed_data_are_named_with_the_change(tmp_path):
  check_same_data(tmp_path, facts("a"), facts("a"))
  words = r"trained on set a \(1,500 images, fingerprint a\), found set b .*another `workdir`"
  with pytest.raises(UserError, match=words):
    check_same_data(tmp_path, facts("a"), facts("b"))


def test_latents_are_compared_too_if_the_run_reads_them(tmp_path):
  saved = {**facts("a"), "latents": facts("y")}
  check_same_data(tmp_path, saved, saved)
  check_same_data(tmp_path, saved, facts("a"))  # an evaluation reads the images alone
  with pytest.raises(UserError, match="trained on set y"):
    check_same_data(tmp_path, saved, {**facts("a"), "latents": facts("z")})
