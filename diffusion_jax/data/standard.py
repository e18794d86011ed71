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

from diffusion_jax.core.files import atomic_write, unfinished
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


def prepare_standard(name: str, data_dir: Path) -> Path:
  """Download (unless the archives exist) and prepare a standard set.

  Args:
    name: a key of STANDARD.
    data_dir: parent of `<name>/<version>/`; archives are kept in `downloads/<name>/`.

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
    files = {
      info.filename: _obtain(url, data_dir / "downloads" / name / info.filename, info.checksum)
      for url, info in official.url_infos.items()
    }
    print(f"preparing {name} in {data_dir}: about a minute, once", flush=True)
    return _write(official, STANDARD[name](files), data_dir)
  except OSError as error:
    raise UserError(f"{data_dir} cannot be written ({error}); choose another data_dir") from error


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
  while True:
    try:
      block = answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
      raise _cannot_download(url, error, path) from error
    if not block:
      return
    file.write(block)


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
  folder = "cifar-10-batches-bin"
  names = [f"data_batch_{i}.bin" for i in range(1, 6)]
  members = _members(files["cifar-10-binary.tar.gz"], folder)
  train = _cifar_split(b"".join(members[n] for n in names), ("label",))
  test = _cifar_split(members["test_batch.bin"], ("label",))
  return Content({"train": train, "test": test}, {"label": _lines(members["batches.meta.txt"])})


def _read_cifar100(files: Files) -> Content:
  keys = ("coarse_label", "label")
  members = _members(files["cifar-100-binary.tar.gz"], "cifar-100-binary")
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
  stems = {"train": "train", "test": "t10k"}
  splits = {
    name: Split(
      _idx(files[f"{stem}-images-idx3-ubyte.gz"])[..., None],
      {"label": _idx(files[f"{stem}-labels-idx1-ubyte.gz"])},
    )
    for name, stem in stems.items()
  }
  return Content(splits, {})


def _idx(path: Path) -> UInt8[np.ndarray, "..."]:
  """Read an array of bytes in the idx format: magic 0 0 8 rank, sizes big-endian, data."""
  data = gzip.decompress(path.read_bytes())
  rank = data[3]
  shape = np.frombuffer(data, ">u4", rank, 4).astype(int)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


STANDARD: Mapping[str, Callable[[Files], Content]] = {
  "cifar10": _read_cifar10,
  "cifar100": _read_cifar100,
  "mnist": _read_mnist,
  "fashion_mnist": _read_mnist,
}
