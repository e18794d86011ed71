"""The record of what the tests cost, and which tests an expression of markers picks."""

import json
import subprocess
import sys

import costs
import pytest


def row(test, group, cpu_sec, programs=1):
  return {"test": f"tests/{test}", "group": group, "cpu_sec": cpu_sec, "programs": programs}


def test_a_test_belongs_to_its_dearest_group():
  assert costs.group_of(set()) == costs.group_of({"parametrize"}) == "default"
  assert costs.group_of({"costly", "slow"}) == "slow"
  assert costs.group_of({"process", "costly"}) == "process"


def test_a_group_over_its_budget_is_named():
  budget = costs.BUDGET["default"]
  for cpu_sec, programs, over in (
    (budget.cpu_sec, budget.programs, False),
    (budget.cpu_sec + 1, budget.programs, True),
    (budget.cpu_sec, budget.programs + 1, True),
  ):
    rows = [row("test_a.py::a", "default", cpu_sec, programs)]
    (line,) = costs.lines_beside_budget(rows, costs.REFERENCE_GFLOPS)
    assert ("OVER BUDGET" in line) == over, line
  half = costs.lines_beside_budget(rows[:1], costs.REFERENCE_GFLOPS / 2)
  assert (
    f"({budget.cpu_sec / 2:,.0f} at" in half[0]
  )  # a machine of half the rate takes twice as long


def test_the_record_adds_up_by_folder_and_names_the_dearest():
  rows = [row(f"losses/test_a.py::t{i}", "default", i, 2) for i in range(30)]
  rows += [row("test_train.py::t", "costly", 50.0)]
  text = costs.record(rows, 100.0)
  assert "| losses | 30 | 435.0 | 60 |" in text
  assert "| test_train.py (costly) | 1 | 50.0 | 1 |" in text
  dearest = [line for line in text.splitlines() if line.startswith("| `")]
  assert len(dearest) == 20
  assert dearest[0] == "| `test_train.py::t` | 50.0 | 1 |"
  assert dearest[-1] == "| `losses/test_a.py::t11` | 11.0 | 2 |"


@pytest.fixture
def suite(root, tmp_path):
  """Runs pytest in a folder with this project's conftest and a few marked tests."""
  (tmp_path / "conftest.py").write_text(
    f"import sys; sys.path.insert(0, {str(root / 'tests')!r})\n"
    + (root / "tests" / "conftest.py").read_text()
  )
  (tmp_path / "test_marked.py").write_text(
    "import pytest\n"
    "pytestmark = pytest.mark.costly\n"
    "def test_costly(): pass\n"
    "@pytest.mark.slow\n"
    "def test_slow(): pass\n"
  )
  (tmp_path / "test_plain.py").write_text(
    "def test_plain():\n  import jax\n  jax.jit(lambda x: x + 1)(1.5)\n"
  )

  def suite(*flags):
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir=.", *flags]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout

  return suite


@pytest.mark.process
def test_each_marker_alone_picks_its_group_and_costs_are_recorded(suite, tmp_path):
  listing = lambda flag: suite("--collect-only", "-m", flag)  # noqa: E731
  assert "test_costly" in listing("costly")
  assert "test_slow" not in listing("costly")
  assert "test_costly" not in listing("slow")
  assert "test_slow" in listing("slow")
  assert "test_costly" in listing("not slow")
  assert "test_slow" not in listing("not slow")
  suite("-m", "not costly and not slow", f"--costs={tmp_path}/build/costs.jsonl")
  (line,) = (tmp_path / "build" / "costs.jsonl").read_text().splitlines()
  found = json.loads(line)
  assert (found["test"], found["group"]) == ("test_plain.py::test_plain", "default")
  assert found["programs"] >= 1
  assert found["cpu_sec"] > 0
