"""Write ArrayRecord shards of a folder of pictures, as read by the source `records`."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from diffusion_jax.core import progress
from diffusion_jax.core.files import make_writable, printable, try_lock, write_whole
from diffusion_jax.core.progress import Phase
from diffusion_jax.data.archives import Member
from diffusion_jax.data.checking import check_pictures
from diffusion_jax.data.listing import Listing, list_folder, split_folders
from diffusion_jax.data.reading import Reader, Unreadable, file_content, opened
from diffusion_jax.data.record_format import (
  Description,
  example_type,
  read_description,
  serialize_example,
  shard_name,
)
from diffusion_jax.data.source import About, count_labels, describe_classes, fit_image, fixed_order
from diffusion_jax.types import UserError

OPTIONS = "group_size:1,uncompressed"
"""Records are stored one per group and uncompressed, since pictures are compressed already."""

SHARD_BYTES = 256 << 20
"""Approximate size of a shard, unless the number of shards is given."""

MAX_SHARDS = 10_000
"""Largest number of shards; all are open during reading, and systems limit open files."""

NUM_SAMPLED = 64
"""Number of pictures whose records are measured to choose the number of shards."""

CHUNK = 512
"""Number of pictures processed at a time, which limits the memory."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats stored unchanged; an MPO is a JPEG followed by further pictures."""

ADVICE = (
  "replace them and start the same command again, or choose another --out and "
  "move them away or leave them out with --unreadable=skip"
)


class Task(NamedTuple):
  """Settings of one preparation.

  Attributes:
    pictures: folder of the pictures; one in `pictures/cat/...` is of class cat.
    out: folder of the shards; several splits may share it.
    split: prefix of the shards' names.
    image_size: the shorter side is resized to it and the centre cropped, stored as PNG. None: the
      files are stored unchanged.
    channels: 1 for grey, 3 for colour.
    num_shards: number of files; None: files of about SHARD_BYTES each.
    unreadable: refuse and list all unreadable pictures, or skip them.
  """

  pictures: Path
  out: Path
  split: str = "train"
  image_size: int | None = None
  channels: int = 3
  num_shards: int | None = None
  unreadable: Unreadable = "refuse"


class Content(NamedTuple):
  """Content of a folder in the form to be stored.

  Attributes:
    listing: its pictures, sorted by name.
    read: position -> encoded bytes of a picture.
    notes: sentences on skipped or converted pictures.
  """

  listing: Listing
  read: Callable[[int], bytes]
  notes: Sequence[str]


def write_shards(task: Task) -> Path:
  """Write the shards of a split; the same call continues after an interruption.

  The order is shuffled once, in a fixed way. A shard is complete or absent, and the description,
  `<split>.shards.json`, is written last.

  Returns:
    Path of the description.

  Raises:
    UserError: pictures that are missing, unreadable or sorted wrongly, or a folder that cannot be
      written or contains shards of another command.
  """
  _check(task)
  example_type()  # before any thread needs it
  listing = list_pictures(task.pictures)
  most = min(len(listing.names), MAX_SHARDS)
  if (task.num_shards or 1) > most:
    raise UserError(
      f"--shards={task.num_shards}: must be at most {most}, for {len(listing.names):,} pictures; "
      "leave it out for shards of about 256 MiB"
    )
  make_writable(task.out, f"--out={task.out}")
  target = task.out / f"{task.split}.shards.json"
  with _only_one(task.out):
    content = _check_pictures(task, _number_classes(listing, task))
    _tell(content)
    plan = _plan(task, content, target)
    if not target.exists():
      _write_shards(task, content, plan)
      os.replace(_part(target), target)
  return target


def _tell(content: Content) -> None:
  """Print the content of the shards, and the skipped pictures."""
  listing = content.listing
  print(f"{len(listing.names):,} pictures of {printable(listing.root)}", flush=True)
  about = About(listing.classes, _count_classes(listing), notes=content.notes)
  if listing.classes:
    print(f"classes: {describe_classes(about, len(listing.classes))}", flush=True)
  for note in content.notes:
    print(printable(note), flush=True)


def _check(task: Task) -> None:
  for flag in ("image_size", "shards"):
    value = task.num_shards if flag == "shards" else task.image_size
    if value is not None and value < 1:
      raise UserError(f"--{flag}={value} must be at least 1; leave it out for the default")
  if not task.split.isalpha():
    raise UserError(f"--split={task.split} must consist of letters, e.g. train or test")


def list_pictures(root: Path) -> Listing:
  """List the pictures below a folder, sorted as plain strings; a flat folder has no classes.

  Raises:
    UserError: as `list_folder`, or the folder contains splits.
  """
  folders = split_folders(root, str(root))
  if folders:
    names = ", ".join(folder.name for folder in folders.values())
    raise UserError(
      f"{root} holds the folders of splits ({names}), which are not classes; prepare each by "
      f"itself: python -m diffusion_jax.prepare records {folders['train']} --split=train"
    )
  listing = list_folder(root, str(root))
  return listing.keep(sorted(range(len(listing.names)), key=lambda i: listing.names[i]))


def _number_classes(listing: Listing, task: Task) -> Listing:
  """Use the class numbers of an existing split in the same folder, so that both agree."""
  for file in sorted(task.out.glob("*.shards.json*")):
    other = read_description(file)
    if other is None or file.name.startswith(f"{task.split}."):
      continue
    new = sorted(set(listing.classes) - set(other.classes))
    if new or bool(listing.classes) != bool(other.classes):
      raise UserError(
        f"{task.pictures} has {new[0] if new else 'no classes'}, unlike {file}, which has "
        f"{len(other.classes)} classes; choose another --out"
      )
    numbers = [other.classes.index(name) for name in listing.classes]
    labels = [numbers[label] for label in listing.labels] if numbers else listing.labels
    return listing._replace(classes=other.classes, labels=labels)
  return listing


