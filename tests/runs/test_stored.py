"""The config that a run was started with, read back."""

import pytest

from diffusion_jax.runs.stored import stored_config
from diffusion_jax.types import UserError


@pytest.mark.parametrize("content", ["{", "[]", '{"generative": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    stored_config(tmp_path)
