"""The tests' costs: CPU seconds and XLA compilations of each test, kept in tests/costs.md."""

import json
import os
from pathlib import Path

import pytest

COMPILED = "/jax/core/compile/backend_compile_duration"
LOADED = "/jax/compilation_cache/cache_hits"


class Recorder:
  """Appends one JSON line a test to a file: its name, CPU seconds, compilations."""

  def __init__(self, path: Path):
    import jax

    self.path, self.compilations, self.loads = path, 0, 0
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)

  def _on_duration(self, event: str, duration: float, **_):
    self.compilations += event == COMPILED

  def _on_event(self, event: str, **_):
    self.loads += event == LOADED

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_protocol(self, item, nextitem):
    before = self._counts()
    result = yield
    counts = [now - then for now, then in zip(self._counts(), before, strict=True)]
    row = dict(zip(("cpu_sec", "wall_sec", "compilations", "loads"), counts, strict=True))
    row["markers"] = sorted({mark.name for mark in item.iter_markers()})
    with self.path.open("a") as file:
      file.write(json.dumps({"test": item.nodeid} | row) + "\n")
    return result

  def _counts(self):
    times = os.times()
    return sum(times[:4]), times.elapsed, self.compilations - self.loads, self.loads