def _check_pictures(task: Task, listing: Listing) -> Content:
  """Check every header; damage in the pixels is found and reported during writing."""
  make = lambda kept: _reader(task, kept)  # noqa: E731
  checked = check_pictures(listing, make, str(task.pictures), task.unreadable, task.image_size)
  reader = make(checked.listing)
  reader.memory = checked.memory
  return Content(checked.listing, reader, checked.notes())


def _reader(task: Task, listing: Listing) -> Reader[bytes]:
  return Reader(
    len(listing.names), lambda index: _encode(task, listing.file(index)),
    lambda index: listing.names[index], str(task.pictures), ADVICE,
  )  # fmt: skip


def _count_classes(listing: Listing) -> list[int] | None:
  return count_labels(np.array(listing.labels, int), len(listing.classes))


def _plan(task: Task, content: Content, target: Path) -> Description:
  """Return the description of the new shards; existing shards must agree with it."""
  listing = content.listing
  before = read_description(target) or read_description(_part(target))
  wanted = Description(
    len(listing.names), task.num_shards or (before.num_shards if before else 0),
    listing.classes, task.image_size, task.channels,
    hashlib.sha256("\n".join(listing.names).encode(errors="surrogateescape")).hexdigest(),
    _count_classes(listing),
  )  # fmt: skip
  if before is None:
    wanted = wanted._replace(num_shards=wanted.num_shards or _choose_num_shards(content))
    write_whole(_part(target), wanted.to_json())
    return wanted
  if before.class_counts is None:  # written by an older version
    wanted = wanted._replace(class_counts=None)
  odd = [name for name in wanted._fields if getattr(before, name) != getattr(wanted, name)]
  if odd:
    raise UserError(
      f"--out={task.out} holds {task.split} shards made otherwise ({', '.join(odd)} "
      f"{'differs' if len(odd) == 1 else 'differ'}); choose another --out, or delete them first"
    )
  return before


def _part(file: Path) -> Path:
  return file.with_name(f"{file.name}.part")


def _choose_num_shards(content: Content) -> int:
  """Return the number of shards of about SHARD_BYTES, estimated from a few pictures."""
  num_pictures = len(content.listing.names)
  sample = np.linspace(0, num_pictures - 1, min(num_pictures, NUM_SAMPLED)).astype(int)
  with ThreadPoolExecutor(_num_threads()) as pool:
    sizes = list(pool.map(lambda index: len(_record(content, int(index))), sample))
  return max(1, min(num_pictures, MAX_SHARDS, round(np.mean(sizes) * num_pictures / SHARD_BYTES)))


def _write_shards(task: Task, content: Content, plan: Description) -> None:
  order = fixed_order(len(content.listing.names))
  indices = np.array_split(order, plan.num_shards)
  names = [shard_name(task.split, i, plan.num_shards) for i in range(plan.num_shards)]
  missing = [i for i, name in enumerate(names) if not (task.out / name).exists()]
  num_done = len(order) - sum(len(indices[i]) for i in missing)
  shown = progress.phase("writing shards", len(order), "pictures", num_done)
  with ThreadPoolExecutor(_num_threads()) as pool, shown as phase:
    for i in missing:
      _write_shard(pool, content, indices[i], task.out / names[i], phase)
      phase.say(f"{names[i]}: {len(indices[i]):,} pictures")


def _write_shard(
  pool: ThreadPoolExecutor, content: Content, places: np.ndarray, target: Path, phase: Phase
) -> None:
  """Write one shard to a temporary file and move it once it is safe on disk."""
  part = _part(target)
  try:
    part.unlink(missing_ok=True)  # the writer would follow a link of this name
    writer = ArrayRecordWriter(str(part), OPTIONS)
    try:
      for record in _records(pool, content, places):
        writer.write(record)
        phase.advance()
    finally:
      writer.close()
    with part.open("rb") as file:
      os.fsync(file.fileno())
  except (RuntimeError, OSError) as error:
    raise UserError(f"{part} cannot be written ({error}); choose another --out") from error
  os.replace(part, target)


def _records(pool: ThreadPoolExecutor, content: Content, indices: np.ndarray) -> Iterator[bytes]:
  """Yield serialized examples in order, made by threads; Pillow releases the GIL."""
  for first in range(0, len(indices), CHUNK):
    chunk = [int(index) for index in indices[first : first + CHUNK]]
    yield from pool.map(lambda index: _record(content, index), chunk)


def _record(content: Content, index: int) -> bytes:
  listing = content.listing
  return serialize_example(content.read(index), listing.labels[index] if listing.classes else None)


def _encode(task: Task, file: str | Member) -> bytes:
  """Return a picture in its stored form.

  Raises:
    Broken: the picture cannot be read.
  """
  data = file_content(file)
  with opened(io.BytesIO(data)) as image:
    pixels = fit_image(image, task.image_size, task.channels)  # decodes it, which proves it intact
    keep = task.image_size is None and image.format in FORMATS
  return data if keep else to_png(pixels)


def to_png(pixels: np.ndarray) -> bytes:
  """Encode a picture [H, W, C] of one or three channels without loss."""
  file = io.BytesIO()
  Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
  return file.getvalue()


def _num_threads() -> int:
  return os.cpu_count() or 1


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
  """Lock a folder against a second preparation."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    _lock(handle, folder)
    yield
  finally:
    os.close(handle)


def _lock(handle: int, folder: Path) -> None:
  if try_lock(handle) == "held":
    raise UserError(f"--out={folder}: another preparation is writing there; wait for it")
