"""The last lines of a run: figures, pictures, and commands that can be pasted."""

import json
import shlex
from pathlib import Path

import pytest

from diffusion_jax.train_loop.ending import describe_end


def test_the_end_names_figures_pictures_and_the_next_commands(tmp_path):
  workdir = tmp_path / "my runs" / "a"
  (workdir / "samples").mkdir(parents=True)
  for name in ("step_00000010", "step_00000020", "reconstructions_00000020"):
    (workdir / "samples" / f"{name}.png").touch()
  values = {
    "step": 20, "loss": 0.25, "loss_standard_error": 0.01, "elbo/bits_per_dim": 3.5,
    "elbo/bits_per_dim_standard_error": None, "elbo/prior": 0.1,
    "independent_pixels/bits_per_dim": 4.0,
  }  # fmt: skip
  (workdir / "held_out.json").write_text(json.dumps(values))
  lines = describe_end(workdir, 20)
  assert lines[:3] == [
    "  held out   loss 0.2500 ± 0.0100",
    "  held out   elbo 3.5000 bits/dim",
    "  held out   independent pixels 4.0000 bits/dim",
  ]
  assert [Path(line.split("picture    ")[1]).name for line in lines[3:5]] == [
    "reconstructions_00000020.png",
    "step_00000020.png",
  ]
  commands = [shlex.split(line)[1:] for line in lines[5:]]
  assert [command[1] for command in commands] == ["sample", "evaluate"]
  assert all(f"--workdir={workdir}" in command for command in commands)


@pytest.mark.parametrize("content", [None, "{", '{"step": 20}'])
def test_a_run_without_held_out_figures_has_none(content, tmp_path):
  if content is not None:
    (tmp_path / "held_out.json").write_text(content)
  assert len(describe_end(tmp_path, 20)) == 2
