"""Download and prepare the small standard sets in TFDS's layout without TensorFlow.

URLs, sizes and SHA-256 sums are those in tensorflow-datasets's own builders.
"""

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import queue
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffusion_jax.core import buckets, progress
from diffusion_jax.core.files import atomic_write, cache_folder, unfinished
from diffusion_jax.data.given_archives import (
  GivenFiles,
  given_files,
  read_checked,
  read_cifar_batch,
  read_idx,
  read_pickle,
)
from diffusion_jax.types import UserError

CONNECT_SEC = 8.0
"""Seconds until a server that does not respond counts as unreachable."""


class Split(NamedTuple):
  """A split as stored in the archives.

  Attributes:
    images: pixels.
    labels: label feature name -> class numbers.
  """

  images: UInt8[np.ndarray, "N H W C"]
  labels: Mapping[str, np.ndarray]


class Content(NamedTuple):
  """A whole data set.

  Attributes:
    splits: splits by their names in TFDS.
    class_names: label feature -> names in order; empty if the archives have none.
  """

  splits: Mapping[str, Split]
  class_names: Mapping[str, list[str]]


Files = Mapping[str, Path]
"""Archive files by name."""


def prepare_standard(name: str, data_dir: Path, given: Path | None = None) -> Path:
  """Download (unless the archives exist or are given) and prepare a standard set.

  Args:
    name: a key of STANDARD.
    data_dir: parent of `<name>/<version>/`; archives are kept in `downloads/<name>/`, or in the
      user's cache if it is the copy of a bucket.
    given: the set as downloaded elsewhere: the archive of TFDS, CIFAR's python archive (also as
      torchvision or Kaggle pack it), or the folder of either or of MNIST's files.

  Returns:
    The prepared folder, created atomically.

  Raises:
    UserError: no network, a wrong checksum, or a folder that cannot be written.
  """
  import tensorflow_datasets as tfds

  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    official: Any = tfds.builder(name, data_dir=str(data_dir))
    target = data_dir / official.name / str(official.version)
    if (target / "dataset_info.json").is_file():
      return target
    buckets.check_bucket(data_dir)
    in_cache = buckets.find_copy(data_dir) is not None
    downloads = (cache_folder() if in_cache else data_dir) / "downloads" / name
    if given is not None:
      content = read_given(
        name, given, {i.filename: i.checksum for i in official.url_infos.values()}
      )
    else:
      content = STANDARD[name](
        {
          info.filename: _obtain(url, downloads / info.filename, info.checksum)
          for url, info in official.url_infos.items()
        }
      )
    print(f"preparing {name} in {data_dir / name}: about a minute, once", flush=True)
    with progress.phase(f"preparing {name}"):
      return _write(official, content, data_dir)
  except OSError as error:
    raise UserError(f"{data_dir} cannot be written ({error}); choose another data_dir") from error


def read_given(name: str, source: Path, checksums: Mapping[str, str]) -> Content:
  """Return a standard set from files that were downloaded elsewhere.

  Args:
    name: a key of STANDARD.
    source: an archive, or a folder.
    checksums: name -> SHA-256 of the archives of tensorflow-datasets.

  Raises:
    UserError: it is not that set, or differs from the published one.
  """
  if source.name in checksums and source.is_file():
    _check_sum(source, source.name, checksums[source.name])
    if len(checksums) == 1:
      return STANDARD[name]({source.name: source})
  files = given_files(source.parent if source.name in checksums else source)
  if "mnist" in name:
    return _mnist_content(lambda file: read_idx(files, file, checksums))
  if all(file in files for file in PYTHON_FILES[name]):
    return _read_cifar_python(name, files)
  wanted = {file: f"{file}.bin" for file in PYTHON_FILES[name][:-1]}
  if all(file in files for file in wanted.values()):
    print(f"{source}: its files have no published checksums, so they are not verified", flush=True)
    members = {file: read() for file, read in files.items()}
    return _cifar10_content(members) if name == "cifar10" else _cifar100_content(members)
  raise UserError(
    f"{source} is not {name}; give {next(iter(checksums))}, the python archive "
    f"({'cifar-10-python.tar.gz' if name == 'cifar10' else 'cifar-100-python.tar.gz'}), or the "
    f"folder with {', '.join(PYTHON_FILES[name][:2])}, ..."
  )


