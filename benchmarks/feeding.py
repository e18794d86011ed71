"""Images a second of the data pipeline, beside Grain's: python benchmarks/feeding.py

CIFAR-sized uint8 images in memory, shuffled, flipped and batched: `TrainStream` by itself, behind
`Prefetcher`, and Grain over the same array (pip install grain). Rounds alternate, so that a busy
machine slows all of them alike; the median of each and its ratio to Grain are printed.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import grain.python as grain
import numpy as np

from diffusion_jax.data import ArraySource, Prefetcher, TrainStream


def images(num: int) -> ArraySource:
  """Random images of 32x32x3 with labels."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (num, 32, 32, 3), np.uint8)
  return ArraySource("random", pixels, rng.integers(0, 10, num), 256, 10)


def ours(source: ArraySource, size: int) -> Iterator:
  stream, step = TrainStream(source, size, 0, flip=True), 0
  while True:
    yield stream.batch(step)
    step += 1


def prefetched(source: ArraySource, size: int) -> Iterator:
  stream = TrainStream(source, size, 0, flip=True)
  with Prefetcher(stream.batch, 0, 10**9) as batches:
    while True:
      yield batches.get()


class Flip(grain.RandomMapTransform):
  """Mirrors half of the images."""

  def random_map(self, element, rng: np.random.Generator):
    image, label = element
    return (image[:, ::-1] if rng.integers(2) else image), label


def grain_map(source: ArraySource, size: int) -> Iterator:
  pixels, labels = source.gather(np.arange(len(source)))
  rows = grain.MapDataset.source(list(zip(pixels, labels, strict=True)))
  data = rows.seed(0).shuffle().repeat().random_map(Flip()).batch(size)
  options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)
  batches = iter(data.to_iter_dataset(options))
  try:
    yield from batches
  finally:
    batches.close()


def rate(batches: Iterator, size: int, seconds: float) -> float:
  """Images a second over so many seconds, after as long again to warm up; ends its threads."""
  for _ in range(2):
    begun, num = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
      next(batches)
      num += size
  batches.close()
  return num / passed


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num", type=int, default=50_000, help="images of the data set")
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
  args = parser.parse_args()
  source = images(args.num)
  makers: dict[str, Callable[[ArraySource, int], Iterator]] = {
    "Grain, map a record": grain_map,
    "TrainStream": ours,
    "TrainStream behind Prefetcher": prefetched,
  }
  rates = {name: [] for name in makers}
  for _ in range(args.rounds):
    for name, make in makers.items():
      rates[name].append(rate(make(source, args.batch_size), args.batch_size, args.seconds))
  print(f"{os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"Grain {importlib.metadata.version('grain')}, batch {args.batch_size}")  # fmt: skip
  peer = statistics.median(rates["Grain, map a record"])
  for name, found in rates.items():
    middle = statistics.median(found)
    print(f"{name:<32}{middle:>10,.0f} images/s  {middle / peer:5.1f}x  "
          f"({min(found):,.0f} to {max(found):,.0f})")  # fmt: skip


if __name__ == "__main__":
  main()
