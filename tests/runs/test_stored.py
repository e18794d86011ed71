"""The config that a run was started with, read back."""

import pytest

from diffusion_jax.runs.stored import check_same_data, stored_config
from diffusion_jax.types import UserError


@pytest.mark.parametrize("content", ["{", "[]", '{"generative": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    stored_config(tmp_path)


def facts(content):
  return {"name": f"set {content}", "num": 1500, "fingerprint": content}


def test_changed_data_are_named_with_the_change(tmp_path):
  check_same_data(tmp_path, facts("a"), facts("a"))
  words = r"trained on set a \(1,500 images, fingerprint a\), found set b .*another --workdir"
  with pytest.raises(UserError, match=words):
    check_same_data(tmp_path, facts("a"), facts("b"))


def test_latents_are_compared_too_if_the_run_reads_them(tmp_path):
  saved = {**facts("a"), "latents": facts("y")}
  check_same_data(tmp_path, saved, saved)
  check_same_data(tmp_path, saved, facts("a"))  # an evaluation reads the images alone
  with pytest.raises(UserError, match="trained on set y"):
    check_same_data(tmp_path, saved, {**facts("a"), "latents": facts("z")})
