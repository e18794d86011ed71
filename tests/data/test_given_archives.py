"""Standard sets from other people's archives; a pickle in them executes nothing."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from diffusion_jax import prepare
from diffusion_jax.data import Tfds, given_archives, standard
from diffusion_jax.data.finding import find_data
from diffusion_jax.types import UserError

RNG = np.random.default_rng(0)
NAMES = [f"class_{i}" for i in range(10)]


def as_python_2(data: dict) -> bytes:
  """Return a pickle as CIFAR's: byte strings as keys, an array, written with protocol 2."""
  return pickle.dumps({k.encode(): v for k, v in data.items()}, protocol=2)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
  """A folder as torchvision unpacks it, with ten pictures a file, and the same as .bin files."""
  root, binary = tmp_path / "root" / "cifar-10-batches-py", tmp_path / "cifar-10-batches-bin"
  root.mkdir(parents=True)
  binary.mkdir()
  for name in standard.PYTHON_FILES["cifar10"][:-1]:
    rows, labels = RNG.integers(0, 256, (10, 3072), np.uint8), RNG.permutation(10).tolist()
    filenames = [f"{i}.png".encode() for i in range(10)]
    batch = {"batch_label": b"x", "labels": labels, "data": rows, "filenames": filenames}
    (root / name).write_bytes(as_python_2(batch))
    records = np.concatenate([np.array(labels, np.uint8)[:, None], rows], 1)
    (binary / f"{name}.bin").write_bytes(records.tobytes())
  names = [name.encode() for name in NAMES]
  (root / "batches.meta").write_bytes(as_python_2({"num_vis": 3072, "label_names": names}))
  (binary / "batches.meta.txt").write_text("\n".join(NAMES))
  sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in root.iterdir()}
  monkeypatch.setattr(given_archives, "MD5", sums)
  return tmp_path


def content(source):
  return standard.read_given("cifar10", source, {"cifar-10-binary.tar.gz": "0" * 64})


def assert_same(one, other):
  assert one.class_names == other.class_names == {"label": NAMES}
  for split in ("train", "test"):
    np.testing.assert_array_equal(one.splits[split].images, other.splits[split].images)
    np.testing.assert_array_equal(
      one.splits[split].labels["label"], other.splits[split].labels["label"]
    )


@pytest.mark.parametrize("pack", ["folder", "root", "gztar", "zip"])
def test_every_packing_is_the_same_set(pack, cifar10):
  if pack in ("gztar", "zip"):
    source = shutil.make_archive(str(cifar10 / "cifar-10-python"), pack, cifar10 / "root")
    source = type(cifar10)(source)
  else:
    source = cifar10 / ("root" if pack == "root" else "root/cifar-10-batches-py")
  found = content(source)
  assert found.splits["train"].images.shape == (50, 32, 32, 3)
  assert_same(found, content(cifar10 / "cifar-10-batches-bin"))


def test_files_without_checksums_are_said(cifar10, capsys):
  content(cifar10 / "cifar-10-batches-bin")
  assert "have no published checksums, so they are not verified" in capsys.readouterr().out


def test_a_changed_file_is_refused(cifar10):
  file = cifar10 / "root/cifar-10-batches-py/data_batch_3"
  file.write_bytes(file.read_bytes().replace(b"batch_label", b"batch_lebal"))
  with pytest.raises(UserError, match=r"data_batch_3 has MD5 .*, expected"):
    content(cifar10 / "root")


def test_cifar100(tmp_path, monkeypatch):
  for name in ("train", "test"):
    batch = {"data": RNG.integers(0, 256, (4, 3072), np.uint8), "fine_labels": [0, 1, 99, 3],
             "coarse_labels": [0, 1, 19, 2]}  # fmt: skip
    (tmp_path / name).write_bytes(as_python_2(batch))
  kinds = {"fine_label_names": [b"a"] * 100, "coarse_label_names": [b"b"] * 20}
  (tmp_path / "meta").write_bytes(as_python_2(kinds))
  sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()}
  monkeypatch.setattr(given_archives, "MD5", sums)
  found = standard.read_given("cifar100", tmp_path, {"cifar-100-binary.tar.gz": ""})
  assert found.splits["train"].labels["label"].tolist() == [0, 1, 99, 3]
  assert found.splits["test"].labels["coarse_label"].tolist() == [0, 1, 19, 2]
  assert len(found.class_names["label"]) == 100


