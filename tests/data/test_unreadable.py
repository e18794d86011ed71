"""Pictures that cannot be read: all of them in one list, or left out alike on every start."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny import MODEL

from diffusion_jax import prepare, train
from diffusion_jax.checkpoints import store
from diffusion_jax.data import Folder, Records, fingerprint, load_pictures, reading, records, shards
from diffusion_jax.data.pipeline import permutation
from diffusion_jax.data.record_format import serialize_example
from diffusion_jax.inference.masks import known_pixels
from diffusion_jax.types import ImageSpec, UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "diffusion_jax" / "unreadable"


def save(path, cut=False):
  """A picture of noise, on request with its second half missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
  if cut:
    path.write_bytes(path.read_bytes()[:-60])
  return path


@pytest.fixture
def mixed(tmp_path):
  """Six pictures: one without a header, two cut short behind it, and three that are whole."""
  root = tmp_path / "mixed"
  for name in ("a/0.png", "b/1.png", "b/2.png"):
    save(root / name)
  save(root / "a/3.png", cut=True)
  save(root / "b/4.bmp", cut=True)
  (root / "b/5.jpg").write_bytes(b"no picture")
  return root


def damage_without_a_trace(path, reading):
  """Zeroes the middle of a file; the state that is asked for stays what it was."""
  kept, state = str(path), reading._file_state(str(path))
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2] + bytes(40) + content[len(content) // 2 + 40 :])
  ask = reading._file_state
  reading._file_state = lambda file: state if file == kept else ask(file)


@pytest.fixture(autouse=True)
def states(monkeypatch):
  """Puts back what `damage_without_a_trace` has changed."""
  monkeypatch.setattr(reading, "_file_state", reading._file_state)


NAMES = ("a/3.png", "b/4.bmp", "b/5.jpg")
THREE = r"3 of 6 pictures cannot be read: a/3\.png \(.+\), b/4\.bmp \(.+\), b/5\.jpg \(no picture"


@pytest.mark.parametrize(
  "read",
  [
    lambda root, out: Folder(path=str(root)).load("train"),
    lambda root, out: Folder(path=str(root), max_ram_gib=0.0).load("train"),
    lambda root, out: Folder(path=str(root), test_fraction=0.5).load("test"),
    lambda root, out: shards.write_shards(shards.Task(root, out)),
    lambda root, out: load_pictures(root, "--samples"),
  ],
)
def test_all_are_named_at_once_truncated_ones_too(mixed, tmp_path, read):
  with pytest.raises(UserError, match=THREE) as error:
    read(mixed, tmp_path / "out")
  assert "\n" not in str(error.value)


def test_one_that_turns_up_while_training_names_all(tmp_path):
  """Headers are whole, so that a large set starts; each batch meets one of two."""
  for i in range(4):
    save(tmp_path / "set" / f"{i}.png", cut=i in (1, 3))
  source = Folder(path=f"{tmp_path}/set", max_ram_gib=0.0).load("train")
  for index in ([1], [0, 3]):
    with pytest.raises(UserError, match=r"2 of 4 pictures .* 1\.png \(.*\), 3\.png \(.*=skip"):
      source.gather(np.array(index))


def test_the_other_split_is_in_the_same_list(tmp_path):
  for name in ("train/a/0.png", "test/a/1.png"):
    save(tmp_path / name)
    save((tmp_path / name).with_name("cut.png"), cut=True)
  with pytest.raises(UserError, match=r"2 of 4 .* read: a/cut\.png \(.*, .*/test/a/cut\.png \("):
    Folder(path=str(tmp_path)).load("train")
  for i in range(8):
    save(tmp_path / "flat" / f"{i}.png", cut=True)
  with pytest.raises(UserError, match="8 of 8 pictures cannot be read"):
    Folder(path=f"{tmp_path}/flat", test_fraction=0.5).load("train")


def test_a_long_list_is_in_a_file(tmp_path, cache):
  for i in range(12):
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / "set" / f"{i:02d}.png").write_bytes(b"nothing")
  with pytest.raises(UserError, match=r"12 of 12 .* 09\.png \(.*\) and 2 more \(all in (.*)\); r"):
    Folder(path=f"{tmp_path}/set").load("train")
  (file,) = cache.glob("*.txt")
  assert [line.split()[0] for line in file.read_text().splitlines()] == [
    f"{i:02d}.png" for i in range(12)
  ]


@pytest.mark.costly
def test_training_that_meets_one_has_saved_and_ends_with_all(tmp_path, call, monkeypatch, root):
  """In a set that is too large to be read at the start, and to be kept in memory."""
  monkeypatch.chdir(root)
  monkeypatch.setattr("diffusion_jax.data.source.fingerprint", lambda source: source.name)
  broken = sorted(permutation(0, 0, 80)[[44, 75]])  # of the sixth batch, and a later one
  for i in range(80):
    save(tmp_path / "set" / "cat" / f"{i:02d}.png", cut=i in broken)
  flags = ("--config=configs/smoke.py", *MODEL, "--config.data.name=folder",
           f"--config.data.path={tmp_path}/set", "--config.data.max_ram_gib=0",
           "--config.training.num_steps=20", "--config.training.batch_size=8",
           "--config.training.seed=0", "--config.logging.tensorboard=false",
           f"--workdir={tmp_path}/run")  # fmt: skip
  code, _, err = call(train.main, *flags)
  assert (code, err.count("\n")) == (2, 1)
  assert f"2 of 80 pictures cannot be read: cat/{broken[0]:02d}.png (" in err
  assert f"cat/{broken[1]:02d}.png (" in err
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [5]


