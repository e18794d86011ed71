"""Inception features a second, beside the same graph in torch: python benchmarks/features.py

Random weights and 32x32 images, as for CIFAR's FID: our network, and torch-fidelity's in torch's
default layout and in channels_last (pip install -e '.[test,reference]'). Rounds alternate, so that
a busy machine slows all of them alike. Printed are medians with their ratio to torch's default
layout, of the wall clock and of the processor's seconds, which other programs disturb less.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests/models/inception"), str(ROOT / "tests" / "reference")]

import inception_cases  # noqa: E402
import make_inception_fixture as peer  # noqa: E402
import torch  # noqa: E402

from diffusion_jax.models.inception import network, torch_port  # noqa: E402

PEER = "torch, default layout"


def ours(state, images: np.ndarray) -> Callable[[], None]:
  params = jax.device_put(torch_port.from_torch(state), jax.devices("cpu")[0])
  run = jax.jit(network.apply)
  return lambda: jax.block_until_ready(run(params, images))


def theirs(state, images: np.ndarray, layout: torch.memory_format) -> Callable[[], None]:
  with tempfile.TemporaryDirectory() as folder:
    peer.save_state(state, Path(folder) / "weights.pth")
    net = peer.network(Path(folder) / "weights.pth").to(memory_format=layout)
  batch = peer.as_torch(images).to(memory_format=layout)

  def run() -> None:
    with torch.no_grad():
      net(batch)

  return run


def measure(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[dict[str, float]]]:
  """Seconds of every round, after one that warms up."""
  found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
  for i in range(rounds + 1):
    for name, run in runs.items():
      wall, cpu = time.perf_counter(), time.process_time()
      run()
      if i:
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found[name].append(seconds)
  return found


def summary(found: dict[str, list[dict[str, float]]], batch_size: int) -> list[dict]:
  """Medians of images a second, and their ratios to the peer's."""
  rows = []
  for name, rounds in found.items():
    row = {"name": name}
    for clock in ("wall", "cpu"):
      rates = [batch_size / seconds[clock] for seconds in rounds]
      peers = [batch_size / seconds[clock] for seconds in found[PEER]]
      row[f"images_per_{clock}_sec"] = statistics.median(rates)
      row[f"{clock}_ratio"] = statistics.median(rates) / statistics.median(peers)
    rows.append(row)
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  args = parser.parse_args()
  state = inception_cases.random_torch_state(inception_cases.SEED)
  kinds = inception_cases.KINDS
  images = np.stack(
    [inception_cases.image(kinds[i % len(kinds)], i, 32, 32) for i in range(args.batch_size)]
  )
  runs = {
    PEER: theirs(state, images, torch.contiguous_format),
    "torch, channels_last": theirs(state, images, torch.channels_last),
    "diffusion_jax": ours(state, images),
  }
  rows = summary(measure(runs, args.rounds), args.batch_size)
  versions = {name: metadata.version(name) for name in ("jax", "torch", "torch-fidelity")}
  about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)),
           "torch_threads": torch.get_num_threads(), "load": os.getloadavg()[0],
           "batch_size": args.batch_size, "rounds": args.rounds, **versions}  # fmt: skip
  print(", ".join(f"{name} {value}" for name, value in about.items()))
  for row in rows:
    print(f"{row['name']:<24}{row['images_per_wall_sec']:7.2f} images/s {row['wall_ratio']:5.2f}x"
          f"{row['images_per_cpu_sec']:9.2f} images/cpu-s {row['cpu_ratio']:5.2f}x")  # fmt: skip
  if args.out:
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
