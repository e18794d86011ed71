"""Archives are read in place as the folder that they hold; labels beside pictures are read too."""

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import Folder, archives, fingerprint, load_pictures, shards
from diffusion_jax.types import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(side=8):
  file = io.BytesIO()
  Image.fromarray(RNG.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
  return file.getvalue()


def write_tar(path, members):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return path


def write_zip(path, members):
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return path


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "photos"
  for name in ("cat/1.png", "cat/deep/2.png", "小狗/1.png", "小狗/2.png", "notes.txt", ".DS_Store"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(png())
  return root


def load(path, split="train", **fields):
  return Folder(path=str(path), **fields).load(split)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("base", [None, "photos"], ids=["bare", "within its folder"])
def test_an_archive_is_the_folder_that_it_holds(kind, base, folder, tmp_path):
  where = folder if base is None else tmp_path
  packed = shutil.make_archive(str(tmp_path / "packed"), kind, where, base)
  ours, theirs = load(packed), load(folder)
  assert fingerprint(ours) == fingerprint(theirs)
  assert ours.about._replace(origin="") == theirs.about._replace(origin="")
  assert ours.about.classes == ["cat", "小狗"]
  assert ours.about.files.skipped == {"not pictures (.txt)": 1, "hidden or of the system": 1}


def test_every_program_reads_archives(folder, tmp_path):
  packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
  assert len(load_pictures(tmp_path / "packed.zip", "--samples")) == 4
  listing = shards.list_pictures(tmp_path / "packed.zip")
  assert sorted(listing.names) == list(listing.names)
  shards.write_shards(shards.Task(tmp_path / "packed.zip", tmp_path / "out", num_shards=1))
  assert packed.endswith("packed.zip")


def test_splits_in_an_archive(tmp_path):
  names = [f"data/{split}/{c}/1.png" for split in ("train", "val") for c in "ab"]
  path = write_zip(tmp_path / "a.zip", {name: png() for name in names})
  data = Folder(path=str(path))
  assert data.has_split("test")
  assert [len(data.load(split)) for split in ("train", "test")] == [2, 2]


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("is_labelled", [True, False])
def test_labels_of_edm_replace_its_folders(packed, is_labelled, tmp_path):
  names = [f"0000{i // 2}/img{i:08d}.png" for i in range(4)]
  labels = [[name, 3 * (i % 2)] for i, name in enumerate(names)] if is_labelled else None
  members = {name: png() for name in names} | {
    "dataset.json": json.dumps({"labels": labels}).encode()
  }
  path = write_zip(tmp_path / "edm.zip", members)
  if not packed:
    shutil.unpack_archive(path, tmp_path / "edm")
  source = load(path if packed else tmp_path / "edm")
  assert source.spec.num_classes == (4 if is_labelled else 0)
  found = source.gather(np.arange(4))[1].tolist()
  assert found == ([0, 3, 0, 3] if is_labelled else [0, 0, 0, 0])
  assert source.about.files.skipped == {"labels": 1}


def test_a_json_file_of_ones_own_is_no_index(folder):
  (folder / "dataset.json").write_text('{"made_by": "me"}')
  assert load(folder).about.classes == ["cat", "小狗"]


def web_dataset(path, first, num, suffix="cls"):
  members = {}
  for i in range(first, first + num):
    label = str(i % 3) if suffix == "cls" else json.dumps({"label": ["cat", "dog"][i % 2]})
    members |= {f"{i:05d}.png": png(), f"{i:05d}.{suffix}": label.encode()}
  return write_tar(path, members)


def test_a_folder_of_tars_is_a_web_dataset(tmp_path):
  for number in range(3):
    web_dataset(tmp_path / "set" / f"x-train-{number:03d}.tar", 4 * number, 4)
  web_dataset(tmp_path / "set" / "x-val-000.tar", 1, 2)
  data = Folder(path=str(tmp_path / "set"))
  train, test = data.load("train"), data.load("test")
  assert (train.about.counts, test.about.counts) == ([4, 4, 4], [0, 1, 1])
  assert train.gather(np.arange(12))[1].tolist() == [i % 3 for i in range(12)]
  assert len(load(tmp_path / "set" / "x-train-{000..001}.tar")) == 8
  assert len(load(tmp_path / "set" / "x-train-*.tar")) == 12


def test_names_as_labels(tmp_path):
  source = load(web_dataset(tmp_path / "a.tar", 0, 4, "json"))
  assert source.about.classes == ["cat", "dog"]
  assert source.gather(np.arange(4))[1].tolist() == [0, 1, 0, 1]


def test_a_picture_without_its_label_is_refused(tmp_path):
  path = write_tar(tmp_path / "a.tar", {"0.png": png(), "0.cls": b"1", "1.png": png()})
  with pytest.raises(UserError, match=r"1\.png has no label in 1\.cls"):
    load(path)


def test_a_damaged_archive_and_a_damaged_member(tmp_path):
  path = write_zip(tmp_path / "a.zip", {f"{i}.png": png() for i in range(3)})
  content = bytearray(path.read_bytes())
  content[60] ^= 255  # within the first picture, whose checksum then differs
  path.write_bytes(content)
  with pytest.raises(UserError, match=r"1 of 3 pictures cannot be read: 0\.png"):
    load(path)
  assert len(load(path, unreadable="skip")) == 2
  path.write_bytes(content[:100])
  with pytest.raises(UserError, match=r"^`data.path=.*a\.zip`: this archive cannot be read"):
    load(path)
  with pytest.raises(UserError, match=r"^--images=.*a\.zip: this archive cannot be read"):
    load_pictures(path, "--images")


@pytest.mark.parametrize("top", ["", "photos/"])
def test_a_folder_within_an_archive(top, tmp_path):
  names = ("train/cat/1.png", "train/dog/1.png", "test/cat/2.png")
  path = write_zip(tmp_path / "a.zip", {top + name: png() for name in names})
  for inside in ("train", f"{top}train"):
    assert list(load(path / inside).about.classes) == ["cat", "dog"]
  with pytest.raises(UserError, match=r"a\.zip has no folder val; it has test, train, test/cat, "):
    load(path / "val")
  flat = write_zip(tmp_path / "b.zip", {"1.png": png()})
  with pytest.raises(UserError, match=r"b\.zip has no folder train; it has no folders"):
    load(flat / "train")


def test_a_member_may_not_fill_the_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 50)
  for path in (
    write_zip(tmp_path / "a.zip", {"0.png": png()}),
    write_tar(tmp_path / "a.tar", {"0.png": png()}),
  ):
    with pytest.raises(UserError, match="too many for a picture"):
      load(path)