PYTHON_FILES = {
  "cifar10": (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
  "cifar100": ("train", "test", "meta"),
}
"""Files of the python archives; the last has the names of the classes."""


def _read_cifar_python(name: str, files: GivenFiles) -> Content:
  """Read the python archive, after comparing each file with its published MD5."""
  keys = {"label": "labels"}
  if name == "cifar100":
    keys = {"coarse_label": "coarse_labels", "label": "fine_labels"}
  *train, test, meta = PYTHON_FILES[name]
  batches = [read_cifar_batch(read_checked(files, file), keys) for file in [*train, test]]
  images = np.concatenate([batch for batch, _ in batches[:-1]])
  labels = {key: np.concatenate([own[key] for _, own in batches[:-1]]) for key in keys}
  names = read_pickle(read_checked(files, meta))
  kinds = {
    key: names[key_there.replace("labels", "label_names")] for key, key_there in keys.items()
  }
  return Content({"train": Split(images, labels), "test": Split(*batches[-1])}, kinds)


def _obtain(url: str, path: Path, checksum: str) -> Path:
  """Return the archive at `path`, downloaded if missing; its SHA-256 is always checked."""
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with _connect(url, path) as answer, atomic_write(path) as file:
      print(f"downloading {url}", flush=True)
      _copy(answer, file, url, path)
  _check_sum(path, url, checksum)
  return path


def _copy(answer: Any, file: Any, url: str, path: Path) -> None:
  length = str(getattr(answer, "headers", {}).get("Content-Length", ""))
  total = int(length) >> 20 if length.isdecimal() else None
  with progress.phase(f"downloading {path.name}", total, "MiB") as phase:
    while True:
      try:
        block = answer.read(1 << 20)
      except (OSError, http.client.HTTPException) as error:
        raise _cannot_download(url, error, path) from error
      if not block:
        return
      file.write(block)
      phase.set(file.tell() >> 20)


def _cannot_download(url: str, error: Exception, path: Path) -> UserError:
  return UserError(
    f"cannot download {url} ({error}); put that file at {path} and start again, or train on "
    "what needs no download: `config=ddpm_digits`"
  )


def _check_sum(path: Path, url: str, checksum: str) -> None:
  with path.open("rb") as file:
    actual = hashlib.file_digest(file, "sha256").hexdigest()
  if actual != checksum:
    raise UserError(
      f"{path} has SHA-256 {actual}, expected {checksum}; delete it and put {url} there"
    )


def _connect(url: str, path: Path) -> Any:
  """Open a URL, at most CONNECT_SEC long whatever the resolver and the network do."""
  answers: queue.Queue[Any] = queue.Queue()

  def connect() -> None:
    try:
      answers.put(urllib.request.urlopen(url, timeout=CONNECT_SEC))
    except Exception as error:
      answers.put(error)

  threading.Thread(target=connect, daemon=True).start()
  try:
    answer = answers.get(timeout=CONNECT_SEC)
  except queue.Empty:
    answer = TimeoutError("no answer")
  if isinstance(answer, Exception):
    raise _cannot_download(url, answer, path)
  return answer


def _write(official: Any, content: Content, data_dir: Path) -> Path:
  """Write TFDS's layout into a temporary folder and move it into place atomically."""
  import tensorflow_datasets as tfds

  target = data_dir / official.name / str(official.version)
  with (
    tempfile.TemporaryDirectory(dir=data_dir, prefix=".preparing_") as scratch,
    unfinished(Path(scratch)),
  ):
    builder = _builder_class(official, content)(data_dir=scratch, file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # its output names the temporary folder
      builder.download_and_prepare()
    target.parent.mkdir(exist_ok=True)
    if not target.exists():  # another process may have finished first
      os.replace(builder.data_dir, target)
  return target


def _builder_class(official: Any, content: Content) -> Any:
  """Return a builder with the official name, version and features, fed from memory."""
  import tensorflow_datasets as tfds

  features = official.info.features
  for key, names in content.class_names.items():
    features[key].names = names

  core: Any = tfds.core
  with core.registered.skip_registration():

    class Builder(tfds.core.GeneratorBasedBuilder):
      name = official.name
      VERSION = official.version

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self, description=official.info.description, features=features,
          supervised_keys=official.info.supervised_keys, homepage=official.info.homepage,
          citation=official.info.citation,
        )  # fmt: skip

      def _split_generators(self, dl_manager):
        del dl_manager
        return {name: _examples(name, split, features) for name, split in content.splits.items()}

      def _generate_examples(self):
        raise NotImplementedError  # each split has its own generator

  return Builder


def _examples(name: str, split: Split, features: Any) -> Iterator[tuple[str, dict[str, Any]]]:
  for i, image in enumerate(split.images):
    key = f"{name}_{i:05d}"
    example: dict[str, Any] = {n: int(values[i]) for n, values in split.labels.items()}
    yield key, {**example, "image": _png(image), **({"id": key} if "id" in features else {})}


def _png(image: UInt8[np.ndarray, "H W C"]) -> io.BytesIO:
  """Return PNG bytes, the only form in which TFDS accepts images without TensorFlow."""
  file = io.BytesIO()
  Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, format="PNG")
  file.seek(0)
  return file


