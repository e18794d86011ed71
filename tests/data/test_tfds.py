"""Data sets in TFDS's own on-disk format, written here; the standard sets from small archives."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import time
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import Tfds, standard
from diffusion_jax.data.source import DecodedSource
from diffusion_jax.types import ImageSpec, UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 4


def png(image):
  file = io.BytesIO()
  Image.fromarray(image.squeeze()).save(file, "PNG")
  file.seek(0)
  return file


def write(folder, images=IMAGES, shape=(6, 5, 3), splits=(("train", 9), ("test", 3))):
  """A data set of TFDS: `splits` gives names and numbers of examples."""
  with tfds.core.registered.skip_registration():

    class Pets(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.2.0")

      def _info(self):
        features = tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=4),
            "age": np.float32,
          }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, dl_manager):
        first, parts = 0, {}
        for split, num in splits:
          parts[split], first = self._generate_examples(first, first + num), first + num
        return parts

      def _generate_examples(self, first, last):
        for i in range(first, last):
          yield i, {"image": png(images[i]), "label": int(LABELS[i]), "age": np.float32(i)}

  Pets(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  write(path)
  return path


def read(data, split="train"):
  source = data.load(split)
  return source, *source.gather(np.arange(len(source)))


def as_set(images, labels):
  return sorted((i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True))


def test_both_splits_come_back_exactly(folder):
  data = Tfds(dataset="pets", data_dir=str(folder))
  source, images, labels = read(data)
  assert source.spec == ImageSpec(6, 5, 3, 256, 4)
  assert as_set(images, labels) == as_set(IMAGES[:9], LABELS[:9])
  assert as_set(*read(data, "test")[1:]) == as_set(IMAGES[9:], LABELS[9:])


def test_a_set_too_large_for_memory_is_read_one_by_one(folder):
  small = read(Tfds(dataset="pets", data_dir=str(folder)))
  large = read(Tfds(dataset="pets", data_dir=str(folder), max_ram_gib=0.0))
  assert isinstance(large[0], DecodedSource)
  for a, b in zip(small[1:], large[1:], strict=True):
    np.testing.assert_array_equal(a, b)


def test_splits_in_tfds_notation(folder):
  data = Tfds(dataset="pets:1.2.0", data_dir=str(folder), train_split="train[:4]+test",
              test_split=None)  # fmt: skip
  assert len(data.load("train")) == 7
  assert not data.has_split("test")


def test_the_standard_place_is_looked_at(folder, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
  assert len(Tfds(dataset="pets").load("train")) == 9


def test_unlabelled_and_resized_on_request(folder):
  source, images, labels = read(
    Tfds(dataset="pets", data_dir=str(folder), label_key=None, image_size=4)
  )
  assert source.spec == ImageSpec(4, 4, 3, 256, 0)
  assert images.shape == (9, 4, 4, 3)
  assert not labels.any()


def test_the_newest_version_is_read(folder, tmp_path):
  shutil.copytree(folder / "pets", tmp_path / "pets")
  shutil.copytree(tmp_path / "pets" / "1.2.0", tmp_path / "pets" / "1.10.0")
  assert Tfds(dataset="pets", data_dir=str(tmp_path))._folder().name == "1.10.0"
  assert Tfds(dataset="pets:1.2.0", data_dir=str(tmp_path))._folder().name == "1.2.0"


def test_pictures_of_many_sizes_need_a_size(tmp_path):
  write(tmp_path, shape=(None, None, 3))
  with pytest.raises(UserError, match=r"many sizes; set e.g. `data.image_size=64`"):
    Tfds(dataset="pets", data_dir=str(tmp_path)).load("train")
  assert Tfds(dataset="pets", data_dir=str(tmp_path), image_size=4).load("train").spec.height == 4


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"test_split": "validation"}, r"test_split=validation` .* train \(9\), test \(3\); none"),
    ({"test_split": "test[:0]"}, r"test_split=test\[:0\]` cannot be read"),
    ({"image_key": "picture"}, "image_key=picture`: pets has the features age, image, label"),
    ({"image_key": "age"}, "must be a picture of 8 bits"),
    ({"label_key": "age"}, "label_key=age` is not a class label"),
    (
      {"dataset": "pet"},
      "no such set. Did you mean 'pets'.*=ddpm_digits` needs no download",
    ),
    ({"dataset": "cifar_10"}, "no such set. Did you mean 'cifar10'"),
    ({"dataset": "imagenet_v2"}, r"prepare it with: pip install .*tfds-prepare.* imagenet_v2 --"),
    ({"dataset": "cifar10:9.9"}, "tensorflow-datasets has no version 9.9 of cifar10; it has 3"),
    ({"dataset": "pets:9.9.9"}, r"pets:9\.9\.9`: .*pets has the version 1\.2\.0"),
  ],
)
def test_what_is_not_there_is_named(folder, fields, message):
  with pytest.raises(UserError, match=message):
    Tfds(**{"dataset": "pets", "data_dir": str(folder), **fields}).load("test")


def test_a_set_stored_as_tfrecord_is_refused(folder, tmp_path):
  shutil.copytree(folder / "pets", tmp_path / "pets")
  info = tmp_path / "pets" / "1.2.0" / "dataset_info.json"
  info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
  with pytest.raises(UserError, match=r"stored as tfrecord.*prepare it again as array_record"):
    Tfds(dataset="pets", data_dir=str(tmp_path)).load("train")


def test_a_damaged_description_is_named(folder, tmp_path):
  shutil.copytree(folder / "pets", tmp_path / "pets")
  (tmp_path / "pets" / "1.2.0" / "features.json").write_text("{")
  with pytest.raises(UserError, match=r"1\.2\.0 is damaged"):
    Tfds(dataset="pets", data_dir=str(tmp_path)).load("train")


def test_an_example_that_cannot_be_read_is_named(folder, tmp_path):
  shutil.copytree(folder / "pets", tmp_path / "pets")
  (data,) = (tmp_path / "pets" / "1.2.0").glob("pets-train.array_record*")
  data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
  with pytest.raises(UserError, match="cannot be read"):
    Tfds(dataset="pets", data_dir=str(tmp_path)).load("train")


# The standard sets, from archives in the originals' formats with a few images each.


def tar_of(files):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w:gz") as tar:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return file.getvalue()


def cifar_bytes(images, *labels):
  rows = [
    bytes(int(y[i]) for y in labels) + image.transpose(2, 0, 1).tobytes()
    for i, image in enumerate(images)
  ]
  return b"".join(rows)


def idx_bytes(array):
  head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  return gzip.compress(head + array.astype(np.uint8).tobytes())


TINY = {
  "cifar": (RNG.integers(0, 256, (12, 32, 32, 3), np.uint8), RNG.integers(0, 10, 12)),
  "mnist": (RNG.integers(0, 256, (12, 28, 28, 1), np.uint8), RNG.integers(0, 10, 12)),
}
CLASSES = [f"class{i}" for i in range(10)]


def archives(name):
  """The archives of a standard set with 10 training images and 2 test images."""
  images, labels = TINY["mnist" if "mnist" in name else "cifar"]
  if "mnist" in name:
    parts = {"train": slice(0, 10), "t10k": slice(10, 12)}
    return {
      f"{stem}-{kind}-ubyte.gz": idx_bytes(array[part])
      for stem, part in parts.items()
      for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels))
    }
  if name == "cifar100":
    files = {
      "train.bin": cifar_bytes(images[:10], labels[:10] % 2, labels[:10]),
      "test.bin": cifar_bytes(images[10:], labels[10:] % 2, labels[10:]),
      "coarse_label_names.txt": "\n".join(f"coarse{i}" for i in range(20)).encode(),
      "fine_label_names.txt": "\n".join(f"fine{i}" for i in range(100)).encode() + b"\n",
    }
    return {
      "cifar-100-binary.tar.gz": tar_of({f"cifar-100-binary/{n}": c for n, c in files.items()})
    }
  batches = {
    f"data_batch_{i}.bin": cifar_bytes(images[2 * i - 2 : 2 * i], labels[2 * i - 2 : 2 * i])
    for i in range(1, 6)
  }
  batches["test_batch.bin"] = cifar_bytes(images[10:], labels[10:])
  batches["batches.meta.txt"] = "\n".join(CLASSES).encode() + b"\n\n"
  return {
    "cifar-10-binary.tar.gz": tar_of({f"cifar-10-batches-bin/{n}": c for n, c in batches.items()})
  }


@pytest.fixture
def checksums_of(monkeypatch):
  """Makes TFDS's table hold the sums of our small archives; the addresses stay."""

  def replace(name, contents):
    cls = type(tfds.builder(name))
    table = {
      url: types.SimpleNamespace(
        filename=info.filename, checksum=hashlib.sha256(contents[info.filename]).hexdigest()
      )
      for url, info in cls.url_infos.items()
    }
    monkeypatch.setattr(cls, "url_infos", table)

  return replace


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_standard_sets_are_prepared_from_archives_that_lie_there(tmp_path, checksums_of, name):
  contents = archives(name)
  checksums_of(name, contents)
  place = tmp_path / "downloads" / name
  place.mkdir(parents=True)
  for file, content in contents.items():
    (place / file).write_bytes(content)
  data = Tfds(dataset=name, data_dir=str(tmp_path))
  images, labels = TINY["mnist" if "mnist" in name else "cifar"]
  assert as_set(*read(data)[1:]) == as_set(images[:10], labels[:10])
  assert as_set(*read(data, "test")[1:]) == as_set(images[10:], labels[10:])
  assert data.load("train").spec.num_classes == (100 if name == "cifar100" else 10)
  assert not list(tmp_path.glob(".preparing*"))
  with_tfds = tfds.data_source(name, split="test", data_dir=str(tmp_path))
  assert len(with_tfds) == 2  # TFDS itself takes it for its own
  assert with_tfds.dataset_info.full_name.startswith(f"{name}/")


