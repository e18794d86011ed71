"""Shards: ArrayRecord files of serialized tf.train.Examples, with a description file."""

import bisect
import functools
import glob
import itertools
import json
import re
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from diffusion_jax.core.files import BUCKET, bucket_path
from diffusion_jax.types import UserError

SUFFIX = ".array_record"
COMMAND = "python -m diffusion_jax.prepare records PICTURES --out=DIR"

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
"""ArrayRecord's documented options for random access, without reading ahead."""

MAX_GROUP = 64
"""Largest group size; reading one record decodes its whole group.

Measured cost per record on two cores of an AMD EPYC: 24 us alone, 75 us in a group of 64 records of
5 kB, 6.3 ms in a group of 3,000.
"""


class Description(NamedTuple):
  """Content of a split's shards, `<split>.shards.json`, so that they need not be scanned.

  Attributes:
    num_examples: number of examples in all shards together.
    num_shards: number of files.
    classes: class names in the order of their numbers; empty for an unlabelled set.
    image_size: height and width after resizing; None: not resized.
    channels: 1 for grey, 3 for colour.
    pictures_sha256: SHA-256 of the pictures' sorted names.
    class_counts: number of pictures per class; None in files of older versions.
  """

  num_examples: int
  num_shards: int
  classes: list[str]
  image_size: int | None
  channels: int
  pictures_sha256: str
  class_counts: list[int] | None = None

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=1) + "\n"


def read_description(file: Path) -> Description | None:
  """Return the description in a file, or None if the file does not exist.

  Raises:
    UserError: the file is damaged.
  """
  if not file.exists():
    return None
  try:
    description = Description(**json.loads(file.read_text()))
    if not isinstance(description.classes, list):
      raise TypeError("classes is no list")
    return description
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f"{file} is damaged ({error}); delete it and start {COMMAND} again") from error


def shard_path(text: str) -> Path:
  """Return the path of shards, a folder, a pattern or a file; of a bucket's, in its copy.

  Raises:
    UserError: the bucket cannot be used on this machine.
  """
  folder, _, name = text.rpartition("/")
  if BUCKET.match(text) and (SUFFIX in name or glob.has_magic(name)):
    return bucket_path(folder) / name  # with the shards' description beside them
  return bucket_path(text)


def shard_name(split: str, index: int, num_shards: int) -> str:
  return f"{split}-{index:05d}-of-{num_shards:05d}{SUFFIX}"


class ShardName(NamedTuple):
  """The parts of a shard's name, train-00003-of-00016.array_record.

  TFDS's own form is pets-train.array_record-00003-of-00016.

  Attributes:
    group: common name of all shards of a split, "train" or "pets-train".
    number: number of the shard, from 0; None for a set in one file.
    total: number of shards in the group; None if the name does not give it.
  """

  group: str
  number: int | None
  total: int | None


def parse_name(name: str) -> ShardName:
  stem = name.replace(SUFFIX, "")
  match = re.fullmatch(r"(.+?)[-_.](\d+)(?:-of-(\d+))?", stem)
  if match is None:
    return ShardName(stem, None, None)
  return ShardName(match[1], int(match[2]), int(match[3]) if match[3] else None)


class Shards:
  """Records of several ArrayRecord files as one sequence; threads may read it at once.

  Each file is opened once, here, in about 0.2 ms. Its index stays in memory (8 bytes per record).

  Args:
    files: the files in order.

  Raises:
    UserError: a file is not a complete ArrayRecord file, or not made for random access.
  """

  def __init__(self, files: Sequence[Path]):
    _allow_open_files(len(files))
    example_type()  # before other threads need it
    self._files = files
    with ThreadPoolExecutor(16) as pool:  # network file systems respond slowly
      self._readers = list(pool.map(_open, files))
    self._ends = list(itertools.accumulate(r.num_records() for r in self._readers))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    shard, record = self._find(index)
    try:
      return self._readers[shard].read([record])[0]
    except Exception as error:
      raise UserError(
        f"{self.where(index)} is damaged ({str(error)[:120]}); copy the file again"
      ) from error

  def where(self, index: int) -> str:
    """Return a record's shard and its number in the shard, for messages."""
    shard, record = self._find(index)
    return f"record {record} of {self._files[shard]}"

  def _find(self, index: int) -> tuple[int, int]:
    shard = bisect.bisect_right(self._ends, index)
    return shard, index - (self._ends[shard - 1] if shard else 0)


