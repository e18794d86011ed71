"""Prints [FLOP/s of a matrix product, bytes/s of a copy], as JSON: rates.py float32"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

REPEATS = 7


def best_seconds(function: Callable, *args: Any, times: int) -> float:
  function = jax.jit(function)
  jax.block_until_ready(function(*args))
  found = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    for _ in range(times):
      made = function(*args)
    jax.block_until_ready(made)
    found.append((time.perf_counter() - begun) / times)
  return min(found)


def main() -> None:
  on_cpu = jax.default_backend() == "cpu"
  side, length, times = (3072, 2**26, 1) if on_cpu else (8192, 2**29, 20)
  left, right = jax.random.normal(jax.random.key(0), (2, side, side)).astype(sys.argv[1])
  seconds = best_seconds(jnp.matmul, left, right, times=times)
  vector = jax.random.normal(jax.random.key(1), (length,))
  copied = best_seconds(lambda x: -x, vector, times=times)
  print(json.dumps([2 * side**3 / seconds, 2 * vector.nbytes / copied]))


if __name__ == "__main__":
  main()
