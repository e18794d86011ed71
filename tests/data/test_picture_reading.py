"""What every reader of pictures makes of a file: upright, on white, refused where bits are lost."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import Folder
from diffusion_jax.data.listing import in_natural_order
from diffusion_jax.data.pictures import load_pictures
from diffusion_jax.data.shards import Task, list_pictures, write_shards
from diffusion_jax.types import UserError

ORIENTATION = 274
UPRIGHT = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)


def everything(source):
  return source.gather(np.arange(len(source)))[0]


# What a camera has stored of UPRIGHT, for each value of the tag.
STORED = {
  1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1],
  5: UPRIGHT.swapaxes(0, 1), 6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
  8: np.rot90(UPRIGHT, -1),
}  # fmt: skip


def write_turned(path, orientation):
  image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
  exif = image.getexif()
  exif[ORIENTATION] = orientation
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_as_its_camera_was_held(orientation, tmp_path):
  for name in ("a.png", "b.png"):
    write_turned(tmp_path / name, orientation)
  for source in (Folder(path=str(tmp_path)).load("train"), load_pictures(tmp_path, "--samples")):
    images = everything(source)
    assert images.shape == (2, 4, 6, 3)  # the header's size is turned too
    np.testing.assert_array_equal(images[0], UPRIGHT)


def test_prepared_records_are_upright_too(tmp_path):
  from diffusion_jax.data import Records

  for name in ("a.png", "b.png"):
    write_turned(tmp_path / "in" / name, 6)
  write_shards(Task(tmp_path / "in", tmp_path / "out", "train", 4, 3, 1))
  images = everything(Records(path=str(tmp_path / "out")).load("train"))
  exact = everything(Folder(path=str(tmp_path / "in"), image_size=4).load("train"))
  np.testing.assert_array_equal(images, exact)


def test_records_of_the_files_own_bytes_are_turned_when_they_are_read(tmp_path):
  """The header's size is that of the picture as it lies in the file."""
  from diffusion_jax.data import Records

  for name in ("a.png", "b.png"):
    write_turned(tmp_path / "in" / name, 6)
  write_shards(Task(tmp_path / "in", tmp_path / "out", num_shards=1))
  images = everything(Records(path=str(tmp_path / "out")).load("train"))
  np.testing.assert_array_equal(images, np.stack([UPRIGHT, UPRIGHT]))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode, tmp_path):
  """Clear, half clear and opaque black; what a clear pixel's colour would be is not seen."""
  alpha = np.array([[0, 128, 255]], np.uint8)
  if mode == "P":
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.info["transparency"] = 0
    image.save(tmp_path / "a.png", transparency=0)
    expected = [255, 0, 0]
  else:
    black = np.zeros((1, 3, len(mode) - 1), np.uint8)
    Image.fromarray(np.concatenate([black, alpha[..., None]], -1), mode).save(tmp_path / "a.png")
    expected = [255, 127, 0]
  for channels in (1, 3):
    images = everything(Folder(path=str(tmp_path), channels=channels).load("train"))
    np.testing.assert_array_equal(images[0, 0], np.tile(np.uint8(expected)[:, None], channels))


def write_png_of_16_bits(path, colour_type, channels):
  """Pillow reads such files but does not write them in colour."""
  rows = b"".join(b"\0" + bytes(range(2 * channels * 4)) for _ in range(4))
  chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]  # fmt: skip
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in chunks))  # fmt: skip


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused_in_grey_and_in_colour(colour_type, channels, tmp_path):
  write_png_of_16_bits(tmp_path / "a.png", colour_type, channels)
  with pytest.raises(UserError, match="more than 8 bits a channel, which would be cut off"):
    everything(Folder(path=str(tmp_path)).load("train"))


def test_classes_are_numbered_in_natural_order(tmp_path):
  names = ["10", "2", "1", "cat", "b10", "b9", "07"]
  assert sorted(names, key=in_natural_order) == ["1", "2", "07", "10", "b9", "b10", "cat"]
  for name in ("10", "2", "1"):
    (tmp_path / name).mkdir()
    Image.fromarray(np.full((2, 2), int(name), np.uint8)).save(tmp_path / name / "a.png")
  source = Folder(path=str(tmp_path), channels=1).load("train")
  images, labels = source.gather(np.arange(3))
  assert {int(i.max()): int(y) for i, y in zip(images, labels, strict=True)} == {1: 0, 2: 1, 10: 2}
  assert list_pictures(tmp_path).classes == ["1", "2", "10"]


def write_tree(root, *folders):
  for number, folder in enumerate(folders):
    (root / folder).mkdir(parents=True)
    Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(root / folder / "a.png")


@pytest.mark.parametrize("test", ["test", "val", "valid", "Validation"])
def test_torchvisions_layout_holds_two_splits_and_not_two_classes(test, tmp_path):
  write_tree(tmp_path, "train/cat", "train/dog", f"{test}/cat", f"{test}/dog", ".cache/x")
  data = Folder(path=str(tmp_path))
  assert data.has_split("test")
  for split, values in (("train", [0, 1]), ("test", [2, 3])):
    images, labels = data.load(split).gather(np.arange(2))
    assert images[:, 0, 0, 0].tolist() == values  # no picture of the other split
    assert labels.tolist() == [0, 1]
  assert data.load("train").spec.num_classes == 2
  with pytest.raises(UserError, match=r"are not classes; prepare each by itself: .*train --split"):
    list_pictures(tmp_path)


@pytest.mark.parametrize(
  ("folders", "words"),
  [
    (("train/cat", "test/cat", "cat"), r"named as splits \(train, test\) and others \(cat\)"),
    (("train/a", "val/a", "test/a"), r"holds train, test, val: give one folder train and one of"),
    (("test/a", "validation/a"), r"holds test, validation: give one folder train"),
  ],
)
def test_a_mixture_of_splits_and_others_is_refused(folders, words, tmp_path):
  write_tree(tmp_path, *folders)
  data = Folder(path=str(tmp_path))
  for refused in (lambda: data.load("train"), lambda: data.has_split("test")):
    with pytest.raises(UserError, match=words):
      refused()


def test_a_training_folder_alone_has_no_held_out_pictures(tmp_path):
  write_tree(tmp_path, "train/cat", "train/dog")
  data = Folder(path=str(tmp_path))
  assert not data.has_split("test")
  assert data.load("train").spec.num_classes == 2


def test_one_picture_is_enough_where_no_metric_is_taken(tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  assert len(load_pictures(tmp_path, "--images", least=1)) == 1
  with pytest.raises(UserError, match="holds 1 image; a sample metric needs at least 2"):
    load_pictures(tmp_path, "--samples")
  np.savez(tmp_path / "b.npz", images=np.zeros((0, 4, 4, 1), np.uint8))
  with pytest.raises(UserError, match="holds no image; give at least 1"):
    load_pictures(tmp_path / "b.npz", "--images", least=1)
