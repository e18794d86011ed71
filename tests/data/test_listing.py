"""Which files of a folder are pictures: one answer for every program, and all that is left out."""

import os

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.files import printable
from diffusion_jax.data import Folder, Records, load_pictures, shards
from diffusion_jax.data import source as sources
from diffusion_jax.data.listing import Walk, list_folder
from diffusion_jax.types import UserError

FORMATS = ("png", "jpg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "tga", "jp2", "ico")


def save(path, value=0, mode="RGB", size=(4, 4)):
  path.parent.mkdir(parents=True, exist_ok=True)
  colour = value if mode in ("L", "P", "1") else (value,) * len(mode)
  Image.new(mode, size, colour).save(path)
  return path


def folder_names(root):
  """What `folder` reads, in its order."""
  return list_folder(root, "root").names


READERS = {
  "folder": lambda root: len(Folder(path=str(root), image_size=4).load("train")),
  "prepare records": lambda root: len(shards.list_pictures(root).names),
  "--samples": lambda root: len(load_pictures(root, "--samples")),
}


@pytest.fixture(params=READERS)
def count(request):
  """How many pictures each reader finds."""
  return READERS[request.param]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_that_pillow_decodes_is_read(suffix, tmp_path, count):
  for i, name in enumerate((f"a.{suffix}", f"B.{suffix.upper()}")):
    save(tmp_path / "cat" / name, i, size=(16, 16))
  assert count(tmp_path) == 2
  assert list_folder(tmp_path, "root").classes == ["cat"]


def test_a_picture_without_a_suffix_is_known_by_its_content(tmp_path, count):
  for i in range(2):
    save(tmp_path / f"{i}.png").rename(tmp_path / f"{i}")
  (tmp_path / "README").write_text("no picture")
  assert count(tmp_path) == 2


def test_links_to_folders_and_files_are_followed(tmp_path, count):
  save(tmp_path / "elsewhere" / "1.png")
  save(tmp_path / "elsewhere" / "2.png")
  save(tmp_path / "root" / "ape" / "1.png")
  (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "root" / "ape" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
  assert count(tmp_path / "root") == 4
  listing = list_folder(tmp_path / "root", "root")
  assert (listing.classes, list(listing.labels)) == (["ape", "cat"], [0, 0, 1, 1])


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_that_leads_back_is_not_followed_for_ever(target, tmp_path, count):
  for i in range(4):
    save(tmp_path / "cat" / f"{i}.png")
  (tmp_path / "cat" / "loop").symlink_to(target)
  assert count(tmp_path) == 4
  (note,) = list_folder(tmp_path, "root").notes
  assert note == "1 file left out: 1 linked back to a folder above (cat/loop/)"


def test_pictures_that_links_show_twice_are_counted_and_said(tmp_path):
  for name in ("a", "b"):
    save(tmp_path / name / "1.png")
  (tmp_path / "a" / "to_b").symlink_to("../b")
  (tmp_path / "b" / "to_a").symlink_to("../a")
  walk = Walk(str(tmp_path))
  assert walk.names == ["a/1.png", "a/to_b/1.png", "b/1.png", "b/to_a/1.png"]
  assert "2 pictures appear twice, through links" in walk.notes()


def test_links_that_lead_nowhere_are_refused_with_their_number(tmp_path, count):
  save(tmp_path / "cat" / "1.png")
  save(tmp_path / "cat" / "2.png")
  (tmp_path / "cat" / "3.png").symlink_to(tmp_path / "gone.png")
  with pytest.raises(UserError, match=r"1 link leads nowhere \(cat/3\.png\); repair them"):
    count(tmp_path)
  (tmp_path / "dog").symlink_to(tmp_path / "gone")
  (tmp_path / "dog2").symlink_to("dog2")  # to itself
  with pytest.raises(UserError, match=r"3 links lead nowhere, the first is cat/3\.png"):
    count(tmp_path)


def test_folders_that_cannot_be_read_are_refused_with_their_number(tmp_path, count, monkeypatch):
  for name in ("ape", "cat", "dog"):
    save(tmp_path / name / "1.png")
  scan = os.scandir

  def closed(folder):  # permissions do not bind root
    if str(folder).endswith(("cat", "dog")):
      raise PermissionError(13, "Permission denied")
    return scan(folder)

  monkeypatch.setattr(os, "scandir", closed)
  with pytest.raises(UserError, match=r"2 folders cannot be read, the first is cat/"):
    count(tmp_path)


def test_what_systems_leave_behind_is_neither_class_nor_picture(tmp_path, count):
  for name in ("1.png", "2.png", "._1.png", "Thumbs.db"):
    save(tmp_path / "cat" / "x.png").rename(tmp_path / "cat" / name)
  for name in (".cache", "__MACOSX"):
    save(tmp_path / name / "3.png")
  (tmp_path / ".lock.png").symlink_to("nowhere")  # as editors leave it
  assert count(tmp_path) == 2
  listing = list_folder(tmp_path, "root")
  assert listing.classes == ["cat"]
  assert listing.notes[0].startswith("5 files left out: 5 hidden or of the system (.cache, ")


def test_all_that_is_left_out_is_said_with_its_reason(tmp_path, count):
  for name in ("1.png", "2.png", "a.txt", "b.json", "c.txt"):
    save(tmp_path / "x.png").rename(tmp_path / name)
  os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
  assert count(tmp_path) == 2
  (note,) = list_folder(tmp_path, "root").notes
  assert note == "4 files left out: 3 not pictures (.txt, .json), 1 not a regular file"
  (source,) = (load_pictures(tmp_path, "--samples"),)
  assert list(source.about.notes) == [note]


def test_a_folder_of_other_files_says_what_it_holds(tmp_path, count):
  (tmp_path / "a.txt").write_text("x")
  words = (
    r"no pictures there; it needs .*\.png, \.jpg, .*; 1 file left out: 1 not a picture \(\.txt"
  )
  with pytest.raises(UserError, match=words):
    count(tmp_path)


def test_deeper_folders_belong_to_the_first_and_it_is_said(tmp_path):
  save(tmp_path / "cat" / "wild" / "1.png")
  save(tmp_path / "dog" / "1.png")
  (tmp_path / "empty").mkdir()
  listing = list_folder(tmp_path, "root")
  assert (listing.classes, list(listing.labels)) == (["cat", "dog"], [0, 1])
  assert listing.notes == (
    "folders within a class are part of it: cat/wild is of class cat",
    "1 folder holds no picture and is no class: empty",
  )


def test_the_order_is_that_of_earlier_versions(tmp_path):
  """Batches follow from it: folder sorted paths, prepare the texts of the names."""
  for name in ("b/1.png", "b-2/1.png", "b.c/1.png", "B/1.png", "b/a/1.png"):
    save(tmp_path / name)
  paths = sorted(tmp_path.rglob("*.png"))
  assert folder_names(tmp_path) == [p.relative_to(tmp_path).as_posix() for p in paths]
  assert shards.list_pictures(tmp_path).names == sorted(folder_names(tmp_path))


def test_pictures_beside_splits_are_not_lost(tmp_path):
  for name in ("train/a/1.png", "test/a/1.png", "stray.png"):
    save(tmp_path / name)
  with pytest.raises(UserError, match=r"named as splits \(train, test\) and others \(stray\.png\)"):
    Folder(path=str(tmp_path)).load("train")


def test_a_test_split_behind_a_dangling_link_does_not_vanish(tmp_path):
  save(tmp_path / "train" / "a" / "1.png")
  (tmp_path / "test").symlink_to("nowhere")
  with pytest.raises(UserError, match=r"1 link leads nowhere \(test\)"):
    Folder(path=str(tmp_path)).has_split("test")


def test_two_ways_to_hold_out_are_refused(tmp_path):
  save(tmp_path / "1.png")
  with pytest.raises(UserError, match="both define the test split; set only one"):
    Folder(path=str(tmp_path), test_path=str(tmp_path), test_fraction=0.5).load("train")
  with pytest.raises(
    UserError, match=r"no held-out images: it has no folder test; set `data.test_path=DIR`"
  ):
    Folder(path=str(tmp_path)).load("test")


class TestAbout:
  def test_classes_and_where_held_out_pictures_come_from(self, tmp_path):
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "val/b/1.png"):
      save(tmp_path / name)
    data = Folder(path=str(tmp_path))
    train, test = data.load("train").about, data.load("test").about
    assert sources.describe_classes(train, 2) == "a (2), b (1)"
    assert test.origin == f"from {tmp_path / 'val'}"
    part = Folder(path=str(tmp_path), test_fraction=0.34).load("test").about
    assert part.origin.startswith(f"0.34 of {tmp_path / 'train'}, in a fixed order; ")
    assert part.origin.endswith(f"{tmp_path / 'val'} is not used")

  def test_ten_classes_are_named_and_those_without_images_counted(self):
    about = sources.About(counts=[1] * 12)
    assert sources.describe_classes(about, 12).endswith("9 (1) and 2 more")
    about = sources.About(counts=[0, 5, 0, 2000])
    assert sources.describe_classes(about, 4) == (
      "1 (5), 3 (2,000); 2 of 4 have no image, and are neither sampled nor measured"
    )
    assert sources.describe_classes(sources.About(classes=["a", "b"]), 2) == "a, b"

  def test_reading_one_by_one_knows_as_much(self, tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
      save(tmp_path / name)
    large = Folder(path=str(tmp_path), max_ram_gib=0.0).load("train")
    assert large.about == Folder(path=str(tmp_path)).load("train").about

  def test_shards_keep_the_number_of_each_class(self, tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
      save(tmp_path / "in" / name)
    shards.write_shards(shards.Task(tmp_path / "in", tmp_path / "out", num_shards=1))
    source = Records(path=str(tmp_path / "out"), max_ram_gib=0.0).load("train")
    assert (source.about.classes, source.about.counts) == (["a", "b"], [2, 1])


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif"])
def test_transparent_pictures_are_counted(suffix, tmp_path, capsys):
  for i in range(2):
    save(tmp_path / "in" / f"{i}.{suffix}", 0, "RGBA")
  save(tmp_path / "in" / "2.png", 9)
  note = "2 pictures with transparency, laid on white"
  for source in (Folder(path=f"{tmp_path}/in").load("train"), load_pictures(tmp_path / "in", "-s")):
    assert note in source.about.notes
  capsys.readouterr()
  shards.write_shards(shards.Task(tmp_path / "in", tmp_path / "out", num_shards=1))
  assert note in capsys.readouterr().out


def test_further_frames_are_said(tmp_path):
  frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
  source = Folder(path=str(tmp_path)).load("train")
  assert source.about.notes == ("1 picture of several frames, of which the first is taken",)
  assert not source.gather(np.array([0]))[0].any()


def test_depth_is_told_by_the_channel_and_not_by_the_pixel(tmp_path):
  """A bitmap of 16 bits a pixel has 5 or 6 a channel; a PPM of 65,535 levels has 16."""
  header = b"BM" + (70 + 32).to_bytes(4, "little") + bytes(4) + (70).to_bytes(4, "little")
  info = (56).to_bytes(4, "little") + (4).to_bytes(4, "little") * 2 + b"\1\0\x10\0"
  info += (3).to_bytes(4, "little") + bytes(20)
  masks = b"".join(m.to_bytes(4, "little") for m in (0xF800, 0x7E0, 0x1F, 0))
  (tmp_path / "a.bmp").write_bytes(header + info + masks + b"\xff\xff" * 16)
  images, _ = Folder(path=str(tmp_path)).load("train").gather(np.array([0]))
  assert (images == 255).all()
  (tmp_path / "a.bmp").unlink()
  for name, magic in (("a.ppm", b"P6"), ("b.ppm", b"P3")):
    (tmp_path / name).write_bytes(magic + b"\n1 1\n65535\n" + b"1 2 3 ")
    with pytest.raises(UserError, match="more than 8 bits a channel"):
      Folder(path=str(tmp_path)).load("train")
    (tmp_path / name).unlink()


ODD = "bad\nname\x1b[31m\udcff"
SHOWN = r"bad\nname\x1b[31m\udcff"


class TestNamesOfAnyCharacters:
  """A name may hold a line break, an order to the terminal, or bytes that are no UTF-8."""

  def test_a_text_is_on_one_line_of_plain_characters(self):
    assert printable(ODD) == SHOWN == printable(SHOWN)
    assert printable("Käse 奶酪 🧀.png") == "Käse 奶酪 🧀.png"

  def test_unreadable_pictures(self, tmp_path):
    for name in ("a.png", f"{ODD}.png"):
      save(tmp_path / name)
    (tmp_path / f"{ODD}.png").write_bytes(b"nothing")
    for read in READERS.values():
      if read is not READERS["prepare records"]:
        with pytest.raises(UserError) as error:
          read(tmp_path)
        assert f" {SHOWN}.png (" in str(error.value)
    (note,) = Folder(path=str(tmp_path), unreadable="skip").load("train").about.notes
    assert f" {SHOWN}.png (" in note

  def test_what_is_left_out_and_what_is_there(self, tmp_path):
    save(tmp_path / ODD / ODD / "1.png")
    (tmp_path / f"empty{ODD}").mkdir()
    for name in (f".{ODD}", f"a.{ODD}"):
      (tmp_path / ODD / name).touch()
    (tmp_path / ODD / f"{ODD}back").symlink_to(tmp_path)
    notes = list_folder(tmp_path, "root").notes
    assert len(notes) == 3
    assert all(note.isprintable() for note in notes)
    assert sources.describe_classes(sources.About(classes=[ODD]), 1) == SHOWN

  def test_refusals(self, tmp_path):
    save(tmp_path / ODD / "1.png")
    save(tmp_path / f"{ODD}.png")
    with pytest.raises(UserError, match="move it into one") as error:
      list_folder(tmp_path, "root")
    assert str(error.value).isprintable()
    (tmp_path / f"{ODD}.png").unlink()
    (tmp_path / ODD / f"{ODD}.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="1 link leads nowhere") as error:
      list_folder(tmp_path, "root")
    assert str(error.value).isprintable()
