"""Decoded pictures are kept while nothing changes, and every file is accounted for."""

import os

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import Folder, decoded, fingerprint
from diffusion_jax.data.accounting import FileCounts, treatment
from diffusion_jax.data.source import fit_image
from diffusion_jax.types import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(decoded, "CACHED_FROM_SEC", 0.0)
  return tmp_path / "cache" / "diffusion_jax" / "decoded"


@pytest.fixture
def num_decoded(monkeypatch):
  """A list with one entry per decoded set."""
  calls, decode = [], decoded._decode
  monkeypatch.setattr(decoded, "_decode", lambda *args: calls.append(1) or decode(*args))
  return calls


def save(path, height=8, width=8):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path)
  return path


@pytest.fixture
def root(tmp_path):
  for i in range(4):
    save(tmp_path / "set" / f"{i}.png")
  return tmp_path / "set"


def test_unchanged_pictures_are_decoded_once(root, num_decoded):
  data = Folder(path=str(root), image_size=4, test_fraction=0.25)
  first = fingerprint(data.load("train")), fingerprint(data.load("test"))
  assert (fingerprint(data.load("train")), fingerprint(data.load("test"))) == first
  assert len(num_decoded) == 1
  for changed in ({"image_size": 5}, {"channels": 1}, {"draft": True}):
    Folder(**{"path": str(root), "image_size": 4, **changed}).load("train")
  assert len(num_decoded) == 4


def test_a_change_to_a_file_decodes_again(root, num_decoded):
  data = Folder(path=str(root), image_size=4)
  before = fingerprint(data.load("train"))
  save(root / "2.png")
  assert fingerprint(data.load("train")) != before
  assert len(num_decoded) == 2


def test_a_flipped_bit_in_the_cache_is_noticed(root, cache, num_decoded):
  data = Folder(path=str(root), image_size=4)
  before = fingerprint(data.load("train"))
  (file,) = cache.glob("*/images.npy")
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  assert fingerprint(data.load("train")) == before
  assert len(num_decoded) == 2


def test_the_cache_keeps_what_was_used_last(root, cache, monkeypatch):
  sizes = {}
  for size in (20, 21, 22, 23):
    before = set(cache.glob("*"))
    Folder(path=str(root), image_size=size).load("train")
    (sizes[size],) = set(cache.glob("*")) - before
    os.utime(sizes[size] / "about.json", (size, size))
    if size == 21:
      os.utime(sizes[20] / "about.json", (99, 99))  # used again
      monkeypatch.setattr(decoded, "MAX_CACHE_BYTES", 16_800)
  assert {size for size, folder in sizes.items() if folder.exists()} == {20, 23}


def test_without_a_cache_the_pictures_are_the_same(root, monkeypatch):
  data = Folder(path=str(root), image_size=4)
  kept = fingerprint(data.load("train"))
  monkeypatch.setattr(decoded, "_store", lambda *args: None)
  monkeypatch.setattr(decoded, "_load", lambda *args: None)
  assert fingerprint(data.load("train")) == kept


def test_each_file_is_counted_once(root, tmp_path):
  for name, size in {"wide": (4, 8), "large": (9, 9), "long": (9, 30), "tiny": (3, 2)}.items():
    save(root / f"{name}.png", *size)
  save(root / "fits.png", 4, 4)
  for i in range(4):
    (root / f"{i}.png").unlink()
  (root / "empty.jpg").touch()
  (root / "cut.bmp").write_bytes(save(tmp_path / "x.bmp").read_bytes()[:-9])
  (root / "a.mov").write_text("x")
  (root / ".hidden").mkdir()
  for i in range(3):
    save(root / ".hidden" / f"{i}.png")
  (root / "gone.png").symlink_to("nowhere")
  counts = Folder(path=str(root), image_size=4, unreadable="skip").load("train").about.files
  assert counts.found == sum(len(names) for _, _, names in os.walk(root))
  assert counts.pictures == {
    "as they are": 1, "cropped": 1, "resized": 1, "resized and cropped": 1, "enlarged": 1,
  }  # fmt: skip
  assert counts.skipped == {
    "not pictures (.mov)": 1, "hidden or of the system": 3, "links that lead nowhere": 1,
    "empty": 1, "cut off": 1,
  }  # fmt: skip
  assert counts.text().startswith("12 files: 5 pictures (1 as they are, 1 resized, 1 cropped, ")
  assert counts.text().endswith("1 cut off)")


def test_the_reasons_are_told_if_nothing_can_be_read(tmp_path):
  (tmp_path / "a.png").touch()
  with pytest.raises(UserError, match=r"none of its 1 pictures can be read \(1 empty\)"):
    Folder(path=str(tmp_path), unreadable="skip", image_size=4).load("train")


def test_pictures_beside_the_classes_are_skipped_if_they_are_few(tmp_path):
  for name in ("cat/1.png", "cat/2.png", "dog/1.png", "stray.png"):
    save(tmp_path / name)
  source = Folder(path=str(tmp_path), unreadable="skip").load("train")
  assert (source.about.classes, len(source)) == (["cat", "dog"], 3)
  assert source.about.files.skipped == {"beside the folders of the classes": 1}
  for i in range(3):
    save(tmp_path / f"stray{i}.png")
  with pytest.raises(UserError, match=r"holds classes \(cat, \.\.\.\) and stray"):
    Folder(path=str(tmp_path), unreadable="skip").load("train")


def test_splits_add_up_and_parts_of_one_folder_count_once():
  one = FileCounts({"resized": 3}, {"empty": 1})
  assert one.plus(one) is one is one.plus(None)
  assert one.plus(FileCounts({"resized": 2}, {})) == FileCounts({"resized": 5}, {"empty": 1})
  assert treatment(8, 8, None) == "as they are"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_is_decoded_at_a_reduced_size(mode, progressive, tmp_path):
  """A smooth picture stays the same to two levels, and far fewer pixels are decoded."""
  y, x = np.mgrid[0:512, 0:768] / 512
  smooth = 127 + 100 * np.stack([np.sin(3 * x), np.cos(2 * y), np.sin(x + y)], -1)
  Image.fromarray(smooth.astype(np.uint8)).convert(mode).save(
    tmp_path / "a.jpg", quality=95, progressive=progressive
  )
  found = {}
  for draft in (False, True):
    with Image.open(tmp_path / "a.jpg") as image:
      found[draft] = fit_image(image, 32, 3, draft).astype(int)
      assert image.size == ((96, 64) if draft else (768, 512))
  assert abs(found[True] - found[False]).max() <= 2