def test_a_set_that_is_prepared_needs_no_archives(tmp_path, checksums_of, monkeypatch):
  contents = archives("mnist")
  checksums_of("mnist", contents)
  urls = lambda url, timeout: Answer(contents[url.rsplit("/", 1)[1]])  # noqa: E731
  monkeypatch.setattr(standard.urllib.request, "urlopen", urls)
  folder = standard.prepare_standard("mnist", tmp_path)
  shutil.rmtree(tmp_path / "downloads")
  monkeypatch.setattr(standard.urllib.request, "urlopen", None)
  assert standard.prepare_standard("mnist", tmp_path) == folder


def test_class_names_are_kept(tmp_path, checksums_of):
  contents = archives("cifar10")
  checksums_of("cifar10", contents)
  (tmp_path / "downloads" / "cifar10").mkdir(parents=True)
  (tmp_path / "downloads" / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(*contents.values())
  folder = standard.prepare_standard("cifar10", tmp_path)
  assert tfds.builder_from_directory(str(folder)).info.features["label"].names == CLASSES


class Answer(io.BytesIO):
  """What urlopen returns."""


def test_archives_are_downloaded_checked_and_kept(tmp_path, checksums_of, monkeypatch):
  contents = archives("mnist")
  checksums_of("mnist", contents)
  asked = []

  def urlopen(url, timeout):
    asked.append(url)
    return Answer(contents[url.rsplit("/", 1)[1]])

  monkeypatch.setattr(standard.urllib.request, "urlopen", urlopen)
  standard.prepare_standard("mnist", tmp_path)
  assert len(asked) == 4
  kept = {p.name: p.read_bytes() for p in (tmp_path / "downloads" / "mnist").iterdir()}
  assert kept == contents


def test_a_download_that_breaks_off_can_be_repeated(tmp_path, checksums_of, monkeypatch):
  contents = archives("cifar10")
  checksums_of("cifar10", contents)

  class Broken(Answer):
    def read(self, size=-1):
      raise TimeoutError("timed out")

  answers = [Broken(b""), Answer(*contents.values())]
  monkeypatch.setattr(standard.urllib.request, "urlopen", lambda url, timeout: answers.pop(0))
  with pytest.raises(UserError, match=r"cannot download https?://.*timed out.*put that file at"):
    standard.prepare_standard("cifar10", tmp_path)
  standard.prepare_standard("cifar10", tmp_path)


def test_a_wrong_checksum_is_refused(tmp_path, checksums_of, monkeypatch):
  contents = archives("cifar10")
  checksums_of("cifar10", contents)
  monkeypatch.setattr(
    standard.urllib.request, "urlopen", lambda url, timeout: Answer(b"something else")
  )
  with pytest.raises(
    UserError, match=r"has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; delete it"
  ):
    standard.prepare_standard("cifar10", tmp_path)
  assert not (tmp_path / "cifar10").exists()


def test_without_a_network_it_fails_within_seconds(tmp_path, monkeypatch):
  """Whatever the network does: an address that refuses, and one that never answers."""

  def hang(url, timeout):
    time.sleep(60)

  monkeypatch.setattr(standard, "CONNECT_SEC", 0.5)
  for urlopen in (hang, lambda url, timeout: (_ for _ in ()).throw(OSError("unreachable"))):
    monkeypatch.setattr(standard.urllib.request, "urlopen", urlopen)
    begun = time.monotonic()
    with pytest.raises(
      UserError, match=r"put that file at .*cifar-10-binary\.tar\.gz .*`config=ddpm_digits`"
    ):
      Tfds(dataset="cifar10", data_dir=str(tmp_path)).load("train")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", standard.STANDARD)
def test_every_standard_set_has_a_sha256_in_tfds(name, tmp_path):
  table = tfds.builder(name, data_dir=str(tmp_path)).url_infos
  assert table
  assert all(len(info.checksum) == 64 and info.filename for info in table.values())
