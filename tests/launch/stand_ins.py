"""Programs that stand in for a scheduler's, and what the tests ask of them."""

import shlex
import time
from pathlib import Path


def write_program(path: Path, text: str) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


def read_calls(path: Path) -> list[list[str]]:
  """Command lines that a stand-in has written with `printf %q`."""
  return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, seconds: float = 20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)
