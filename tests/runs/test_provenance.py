"""environment.json: what each start of a run found."""

import json

import jax
import pytest

from diffusion_jax.runs import provenance


@pytest.mark.parametrize("content", ["[]", '{"starts": 3}', "{"])
def test_a_damaged_environment_is_begun_anew(tmp_path, content):
  (tmp_path / "environment.json").write_text(content)
  provenance.write_environment(tmp_path)
  assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1


def test_every_start_is_recorded(tmp_path):
  for _ in range(2):
    provenance.write_environment(tmp_path)
  starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
  assert len(starts) == 2
  assert starts[0]["packages"]["jax"] == jax.__version__
  assert starts[0]["device_kind"] == "cpu"
