"""The two rates of the machine at hand: of a large matrix product and of a large copy."""

import json
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
  """In a process of its own, so that its memory is free again."""
  command = [sys.executable, str(Path(__file__).parent / "workers" / "rates.py"), dtype]
  return Rates(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
