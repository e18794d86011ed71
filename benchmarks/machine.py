"""The two rates of the machine at hand: of a large matrix product and of a large copy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Rates(NamedTuple):
  """Measured, the best of several.

  Attributes:
    flops: FLOP/s of a square matrix product.
    num_bytes: bytes/s read plus written by a copy.
  """

  flops: float
  num_bytes: float


def measure(dtype: str) -> Rates:
  """In a process of its own, so that its memory is free again.

  A suite of benchmarks names a folder, $BENCHMARK_RATES, that keeps them from part to part.
  """
  folder = os.environ.get("BENCHMARK_RATES")
  kept = Path(folder) / f"{dtype}.json" if folder else None
  if kept is not None and kept.exists():
    return Rates(*json.loads(kept.read_text()))
  command = [sys.executable, str(Path(__file__).parent / "workers" / "rates.py"), dtype]
  text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  if kept is not None:
    kept.write_text(text)
  return Rates(*json.loads(text))