def idx(array):
  head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
  return head + array.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_mnists_folder_of_torchvision(packed, tmp_path):
  raw, sums = tmp_path / "MNIST" / "raw", {}
  raw.mkdir(parents=True)
  images, labels = RNG.integers(0, 256, (5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
  for stem in ("train", "t10k"):
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
      name = f"{stem}-{kind}-ubyte.gz"
      data = gzip.compress(idx(array))
      sums[name] = hashlib.sha256(data).hexdigest()
      file = raw / (name if packed else name[:-3])
      file.write_bytes(data if packed else idx(array))
  found = standard.read_given("mnist", tmp_path, sums)
  np.testing.assert_array_equal(found.splits["test"].images[..., 0], images)
  if packed:
    with pytest.raises(UserError, match="has SHA-256"):
      standard.read_given("mnist", tmp_path, dict.fromkeys(sums, "0"))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_from_every_protocol(protocol):
  array = RNG.integers(0, 256, (3, 4), np.uint8)
  data = {b"data": array, "labels": [1, 2], b"more": (None, 1.5, True, "ü")}
  found = given_archives.read_pickle(pickle.dumps(data, protocol))
  np.testing.assert_array_equal(found["data"], array)
  assert (found["labels"], found["more"]) == ([1, 2], [None, 1.5, True, "ü"])


class Evil:
  def __init__(self, call, *args):
    self.call, self.args = call, args

  def __reduce__(self):
    return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
  "call", [(os.mkdir,), (eval,), (np.fromfile,), (np.load,), (getattr,), (np.memmap,)],
  ids=lambda call: call[0].__name__,
)  # fmt: skip
def test_a_pickle_executes_nothing(call, protocol, tmp_path):
  path = tmp_path / "made"
  for data in (Evil(call[0], str(path)), {"data": [Evil(call[0], str(path))]}):
    with pytest.raises(UserError, match=r"which is no data|cannot be read"):
      given_archives.read_pickle(pickle.dumps(data, protocol))
  assert not path.exists()


def test_objects_and_other_arrays_are_refused():
  for data in (np.array([print], object), np.array([1.5]), {1, 2}, np.array([1 << 40])):
    with pytest.raises(UserError, match=r"a pickle "):
      given_archives.read_pickle(pickle.dumps({"data": data}, 2))


def test_other_folders_and_nothing(tmp_path):
  with pytest.raises(UserError, match=r"is not cifar10; give cifar-10-binary\.tar\.gz"):
    content(tmp_path)
  with pytest.raises(UserError, match="no such folder or archive"):
    content(tmp_path / "none")


def test_the_downloaded_archive_is_checked(tmp_path):
  with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
    archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
  with pytest.raises(UserError, match="has SHA-256"):
    content(tmp_path / "cifar-10-binary.tar.gz")


def test_own_data_names_the_command(cifar10):
  with pytest.raises(UserError, match=r"diffusion-jax prepare cifar10 .*, then `data=cifar10`"):
    find_data(str(cifar10 / "root"))


def test_the_command_prepares_it(cifar10, call):
  code, out, err = call(prepare.main, "cifar10", cifar10 / "root", f"--data_dir={cifar10}/tfds")
  assert code == 0, err
  assert "prepared" in out
  source = Tfds(dataset="cifar10", data_dir=f"{cifar10}/tfds").load("test")
  theirs = content(cifar10 / "root").splits["test"]
  assert source.about.classes == NAMES
  ours = source.gather(np.arange(10))
  order = [int(np.flatnonzero((theirs.images == image).all((1, 2, 3)))[0]) for image in ours[0]]
  assert sorted(order) == list(range(10))
  assert theirs.labels["label"][order].tolist() == ours[1].tolist()


def test_a_misspelt_name_is_told(call):
  code, _, err = call(prepare.main, "cifar1O")
  assert code == 2
  assert "Did you mean 'cifar10" in err
