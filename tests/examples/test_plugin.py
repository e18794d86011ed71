"""The example package is installed and runs through train, sample, evaluate and the audit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax.runs.stored import load_experiment

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
pytestmark = pytest.mark.process


def commands() -> list[list[str]]:
  """Return the commands of the package's README after its installation."""
  block = re.search(r"```\n(.*?)```", (PLUGIN / "README.md").read_text(), re.DOTALL)
  assert block
  lines = [line.split() for line in block.group(1).splitlines()]
  assert [line[:2] for line in lines] == [
    ["pip", "install"], *(["diffusion-jax", n] for n in ("train", "sample", "evaluate", "audit")),
  ]  # fmt: skip
  return [line[1:] for line in lines[1:]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Install the package into a folder of its own."""
  folder = tmp_path_factory.mktemp("plugin")
  shutil.copytree(PLUGIN, folder / "source")
  pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
  subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True)
  return os.environ | {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}


def test_the_commands_of_its_readme_run(environment, tmp_path):
  def run(arguments):
    command = [sys.executable, "-m", "diffusion_jax", *arguments]
    found = subprocess.run(
      command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout

  train, sample, evaluate, audit = commands()
  run([*train, "--config.training.num_steps=4"])
  folder = tmp_path / "runs" / "plugin"
  stored = json.loads((folder / "config.json").read_text())
  names = {n: stored[n]["name"] for n in ("data", "model", "loss", "sampler")}
  assert names == {
    "data": "diffusion_jax_example.data:Blobs",
    "model": "diffusion_jax_example.network:MLPMixer",
    "loss": "diffusion_jax_example.loss:PseudoHuber",
    "sampler": "diffusion_jax_example.sampler:DPMSolver2",
  }
  run(sample)
  assert (tmp_path / "plugin.png").stat().st_size > 0
  assert "mean_shift" in run(evaluate)
  found = json.loads((folder / "eval" / "4" / "metrics.json").read_text())
  assert any("mean_shift" in name for name in json.dumps(found).split('"'))
  printed = run(audit)
  assert "dpm_solver_2" in printed
  assert "pseudo_huber" in printed


def test_a_package_that_is_gone_is_one_line(environment, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  config = load_experiment("configs/smoke.py", []).to_dict()
  config["model"] = {"name": "gone_package:Network"}
  (folder / "config.json").write_text(json.dumps(config))
  command = [sys.executable, "-m", "diffusion_jax", "sample", f"--workdir={folder}", "--out=a.png"]
  found = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
  )
  assert found.returncode == 2
  assert found.stderr.startswith("error: config.model.name=gone_package:Network: no such module")
  assert found.stderr.count("\n") == 1