class TestSkip:
  def test_what_is_left_is_the_set_without_them(self, mixed, tmp_path):
    whole = tmp_path / "whole"
    for name in ("a/0.png", "b/1.png", "b/2.png"):
      (whole / name).parent.mkdir(parents=True, exist_ok=True)
      (whole / name).write_bytes((mixed / name).read_bytes())
    for fields in ({}, {"max_ram_gib": 0.0}, {"test_fraction": 0.4}):
      for split in ("train", "test")[: 1 + ("test_fraction" in fields)]:
        ours = Folder(path=str(mixed), unreadable="skip", **fields).load(split)
        theirs = Folder(path=str(whole), **fields).load(split)
        assert fingerprint(ours) == fingerprint(theirs)
        assert ours.about.counts == theirs.about.counts
    (note,) = Folder(path=str(mixed), unreadable="skip").load("train").about.notes
    assert note.startswith("3 unreadable pictures left out: a/3.png (")
    assert all(name in note for name in NAMES)

  def test_the_search_is_made_once_for_the_same_files(self, mixed, cache, monkeypatch):
    data = Folder(path=str(mixed), unreadable="skip", max_ram_gib=0.0)
    first = fingerprint(data.load("train"))
    (file,) = cache.glob("*.json")
    assert sorted(json.loads(file.read_text())) == ["1", "4", "5"]
    searched = []
    find = reading.Reader.find_broken
    monkeypatch.setattr(reading.Reader, "find_broken", lambda r: searched.append(r) or find(r))
    assert fingerprint(data.load("train")) == first
    assert not searched
    save(mixed / "a/3.png")  # mended
    assert len(data.load("train")) == 4
    assert len(searched) == 1
    for damage in ("{", "[]", '{"x": 1}'):
      for file in cache.glob("*.json"):
        file.write_text(damage)
      assert len(data.load("train")) == 4

  def test_a_cache_that_cannot_be_written_is_done_without(self, mixed, cache, monkeypatch):
    monkeypatch.setattr(reading, "_write", lambda *_: False)
    assert len(Folder(path=str(mixed), unreadable="skip").load("train")) == 3

  def test_what_the_system_refused_is_not_remembered(self, mixed, cache, monkeypatch):
    data, whole = Folder(path=str(mixed), unreadable="skip"), Image.open

    def refused(file, *args):
      if str(file).endswith("2.png"):
        raise OSError(5, "Input/output error")
      return whole(file, *args)

    with monkeypatch.context() as patch:
      patch.setattr(Image, "open", refused)
      (note,) = data.load("train").about.notes
      assert "b/2.png (Input/output error)" in note
    assert not list(cache.glob("*.json"))
    assert len(data.load("train")) == 3

  @pytest.mark.parametrize("max_ram_gib", [0.0, 8.0])
  def test_damage_without_a_trace_is_looked_for_anew(self, mixed, max_ram_gib):
    """A disk damages a file and leaves its size and times as they are."""
    data = Folder(path=str(mixed), unreadable="skip", max_ram_gib=max_ram_gib)
    assert len(data.load("train")) == 3
    damage_without_a_trace(mixed / "b/2.png", reading)
    words = r"b/2\.png \(.*\) could be read when .* and now cannot; start the same command again"
    with pytest.raises(UserError, match=words) as error:
      data.load("train").gather(np.arange(3))
    assert "skip" not in str(error.value)
    source = data.load("train")
    assert len(source) == 2
    source.gather(np.arange(2))

  def test_a_memory_that_cannot_be_deleted_is_named(self, mixed, cache, monkeypatch):
    data = Folder(path=str(mixed), unreadable="skip", max_ram_gib=0.0)
    source = data.load("train")
    damage_without_a_trace(mixed / "b/2.png", reading)
    (file,) = cache.glob("*.json")

    def closed(*_, **__):
      raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(file), "unlink", closed)
    with pytest.raises(UserError, match=rf"; delete {file} and start the same command again"):
      source.gather(np.arange(3))

  def test_shards_are_looked_through_anew_too(self, mixed, tmp_path):
    task = shards.Task(mixed, tmp_path / "out", unreadable="skip")
    content = shards._check_pictures(task, shards.list_pictures(mixed))
    damage_without_a_trace(mixed / "b/2.png", reading)
    with pytest.raises(UserError, match=r"b/2\.png .* start the same command again"):
      content.read(2)
    assert shards.write_shards(task).exists()

  def test_a_copy_elsewhere_is_looked_through_by_itself(self, mixed, tmp_path, cache):
    """Of equal names, sizes and times of change, as cp -a leaves them."""
    copy = shutil.copytree(mixed, tmp_path / "copy")
    for root in (mixed, copy):
      Folder(path=str(root), unreadable="skip").load("train")
    assert len(list(cache.glob("*.json"))) == 2

  def test_a_change_that_hides_its_time_is_seen(self, mixed):
    before = reading.file_states([str(mixed / "b/2.png")])
    kept = os.stat(mixed / "b/2.png")
    time.sleep(0.01)
    save(mixed / "b/2.png")
    os.utime(mixed / "b/2.png", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    after = reading.file_states([str(mixed / "b/2.png")])
    assert before[0][1] == after[0][1]
    assert before != after

  def test_nothing_that_can_be_read(self, tmp_path):
    save(tmp_path / "set" / "1.png", cut=True)
    with pytest.raises(UserError, match="none of its 1 pictures can be read"):
      Folder(path=f"{tmp_path}/set", unreadable="skip").load("train")

  def test_a_class_without_any_keeps_its_number(self, tmp_path):
    save(tmp_path / "set" / "a" / "1.png", cut=True)
    save(tmp_path / "set" / "b" / "1.png")
    source = Folder(path=f"{tmp_path}/set", unreadable="skip").load("train")
    assert source.spec == ImageSpec(8, 8, 3, 256, 2)
    assert source.gather(np.array([0]))[1].tolist() == [1]
    assert source.about.counts == [0, 1]

  def test_shards_are_made_of_the_others(self, mixed, tmp_path, call):
    flags = ("records", mixed, f"--out={tmp_path / 'out'}", "--unreadable=skip")
    code, out, err = call(prepare.main, *flags)
    assert code == 0, err
    assert "3 unreadable pictures left out: a/3.png (" in out
    assert "classes: a (1), b (2)" in out
    source = Records(path=str(tmp_path / "out")).load("train")
    assert (len(source), source.about.counts) == (3, [1, 2])
    assert call(prepare.main, *flags)[0] == 0  # the same pictures: nothing is left to do

  def test_records_are_skipped_too(self, tmp_path, monkeypatch):
    pictures = [save(tmp_path / f"{i}.png", cut=i in (1, 3)).read_bytes() for i in range(5)]
    (tmp_path / "out").mkdir()
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "out" / "train.array_record"), "group_size:1")
    for i, data in enumerate(pictures):
      writer.write(serialize_example(data, i))
    writer.close()
    fields = {"path": f"{tmp_path}/out", "num_classes": 5, "max_ram_gib": 0.0}
    source = Records(**fields, unreadable="skip").load("train")
    assert source.gather(np.arange(3))[1].tolist() == [0, 2, 4]
    assert source.about.notes[0].startswith("2 unreadable pictures left out: record 1 of ")
    monkeypatch.setattr(records, "NUM_PROBES", 1)
    with pytest.raises(UserError, match=r"2 of 5 .* record 1 of .*, record 3 of .*=skip"):
      Records(**fields).load("train").gather(np.arange(5))


