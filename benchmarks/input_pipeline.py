"""Images a second of the input pipeline at several sizes, beside Grain's: see --help

python benchmarks/input_pipeline.py --data_dir=/tmp/pictures   (pip install grain)

Made once in --data_dir: photograph-like pictures of 500x375 as JPEG of about 100 kB; from them, by
`prepare records`, shards of 64x64 PNG and of the pictures as they are, and the first in TFDS's
layout. Measured: batches of `TrainStream` behind `Prefetcher`, shuffled and flipped, of arrays in
memory (32x32), of the 64x64 shards, of the pictures resized to 256x256, and Grain over the same
shards with the same decoding. Nothing is kept decoded. Rounds alternate, so that a busy machine
slows all of them alike; printed are medians, and the processor's microseconds an image.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from diffusion_jax.data import ArraySource, Prefetcher, Records, Tfds, TrainStream, shards
from diffusion_jax.data.record_format import Shards, one_value, parse_example
from diffusion_jax.data.source import Source, fit_image

NUM_CLASSES = 10
WIDTH, HEIGHT = 500, 375
QUALITY = 92  # with this noise: about 100 kB, near ImageNet's mean of 110


def photograph(seed: int) -> Image.Image:
  """Smooth colours and noise at two scales: as large as a photograph once compressed."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (17, 22, 3), np.uint8)
  smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
  grain_of_3 = np.kron(rng.normal(0, 14, (HEIGHT // 3, WIDTH // 3 + 1)), np.ones((3, 3)))
  noise = grain_of_3[:, :WIDTH, None] + rng.normal(0, 8, (HEIGHT, WIDTH, 1))
  return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def make_pictures(folder: Path, num: int) -> Path:
  """Photographs in class folders; those that are there are kept."""

  def make(i: int) -> None:
    file = folder / f"class{i % NUM_CLASSES}" / f"{i:06d}.jpg"
    if not file.exists():
      file.parent.mkdir(parents=True, exist_ok=True)
      photograph(i).save(file, "JPEG", quality=QUALITY)

  with ThreadPoolExecutor() as pool:
    list(pool.map(make, range(num)))
  return folder


def make_tfds(folder: Path, records: Path) -> None:
  """The 64x64 pictures as TFDS's own writer lays them out."""
  import tensorflow_datasets as tfds

  if (folder / "photographs").exists():
    return
  source = Records(path=str(records)).load("train")
  images, labels = source.gather(np.arange(len(source)))
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=source.spec.shape),
      "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
    }
  )

  class Photographs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield i, {"image": io.BytesIO(shards.to_png(image)), "label": int(label)}

  tfds.disable_progress_bar()
  Photographs(data_dir=str(folder), file_format="array_record").download_and_prepare()


def prefetched(source: Source, size: int) -> Iterator[Any]:
  stream = TrainStream(source, size, 0, flip=True)
  with Prefetcher(stream.batch, 0, 10**9) as batches:
    while True:
      yield batches.get()


class Decode(grain.RandomMapTransform):
  """What `Records` does to a record, and a flip."""

  def __init__(self, image_size: int):
    self._size = image_size

  def random_map(self, element: bytes, rng: np.random.Generator):
    features = parse_example(element)
    data = one_value(features, "image", "bytes_list")
    image = fit_image(Image.open(io.BytesIO(data)), self._size, 3)
    label = one_value(features, "label", "int64_list")
    return (image[:, ::-1] if rng.integers(2) else image), label


def with_grain(folder: Path, image_size: int, size: int) -> Iterator[Any]:
  """Grain's pipeline, in the fastest of five settings: its 16 threads, each making whole batches.

  The others: 2 threads, and single records made ahead by 2, 4 or 16 threads.
  """
  files = [str(f) for f in sorted(folder.glob("*.array_record"))]
  data = grain.MapDataset.source(ArrayRecordDataSource(files))
  data = data.seed(0).shuffle().repeat().random_map(Decode(image_size)).batch(size)
  batches = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=16)))
  try:
    yield from batches
  finally:
    batches.close()


def rate(batches: Iterator[Any], size: int, seconds: float) -> dict[str, float]:
  """Images a second and the processor's microseconds an image, after a warm-up half as long."""
  for period in (seconds / 2, seconds):
    begun, cpu, num = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - begun) < period:
      next(batches)
      num += size
    spent = time.process_time() - cpu
  batches.close()  # pyright: ignore[reportAttributeAccessIssue]
  return {"images_per_sec": num / passed, "cpu_us_per_image": spent / num * 1e6}


