"""A worker's side of `harness.Contender`."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "denoising-diffusion-pytorch", "dewml")


def options() -> dict[str, Any]:
  return json.loads(sys.argv[1])


def serve(
  ready: Mapping[str, Any],
  work: Callable[[int], None],
  after: Callable[[], Mapping[str, Any]] = dict,
) -> None:
  """Says that the worker is ready, then works as often as each line asks.

  Args:
    ready: what to say first.
    work: does the work n times and returns when it is done, the device's part included.
    after: what to add to the answer of each round, outside its time.
  """
  print(json.dumps({"versions": versions(), **ready}), flush=True)
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    work(int(line))
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(seconds | dict(after())), flush=True)


def versions() -> dict[str, str]:
  """Of the packages that this interpreter has."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def resident_bytes() -> int:
  """The most memory that this process has held."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