@pytest.mark.parametrize("error", [SyntaxError, IndexError, KeyError, TypeError, OverflowError])
def test_whatever_pillow_raises_is_a_picture_that_cannot_be_read(error, tmp_path, monkeypatch):
  save(tmp_path / "a.png")

  def load(self):
    raise error("broken")

  monkeypatch.setattr(Image.Image, "convert", lambda *_: load(None))
  with pytest.raises(UserError, match=r"1 of 1 pictures cannot be read: a\.png \(.*broken"):
    Folder(path=str(tmp_path)).load("train")


def test_a_mask_that_cannot_be_read_is_one_line(tmp_path):
  mask = save(tmp_path / "mask.png", cut=True)
  with pytest.raises(UserError, match=r"mask\.png: must be left, .* of 8x8 pixels \(image file is"):
    known_pixels(str(mask), ImageSpec(8, 8, 3, 256, 0))


@pytest.mark.process
def test_pillow_says_nothing_beside_the_one_line(tmp_path):
  """It warns of damaged EXIF data, with the place of its own program."""
  Image.new("RGB", (64, 64)).save(tmp_path / "a.tif")
  content = (tmp_path / "a.tif").read_bytes()
  (tmp_path / "a.tif").write_bytes(content[:-20])
  exif = Image.Exif()
  exif[270] = "x" * 200
  Image.new("RGB", (64, 64)).save(tmp_path / "b.jpg", exif=exif)
  content = (tmp_path / "b.jpg").read_bytes()
  (tmp_path / "b.jpg").write_bytes(content.replace(b"\0\0\0\xc9", b"\0\0\1\xff"))
  script = "import sys; from diffusion_jax.data import reading; reading.read_headers(sys.argv[1:])"
  files = [tmp_path / "a.tif", tmp_path / "b.jpg"]
  ran = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, check=True)
  assert ran.stderr == b""