def make_data(folder: Path, num: int) -> None:
  begun = time.perf_counter()
  pictures = make_pictures(folder / "pictures", num)
  made = time.perf_counter()
  shards.write_shards(shards.Task(pictures, folder / "records64", image_size=64, num_shards=4))
  small = time.perf_counter()
  shards.write_shards(shards.Task(pictures, folder / "records", num_shards=4))
  print(f"made {num} pictures in {made - begun:.1f} s, 64x64 shards in {small - made:.1f} s, "
        f"shards of the files in {time.perf_counter() - small:.1f} s")  # fmt: skip
  make_tfds(folder / "tfds", folder / "records64")


def makers(folder: Path, size: int) -> dict[str, tuple[str | None, Callable[[], Iterator[Any]]]]:
  """Name -> (the peer to compare with, what starts it)."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
  arrays = ArraySource("random", pixels, rng.integers(0, 10, 50_000), 256, 10)
  small = Records(path=str(folder / "records64"), max_ram_gib=0.0).load("train")
  large = Records(path=str(folder / "records"), image_size=256, max_ram_gib=0.0).load("train")
  theirs = Tfds(dataset="photographs", data_dir=str(folder / "tfds"), test_split=None,
                max_ram_gib=0.0).load("train")  # fmt: skip
  small_size = max(1, size // 4)
  rows: dict[str, tuple[str | None, Callable[[], Iterator[Any]]]] = {
    "arrays in memory, 32x32": (None, lambda: prefetched(arrays, size)),
    "records, 64x64 png": ("Grain, 64x64 png", lambda: prefetched(small, size)),
    "tfds, 64x64 png": ("Grain, 64x64 png", lambda: prefetched(theirs, size)),
  }
  rows["Grain, 64x64 png"] = (
    None, lambda: with_grain(folder / "records64", 64, size))  # fmt: skip
  rows["records, 256x256 of jpeg"] = (
    "Grain, 256x256 of jpeg", lambda: prefetched(large, small_size))  # fmt: skip
  rows["Grain, 256x256 of jpeg"] = (
    None, lambda: with_grain(folder / "records", 256, small_size))  # fmt: skip
  return rows


def bytes_of_a_picture(folder: Path) -> float:
  """Mean size of a record's picture."""
  records = Shards(sorted(folder.glob("*.array_record")))
  places = range(0, len(records), max(1, len(records) // 100))
  sizes = [len(parse_example(records[i])["image"].bytes_list.value[0]) for i in places]
  return statistics.mean(sizes)


def summary(found: dict[str, list[dict[str, float]]], peers: dict[str, str | None]) -> list[dict]:
  """Medians over the rounds, ranges, and ratios to the peer."""
  middle = {
    name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    for name, rounds in found.items()
  }
  rows = []
  for name, rounds in found.items():
    rates = [r["images_per_sec"] for r in rounds]
    peer = middle[peers[name] or name]
    ratio = middle[name]["images_per_sec"] / peer["images_per_sec"]
    cpu_ratio = middle[name]["cpu_us_per_image"] / peer["cpu_us_per_image"]
    rows.append({"name": name, **middle[name], "lowest": min(rates), "highest": max(rates),
                 "ratio": ratio, "cpu_ratio": cpu_ratio})  # fmt: skip
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", type=Path, required=True, help="made there once, 0.5 GB")
  parser.add_argument("--num", type=int, default=2000, help="pictures")
  parser.add_argument("--batch_size", type=int, default=128, help="a quarter of it at 256x256")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
  parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  args = parser.parse_args()
  make_data(args.data_dir, args.num)
  runs = makers(args.data_dir, args.batch_size)
  found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
  for _ in range(args.rounds):
    for name, (_, make) in runs.items():
      size = args.batch_size // (4 if "256" in name else 1)
      found[name].append(rate(make(), max(1, size), args.seconds))
  rows = summary(found, {name: peer for name, (peer, _) in runs.items()})
  packages = ("numpy", "pillow", "array-record", "grain")
  about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)),
           "load": os.getloadavg()[0], "batch_size": args.batch_size, "rounds": args.rounds,
           "png_bytes": bytes_of_a_picture(args.data_dir / "records64"),
           "jpeg_bytes": bytes_of_a_picture(args.data_dir / "records"),
           **{name: metadata.version(name) for name in packages}}  # fmt: skip
  print(", ".join(f"{name} {value}" for name, value in about.items()))
  for row in rows:
    print(f"{row['name']:<26}{row['images_per_sec']:>10,.0f} images/s {row['ratio']:5.2f}x  "
          f"({row['lowest']:,.0f} to {row['highest']:,.0f}) "
          f"{row['cpu_us_per_image']:>8,.0f} cpu-us/image {row['cpu_ratio']:5.2f}x")  # fmt: skip
  if args.out:
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