def _allow_open_files(num_files: int) -> None:
  """Raise this process's limit of open files; many systems start with 1,024.

  Raises:
    UserError: the system allows fewer. Otherwise a shard would just appear to be empty.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    return
  if hard not in (resource.RLIM_INFINITY, -1) and hard < num_files:
    raise UserError(
      f"{num_files:,} shards cannot be opened: this system allows {hard:,} open files (Too many "
      "open files); raise it (ulimit -Hn) or write fewer, larger shards"
    )
  wanted = soft + num_files if hard == resource.RLIM_INFINITY else min(soft + num_files, hard)
  resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open(file: Path) -> Any:
  try:
    with file.open("rb"):
      pass
    reader = ArrayRecordReader(str(file), RANDOM_ACCESS, file_reader_buffer_size=32768)
  except (OSError, RuntimeError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{file} cannot be opened ({reason})") from error
  if not reader.ok():  # it raises no error, but would appear to be empty
    raise UserError(
      f"{file} is not a whole ArrayRecord file: cut short, or of another format; copy it again or "
      f"make shards with {COMMAND}"
    )
  _check_group(file, reader.writer_options_string() or "")
  return reader


def _check_group(file: Path, options: str) -> None:
  match = re.search(r"group_size:(\d+)", options)
  if match and int(match[1]) > MAX_GROUP:
    raise UserError(
      f"{file} was written with group_size:{match[1]}, so that each read decodes {match[1]} "
      f"records; write it again with group_size:1, or with {COMMAND}"
    )


@functools.cache
def example_type() -> Any:
  """Return the message type tf.train.Example from TFDS.

  Call it before any threads start. TFDS makes its imports lazy by temporarily replacing the
  interpreter's __import__ (etils.epy.lazy_imports), which breaks imports in other threads: Pillow
  then reads no picture.
  """
  from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

  return proto.Example  # pyright: ignore[reportAttributeAccessIssue]


def parse_example(record: bytes) -> Mapping[str, Any]:
  """Parse a serialized tf.train.Example into feature name -> feature, without TensorFlow.

  Raises:
    ValueError: the record is not an Example.
  """
  from google.protobuf.message import DecodeError

  try:
    return example_type().FromString(record).features.feature
  except DecodeError as error:
    raise ValueError("not a serialized tf.train.Example") from error


def serialize_example(image: bytes, label: int | None) -> bytes:
  """Serialize a tf.train.Example with the features image and, if labelled, label."""
  example = example_type()()
  example.features.feature["image"].bytes_list.value.append(image)
  if label is not None:
    example.features.feature["label"].int64_list.value.append(label)
  return example.SerializeToString(deterministic=True)


def one_value(features: Mapping[str, Any], key: str, kind: str) -> Any:
  """Return the single value of a feature.

  Args:
    kind: bytes_list or int64_list.

  Raises:
    ValueError: the feature does not exist, or is of another kind.
  """
  if key not in features:  # checked first, since a lookup would add the key
    raise ValueError(f"has the features {', '.join(sorted(features)) or 'none'}, not {key}")
  found_kind = features[key].WhichOneof("kind")
  values = getattr(features[key], kind).value
  if found_kind != kind or len(values) != 1:
    what = {"bytes_list": "an encoded picture", "int64_list": "one integer"}[kind]
    raise ValueError(f"has in {key} {found_kind or 'nothing'}, which is not {what}")
  return values[0]