def _read_cifar10(files: Files) -> Content:
  return _cifar10_content(_members(files["cifar-10-binary.tar.gz"], "cifar-10-batches-bin"))


def _cifar10_content(members: Mapping[str, bytes]) -> Content:
  names = [f"data_batch_{i}.bin" for i in range(1, 6)]
  train = _cifar_split(b"".join(members[n] for n in names), ("label",))
  test = _cifar_split(members["test_batch.bin"], ("label",))
  return Content({"train": train, "test": test}, {"label": _lines(members["batches.meta.txt"])})


def _read_cifar100(files: Files) -> Content:
  return _cifar100_content(_members(files["cifar-100-binary.tar.gz"], "cifar-100-binary"))


def _cifar100_content(members: Mapping[str, bytes]) -> Content:
  keys = ("coarse_label", "label")
  splits = {name: _cifar_split(members[f"{name}.bin"], keys) for name in ("train", "test")}
  names = {
    "coarse_label": _lines(members["coarse_label_names.txt"]),
    "label": _lines(members["fine_label_names.txt"]),
  }
  return Content(splits, names)


def _members(archive: Path, folder: str) -> dict[str, bytes]:
  """Return the files of a folder in a tar archive, by name."""
  with tarfile.open(archive) as tar:
    extracted = {m.name: tar.extractfile(m) for m in tar if m.isfile()}
    return {
      Path(name).name: file.read()
      for name, file in extracted.items()
      if file is not None and Path(name).parent.name == folder
    }


def _cifar_split(data: bytes, keys: tuple[str, ...]) -> Split:
  """Parse records of one byte per label, then 3 planes of 32x32."""
  records = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3072)
  images = records[:, len(keys) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Split(np.ascontiguousarray(images), {key: records[:, i] for i, key in enumerate(keys)})


def _lines(text: bytes) -> list[str]:
  return text.decode().split()


def _read_mnist(files: Files) -> Content:
  return _mnist_content(lambda name: gzip.decompress(files[name].read_bytes()))


def _mnist_content(read: Callable[[str], bytes]) -> Content:
  stems = {"train": "train", "test": "t10k"}
  splits = {
    name: Split(
      _idx(read(f"{stem}-images-idx3-ubyte.gz"))[..., None],
      {"label": _idx(read(f"{stem}-labels-idx1-ubyte.gz"))},
    )
    for name, stem in stems.items()
  }
  return Content(splits, {})


def _idx(data: bytes) -> UInt8[np.ndarray, "..."]:
  """Read an array of bytes in the idx format: magic 0 0 8 rank, sizes big-endian, data."""
  rank = data[3]
  shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


STANDARD: Mapping[str, Callable[[Files], Content]] = {
  "cifar10": _read_cifar10,
  "cifar100": _read_cifar100,
  "mnist": _read_mnist,
  "fashion_mnist": _read_mnist,
}
