"""The gate starts no optional part when less than a third of its time is left."""

import re
import subprocess
import types

import costs
import pytest


def test_every_third_test_of_each_file_is_kept():
  names = ["a", "a", "a", "a", "b", "c", "c"]
  items, left_out = [types.SimpleNamespace(path=name, at=i) for i, name in enumerate(names)], []
  hook = types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
  costs.leave_out_of_each_file(types.SimpleNamespace(hook=hook), items, 3)
  assert [item.at for item in items] == [0, 3, 4, 5]
  assert [item.at for item in left_out] == [1, 2, 6]


@pytest.mark.parametrize(("seconds", "starts"), [(0, True), (3590, True), (3610, False)])
def test_an_optional_part_needs_a_third_of_the_time(seconds, starts, root):
  """The function of the script itself, after so many of 5,400 seconds."""
  text = (root / ".ci" / "run").read_text()
  function = re.search(r"^time_for\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)[0]
  script = f"limit=5400 not_run=() SECONDS={seconds}\n{function}"
  script += 'if time_for "slow tests"; then echo starts; else echo "${not_run[@]}"; fi'
  ran = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  if starts:
    assert ran.stdout == "starts\n"
  else:
    assert re.search(r"not started: slow tests; 361[0-9] of 5400 s have passed", ran.stdout)
    assert ran.stdout.endswith("slow tests: less than a third of 5400 s was left\n")
