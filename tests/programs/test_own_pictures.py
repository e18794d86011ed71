"""`train --data=...` trains on a folder of photographs as people have them, by one command."""

import json
import re

import numpy as np
import pytest
from photographs import NUM_FILES, SKIPPED, make_photographs
from PIL import Image
from tiny import MODEL

from diffusion_jax import train
from diffusion_jax.core.picture_grid import LINE
from diffusion_jax.runs.stored import load_experiment

TINY = [*MODEL, "--config.training.num_steps=2", "--config.sampler.steps=2",
        "--config.logging.tensorboard=false", "--config.logging.num_samples=10"]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)


@pytest.mark.costly
def test_551_files_are_trained_on_and_accounted_for(call, tmp_path):
  make_photographs(tmp_path / "photos")
  command = ("--data=photos", "--save_config=mine.py", *TINY)
  code, out, err = call(train.main, *command)
  assert code == 0, err
  line = next(line for line in out.splitlines() if line.startswith("  files"))
  match = re.fullmatch(
    r"  files +(\d+) files: (\d+) pictures \((.+?)\) and (\d+) skipped \((.+)\)", line
  )
  assert match
  found, pictures, treatments, skipped, reasons = match.groups()
  assert int(found) == NUM_FILES == int(pictures) + int(skipped)
  numbers = lambda text: [int(n) for n in re.findall(r"(?:^|, )(\d+) ", text)]  # noqa: E731
  assert sum(numbers(treatments)) == int(pictures)
  assert sum(numbers(reasons)) == int(skipped) == sum(SKIPPED.values())
  assert all(f"{number} {reason}" in reasons for reason, number in SKIPPED.items())
  table = dict(re.findall(r"^  (\S.*?) +(\d+) +\d+$", out, re.MULTILINE))
  assert {"cat", "小狗", "Übung", "écureuil", "my dog's pictures"} <= set(table)
  with Image.open("runs/photos/samples/data.png") as grid:
    assert grid.size == (5 * 98 + 2, LINE + 2 * 98 + 2)  # enlarged for the names of the classes
  stored = json.loads((tmp_path / "runs/photos/config.json").read_text())
  mine = load_experiment("mine.py", []).to_dict()
  assert json.loads(json.dumps(mine)) == stored
  code, out, err = call(train.main, *command)
  assert code == 0, err
  assert "config chosen when this run began" in out
  assert "finished: runs/photos has its 2 steps" in out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--data=nowhere"], "--data=nowhere: no such folder, file or data set"),
    (["--data=digits", "--config=smoke"], "--config=smoke and --data=digits: give one of the two"),
    (["--config=smoke", "--save_config=a.py"], "--save_config=a.py: only --data chooses a config"),
    (["--data=digits", "--config.model.name=nonet"], "Did you mean 'unet'"),
    (["--data=digits", "--save_config=a"], "--save_config=a: must end in .py"),
  ],
)
def test_refusals_are_one_line(flags, message, call):
  code, _, err = call(train.main, *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert message in err


@pytest.mark.costly
def test_arrays_and_digits_train_too(call, tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
  np.savez("mine.npz", images=images, labels=np.arange(40) % 2)
  for data in ("mine.npz", "digits"):
    code, out, err = call(train.main, f"--data={data}", "--dry_run", *TINY)
    assert code == 0, err
    assert "a dry run" in out
  assert not (tmp_path / "runs").exists()
