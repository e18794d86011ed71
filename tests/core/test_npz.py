"""Arrays that anybody may have made: what is read of them, and one line for what is not."""

import pickle

import numpy as np
import pytest

from diffusion_jax.core import npz
from diffusion_jax.data import Arrays, load_pictures
from diffusion_jax.evaluation import reference
from diffusion_jax.extractors import load_domain
from diffusion_jax.types import ImageSpec, UserError

IMAGES = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)


def write(path, kind):
  """A file that is taken for an .npz of images, and is none."""
  if kind == "npy":
    with path.open("wb") as file:
      np.save(file, IMAGES)
  elif kind == "pickle":
    path.write_bytes(pickle.dumps({"images": IMAGES}))
  elif kind == "objects":
    ragged = np.empty(2, object)
    ragged[:] = [IMAGES[0], IMAGES[1, :1]]
    np.savez(path, images=ragged, labels=np.zeros(2, int), facts=ragged, stamp=ragged)
  elif kind == "object npy":
    with path.open("wb") as file:
      np.save(file, np.array([IMAGES, None], object), allow_pickle=True)
  elif kind in ("cut", "changed"):
    np.savez(path, images=IMAGES, facts=IMAGES, stamp=IMAGES)
    data = bytearray(path.read_bytes())
    data[170] ^= 255  # within the first array
    path.write_bytes(data if kind == "changed" else data[: len(data) // 2])
  else:
    path.write_bytes({"text": b"x,y\n1,2\n", "empty": b"", "zip": b"PK\3\4" + bytes(40)}[kind])


READERS = {
  "arrays": lambda path: Arrays(path=str(path)).load("train"),
  "arrays' test split": lambda path: Arrays(path=str(path)).has_split("test"),
  "--samples": lambda path: load_pictures(path, "--samples"),
  "--reference": reference.load_statistics,
  "--features": load_domain,
}

KINDS = {
  "npy": r"is a single array \(\.npy\), not an \.npz; ",
  "object npy": r"is a single array \(\.npy\), not an \.npz; ",
  "pickle": "is a Python pickle, which is not read; ",
  "objects": "has Python objects, which are refused; ",
  "text": r"is no \.npz; ",
  "empty": "is empty; ",
  "zip": "is damaged or cut short; ",
  "cut": "is damaged or cut short; ",
  "changed": "is damaged or cut short; ",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_another_kind_is_one_line_without_numpys_advice(reader, kind, tmp_path):
  path = tmp_path / "a.npz"
  write(path, kind)
  if reader == "arrays' test split" and kind in ("objects", "changed"):
    return  # only the names are looked at
  with pytest.raises(UserError, match=KINDS[kind]) as error:
    READERS[reader](path)
  text = str(error.value)
  assert "\n" not in text
  assert "a.npz" in text
  assert not any(word in text for word in ("pickle=", "unsafe", "weights_only", "allow_"))


@pytest.mark.parametrize("reader", ["arrays", "--samples"])
def test_the_name_of_a_file_does_not_matter(reader, tmp_path):
  np.savez(tmp_path / "a.npz", images=IMAGES)
  (tmp_path / "a.npz").rename(tmp_path / "a.npy")
  np.testing.assert_array_equal(READERS[reader](tmp_path / "a.npy").gather(np.arange(4))[0], IMAGES)


@pytest.mark.parametrize("reader", ["arrays", "--reference", "--features"])
def test_what_is_no_file(reader, tmp_path):
  for name, words in (("none.npz", "no such file"), ("", "is a folder|no such file")):
    with pytest.raises(UserError, match=words):
      READERS[reader](tmp_path / name)


def test_kerass_names_are_the_two_splits(tmp_path):
  """mnist.npz as Keras keeps it; the labels of its cifar10 are a column."""
  np.savez(
    tmp_path / "mnist.npz", x_train=IMAGES[..., 0], y_train=np.array([[0], [2], [2], [1]]),
    x_test=IMAGES[:1, ..., 0], y_test=np.array([1]),
  )  # fmt: skip
  data = Arrays(path=str(tmp_path / "mnist.npz"))
  assert data.has_split("test")
  train, test = data.load("train"), data.load("test")
  assert train.spec == test.spec == ImageSpec(2, 2, 1, 256, 3)
  assert train.gather(np.arange(4))[1].tolist() == [0, 2, 2, 1]
  assert test.gather(np.arange(1))[1].tolist() == [1]
  assert test.about.origin == f"x_test of {tmp_path / 'mnist.npz'}"


@pytest.mark.parametrize("labels", [None, [1, 0, 1, 1]])
def test_unnamed_arrays_are_images_and_labels(labels, tmp_path):
  np.savez(tmp_path / "a.npz", *[np.array(a) for a in (IMAGES, labels) if a is not None])
  source = Arrays(path=str(tmp_path / "a.npz")).load("train")
  assert source.spec == ImageSpec(2, 2, 3, 256, 2 if labels else 0)
  np.testing.assert_array_equal(source.gather(np.arange(4))[0], IMAGES)


def test_two_sets_of_images_are_refused_and_others_are_said(tmp_path):
  np.savez(tmp_path / "a.npz", x_train=IMAGES, images=IMAGES)
  with pytest.raises(UserError, match=r"has images and x_train, both images of the train split"):
    Arrays(path=str(tmp_path / "a.npz")).load("train")
  np.savez(tmp_path / "b.npz", x_train=IMAGES, x_val=IMAGES)
  source = Arrays(path=str(tmp_path / "b.npz")).load("train")
  assert source.about.notes == ["arrays that are not read: x_val"]
  np.savez(tmp_path / "c.npz")
  with pytest.raises(UserError, match=r"c\.npz` has no arrays; it needs train_images"):
    Arrays(path=str(tmp_path / "c.npz")).load("train")


def test_only_what_is_wanted_is_read(tmp_path):
  write(tmp_path / "a.npz", "objects")
  found = npz.read_npz(tmp_path / "a.npz", "--x=a.npz", lambda name: name == "labels")
  assert list(found) == ["labels"]
