"""The campaign of kills and flipped bits runs, and notices an end that is not the same."""

import subprocess
import sys

import endurance
import pytest


def test_a_difference_is_named():
  same = {"step": 1, "state": {"w": [1, 2]}, "figures": [(1, "train/loss", 0.5)]}
  assert endurance.different(same, same) == []
  twice = {**same, "figures": [*same["figures"], *same["figures"]]}
  assert endurance.different(twice, same) == [
    "figures", "0 figures are in one of them only, 1 stand twice",
  ]  # fmt: skip
  assert endurance.different({**same, "state": {"w": [1, 3]}}, same) == ["state"]


@pytest.mark.process
@pytest.mark.slow
def test_the_campaign(root):
  command = [sys.executable, "tests/endurance.py", "--kills=3", "--flips=3", "--seed=1"]
  found = subprocess.run(command, cwd=root, text=True, capture_output=True)
  assert found.returncode == 0, found.stdout + found.stderr
  assert found.stdout.endswith("kills, 3 bit flips: 0 runs ended otherwise\n")
