"""What the tests cost: CPU seconds and XLA programs of each, and the budget that they keep to.

  .venv/bin/python -m pytest --costs=build/costs.jsonl   # then the same with -m "costly or process"
  .venv/bin/python tests/costs.py build/costs.jsonl                          # beside the budget
  .venv/bin/python tests/costs.py build/costs.jsonl --write=tests/costs.md   # the record

CPU seconds are those of the test's process and of the processes that it has waited for. Programs
are those that the test's own process compiled or loaded from the cache: their number does not
depend on the machine, on the cache or on what else runs.
"""

import argparse
import collections
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

GROUPS = ("system", "reference", "slow", "process", "costly")
"""Markers of the tests that are not run by default, dearest first: a test is of its first."""


class Budget(NamedTuple):
  """What a group of tests may cost: CPU seconds at the matrix rate of REFERENCE, and programs."""

  cpu_sec: float
  programs: int


BUDGET = {"default": Budget(480, 1900), "costly": Budget(640, 1500), "process": Budget(330, 80)}
REFERENCE_GFLOPS = 190.0
"""Matrix rate of the machine that the budget is for; see `matrix_rate`."""

COMPILED = "/jax/core/compile/backend_compile_duration"
LOADED = "/jax/compilation_cache/cache_hits"


def group_of(markers: Iterable[str]) -> str:
  """Return the group of a test that has these markers."""
  return next((group for group in GROUPS if group in markers), "default")


class Recorder:
  """A pytest plugin that appends one JSON line a test to a file."""

  def __init__(self, path: Path):
    import jax

    self.path, self.compilations, self.loads = path, 0, 0
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)
    path.parent.mkdir(parents=True, exist_ok=True)

  def _on_duration(self, event: str, duration: float, **_):
    self.compilations += event == COMPILED  # JAX counts what it loads here too

  def _on_event(self, event: str, **_):
    self.loads += event == LOADED

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item, nextitem):
    before = self._counts()
    result = yield
    names = ("cpu_sec", "wall_sec", "programs", "loads")
    counts = (now - then for now, then in zip(self._counts(), before, strict=True))
    group = group_of({mark.name for mark in item.iter_markers()})
    row = {"test": item.nodeid, "group": group} | dict(zip(names, counts, strict=True))
    with self.path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    return result

  def _counts(self):
    times = os.times()
    return sum(times[:4]), times.elapsed, self.compilations, self.loads


def leave_out_of_each_file(config, items, every):
  """Keep the first, the (N+1)-th, ... test of each file: every file is imported and tried."""
  counts = collections.Counter()
  kept, others = [], []
  for item in items:
    (others if counts[item.path] % every else kept).append(item)
    counts[item.path] += 1
  config.hook.pytest_deselected(items=others)
  items[:] = kept


def matrix_rate() -> float:
  """Return the GFLOP/s of a float32 product of two matrices of 4,096 rows, NumPy's best of five."""
  import numpy as np

  matrix, seconds = np.ones((4096, 4096), np.float32), []
  for _ in range(5):
    begun = time.perf_counter()
    matrix @ matrix
    seconds.append(time.perf_counter() - begun)
  return 2 * 4096**3 / min(seconds) / 1e9


def total(rows: Iterable[Mapping]) -> tuple[int, float, int]:
  """Return the number of tests, their CPU seconds and their programs."""
  rows = list(rows)
  return len(rows), sum(r["cpu_sec"] for r in rows), sum(r["programs"] for r in rows)


def lines_beside_budget(rows: list[Mapping], rate: float) -> list[str]:
  """Return a line for each group: what it cost, scaled by the machine's matrix rate, its budget."""
  lines = []
  for group, budget in BUDGET.items():
    tests, cpu_sec, programs = total(r for r in rows if r["group"] == group)
    if not tests:
      continue
    scaled, reference = cpu_sec * rate / REFERENCE_GFLOPS, f"{REFERENCE_GFLOPS:.0f} GFLOP/s"
    over = scaled > budget.cpu_sec or programs > budget.programs
    lines.append(
      f"{group:<8}{tests:>6,} tests {cpu_sec:>7,.0f} CPU s ({scaled:,.0f} at {reference}, "
      f"budget {budget.cpu_sec:,.0f}) {programs:>6,} programs (budget {budget.programs:,})"
      f"{'  OVER BUDGET: see the dearest in tests/costs.md' if over else ''}"
    )
  return lines


def folder_of(test: str) -> str:
  """Return the folder of a test below tests/, or its file where it lies at the top."""
  parts = Path(test.partition("::")[0]).parts
  return "/".join(parts[1:2])


def record(rows: list[Mapping], rate: float) -> str:
  """Return the text of tests/costs.md."""
  lines = [
    "# What the tests cost", "",
    "Made by `tests/costs.py`, whose first lines say how. "
    f"{platform.python_implementation()} {platform.python_version()}, jax {version('jax')}, "
    f"{os.cpu_count()} cores, matrix rate {rate:.0f} GFLOP/s.", "", "```",
    *lines_beside_budget(rows, rate), "```", "",
    "| tests | number | CPU s | programs |", "|---|--:|--:|--:|",
  ]  # fmt: skip
  folders = {(r["group"], folder_of(r["test"])) for r in rows}
  costs = {
    key: total(r for r in rows if (r["group"], folder_of(r["test"])) == key) for key in folders
  }
  for (group, folder), (tests, cpu_sec, programs) in sorted(costs.items(), key=lambda x: -x[1][1]):
    name = folder if group == "default" else f"{folder} ({group})"
    lines.append(f"| {name} | {tests:,} | {cpu_sec:.1f} | {programs:,} |")
  lines += ["", "The twenty dearest:", "", "| test | CPU s | programs |", "|---|--:|--:|"]
  for r in sorted(rows, key=lambda r: -r["cpu_sec"])[:20]:
    name = r["test"].removeprefix("tests/").replace("|", "\\|")
    lines.append(f"| `{name}` | {r['cpu_sec']:.1f} | {r['programs']} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("files", type=Path, nargs="+", help="what --costs has written")
  flags.add_argument("--write", type=Path, help="write the record into this file")
  args = flags.parse_args()
  rows = [json.loads(line) for path in args.files for line in path.read_text().splitlines()]
  rate = matrix_rate()
  print(f"matrix rate {rate:.0f} GFLOP/s", *lines_beside_budget(rows, rate), sep="\n")
  if args.write:
    args.write.write_text(record(rows, rate))


if __name__ == "__main__":
  main()
