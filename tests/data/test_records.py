"""ArrayRecord shards: made of folders or by TFDS's own writer, read at random; what is wrong."""

import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from test_tfds import as_set
from test_tfds import write as write_with_tfds

from diffusion_jax import prepare
from diffusion_jax.data import (
  Folder,
  Records,
  Tfds,
  TrainStream,
  fingerprint,
  full_pass,
  records,
  shards,
)
from diffusion_jax.data.record_format import (
  Shards,
  parse_example,
  parse_name,
  read_description,
  serialize_example,
)
from diffusion_jax.data.shards import Task, to_png
from diffusion_jax.data.source import DecodedSource, fixed_order
from diffusion_jax.types import ImageSpec, UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 6, 3), np.uint8)
LABELS = np.arange(24) // 8
CLASSES = ["ant", "bee", "cow"]


def save_pictures(root, images=IMAGES, labels=LABELS, suffix=".png"):
  """A folder with a sub-folder for each class."""
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    (root / CLASSES[label]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / CLASSES[label] / f"{i:03d}{suffix}")
  return root


@pytest.fixture
def pictures(tmp_path):
  return save_pictures(tmp_path / "pictures")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Four shards of train, with their description."""
  root = tmp_path_factory.mktemp("prepared")
  shards.write_shards(Task(save_pictures(root / "pictures"), root / "out", num_shards=4))
  return root / "out"


def everything(source):
  return source.gather(np.arange(len(source)))


def write_shard(file, records, options="group_size:1"):
  file.parent.mkdir(parents=True, exist_ok=True)
  writer = ArrayRecordWriter(str(file), options)
  for record in records:
    writer.write(record)
  writer.close()
  return file


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


class TestReading:
  def test_all_pictures_come_back_exactly_in_the_fixed_order(self, prepared):
    source = Records(path=str(prepared)).load("train")
    assert source.spec == ImageSpec(8, 6, 3, 256, 3)
    images, labels = everything(source)
    np.testing.assert_array_equal(images, IMAGES[fixed_order(24)])
    np.testing.assert_array_equal(labels, LABELS[fixed_order(24)])

  def test_one_by_one_gives_the_same_as_memory(self, prepared):
    small = Records(path=str(prepared)).load("train")
    large = Records(path=str(prepared), max_ram_gib=0.0).load("train")
    assert isinstance(large, DecodedSource)
    assert not isinstance(small, DecodedSource)
    assert fingerprint(small) == fingerprint(large)

  def test_threads_may_read_at_once(self, prepared):
    source = Records(path=str(prepared / "train-*"), max_ram_gib=0.0).load("train")
    orders = [np.random.default_rng(i).permutation(24) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
      for order, (images, labels) in zip(orders, pool.map(source.gather, orders), strict=True):
        np.testing.assert_array_equal(images, IMAGES[fixed_order(24)][order])
        np.testing.assert_array_equal(labels, LABELS[fixed_order(24)][order])

  def test_what_tfds_writes_is_read_as_tfds_reads_it(self, tmp_path):
    write_with_tfds(tmp_path)
    ours = Records(path=str(tmp_path / "pets" / "1.2.0"), num_classes=4)
    theirs = Tfds(dataset="pets", data_dir=str(tmp_path))
    assert ours.has_split("test")
    for split in ("train", "test"):
      (images, labels), (wanted, truth) = (everything(d.load(split)) for d in (ours, theirs))
      np.testing.assert_array_equal(images, wanted)
      np.testing.assert_array_equal(labels, truth)
      assert ours.load(split).spec == theirs.load(split).spec

  def test_pictures_of_many_sizes_and_formats_under_other_names(self, tmp_path):
    """Keys and sizes as ImageNet's converters write them, and one CMYK picture as ImageNet has."""
    records = []
    for i, (size, fmt) in enumerate([((9, 7), "JPEG"), ((12, 20), "WEBP"), ((8, 8), "PNG")]):
      file = io.BytesIO()
      mode = "CMYK" if fmt == "JPEG" else "RGB"
      Image.new(mode, size, (10 * i,) * len(mode)).save(file, fmt)
      record = parse_example(serialize_example(file.getvalue(), i + 1))
      records.append(renamed(record, {"image": "image/encoded", "label": "image/class/label"}))
    write_shard(tmp_path / "set.array_record", records)
    fields = {"image_key": "image/encoded", "label_key": "image/class/label", "num_classes": 4}
    with pytest.raises(UserError, match=r"is 12x20, the first picture 9x7; .*image_size=7"):
      Records(path=str(tmp_path), **fields).load("train")
    images, labels = everything(Records(path=str(tmp_path), image_size=4, **fields).load("train"))
    assert images.shape == (3, 4, 4, 3)
    assert labels.tolist() == [1, 2, 3]

  def test_unlabelled_on_request_and_grey(self, prepared):
    source = Records(path=str(prepared), label_key=None, channels=1, image_size=4).load("train")
    assert source.spec == ImageSpec(4, 4, 1, 256, 0)
    assert not everything(source)[1].any()

  def test_each_process_reads_only_its_rows(self, prepared, monkeypatch):
    source = Records(path=str(prepared), max_ram_gib=0.0).load("train")
    read = []
    get = Shards.__getitem__
    monkeypatch.setattr(Shards, "__getitem__", lambda s, i: read.append(i) or get(s, i))
    whole = TrainStream(source, 8, seed=1).batch(5)
    by_process = []
    for process in range(4):
      read.clear()
      part = TrainStream(source, 8, seed=1, rows=np.arange(8)[process::4]).batch(5)
      np.testing.assert_array_equal(part.image, whole.image[process::4])
      assert len(read) == 2  # a quarter of the batch
      by_process += read
    assert len(set(by_process)) == 8
    read.clear()
    list(full_pass(source, 8, rows=np.arange(8)[:2]))
    assert len(read) == 24 // 4

  def test_a_fingerprint_of_imagenets_size_reads_4096_pictures(self):
    read = []
    blank = np.zeros((64, 64, 3), np.uint8)
    spec = ImageSpec(64, 64, 3, 256, 1000)
    fingerprint(DecodedSource("large", spec, 1_281_167, lambda i: (read.append(i), (blank, 7))[1]))
    assert len(read) == 4096
    assert (min(read), max(read)) == (0, 1_281_166)

  def test_more_shards_than_files_may_be_open(self, prepared, tmp_path):
    """ImageNet in TFDS has 1,024 shards; the limit that most systems start with is 1,024."""
    record = Shards(sorted(prepared.glob("*.array_record")))[0]
    for i in range(100):
      write_shard(tmp_path / f"train-{i:05d}-of-00100.array_record", [record])
    program = textwrap.dedent(f"""
      import resource
      from diffusion_jax.data import Records
      resource.setrlimit(resource.RLIMIT_NOFILE, (64, HARD))
      data = Records(path={str(tmp_path)!r}, num_classes=3, max_ram_gib=0.0)
      print(len(data.load("train")), len(data.load("train").gather(range(100))[1]))
    """)
    run = [sys.executable, "-c", program.replace("HARD", "4096")]
    assert subprocess.run(run, capture_output=True, text=True).stdout.split() == ["100", "100"]
    run = [sys.executable, "-c", program.replace("HARD", "80")]
    assert "100 shards cannot be opened: this system allows 80 open files" in subprocess.run(
      run, capture_output=True, text=True
    ).stderr  # fmt: skip


def renamed(features, names):
  from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

  example = proto.Example()
  for key, feature in features.items():
    example.features.feature[names.get(key, key)].CopyFrom(feature)
  return example.SerializeToString()


class TestSplits:
  def test_a_test_split_in_the_same_folder_is_found(self, pictures, tmp_path):
    test = save_pictures(tmp_path / "test", IMAGES[10:20:3], LABELS[10:20:3])  # has no ant
    shards.write_shards(Task(pictures, tmp_path / "out"))
    data = Records(path=str(tmp_path / "out"))
    assert not data.has_split("test")
    shards.write_shards(Task(test, tmp_path / "out", split="test"))
    assert data.has_split("test")
    source = data.load("test")
    assert source.spec.num_classes == 3
    assert as_set(*everything(source)) == as_set(IMAGES[10:20:3], LABELS[10:20:3])
    assert len(data.load("train")) == 24

  def test_a_test_path_of_its_own(self, prepared, tmp_path):
    fields = {"path": str(prepared), "test_path": str(tmp_path)}
    write_shard(tmp_path / "validation.array_record", [serialize_example(to_png(IMAGES[3]), 2)])
    source = Records(**fields).load("test")  # the classes are counted by the training split
    assert source.spec.num_classes == 3
    assert everything(source)[1].tolist() == [2]

  def test_a_test_path_with_other_classes_is_refused(self, prepared, tmp_path):
    test = save_pictures(tmp_path / "test", IMAGES[8:], LABELS[8:])
    shards.write_shards(Task(test, tmp_path / "out", split="test"))
    data = Records(path=str(prepared), test_path=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"other classes than path \(ant\); prepare both"):
      data.load("test")

  def test_several_sets_in_one_folder(self, tmp_path):
    for name in ("small-00000-of-00001", "large-00000-of-00001"):
      write_shard(tmp_path / f"{name}.array_record", [serialize_example(to_png(IMAGES[0]), 0)])
    with pytest.raises(
      UserError, match=r"several sets: large, small; name one .*`data\.path=DIR/large-\*`"
    ):
      Records(path=str(tmp_path)).load("train")
    assert len(Records(path=f"{tmp_path}/small-*", num_classes=1).load("train")) == 1
    with pytest.raises(UserError, match=r"no shards called test, only large, small"):
      Records(path=str(tmp_path)).load("test")

  @pytest.mark.parametrize(
    ("name", "place"),
    [
      ("train-00003-of-00016.array_record", ("train", 3, 16)),
      ("pets-train.array_record-00003-of-00016", ("pets-train", 3, 16)),
      ("imagenet_7.array_record", ("imagenet", 7, None)),
      ("imagenet64.array_record", ("imagenet64", None, None)),
    ],
  )
  def test_names(self, name, place):
    assert parse_name(name) == place


class TestWhatIsWrong:
  @pytest.mark.parametrize(
    ("records", "fields", "message"),
    [
      ([b"\xff\xff"], {}, r"record 0 of .*a\.array_record not a serialized tf\.train\.Example"),
      ([b""], {}, "has the features none, not image; set `data.image_key=KEY` and `data.la"),
      (None, {"image_key": "picture"}, "has the features image, label, not picture"),
      (None, {"label_key": "class"}, "has the features image, label, not class"),
      (None, {"image_key": "label"}, "has in label int64_list, which is not an encoded picture"),
      (None, {"label_key": "image"}, "has in image bytes_list, which is not one integer"),
      (
        None,
        {"num_classes": 2},
        "has label 2, but .* 2 classes go from 0 to 1; set .*num_classes",
      ),
      (None, {"num_classes": None}, r"no a\.shards\.json .*; set e\.g\. `data\.num_classes=1000`"),
      (
        [serialize_example(b"GIF?", 0)],
        {},
        r"1 of 1 pictures cannot be read: record 0 of .*a\.array_record",
      ),
      ([], {}, "the shards hold no record"),
    ],
  )
  def test_records_that_do_not_fit_are_named(self, tmp_path, records, fields, message):
    if records is None:
      records = [serialize_example(to_png(IMAGES[i]), i) for i in range(3)]
    write_shard(tmp_path / "a.array_record", records)
    with pytest.raises(UserError, match=message):
      Records(**{"path": str(tmp_path), "num_classes": 3, **fields}).load("train")

  def test_a_picture_cut_short_is_named_when_it_is_read(self, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "NUM_PROBES", 1)
    whole, cut = to_png(IMAGES[0]), to_png(IMAGES[1])[:-60]
    write_shard(tmp_path / "a.array_record", [serialize_example(p, 0) for p in (whole, cut)])
    source = Records(path=str(tmp_path), num_classes=1, max_ram_gib=0.0).load("train")
    source.gather(np.array([0]))
    with pytest.raises(UserError, match=r"1 of 2 .* read: record 1 of .*a\.array_record \("):
      source.gather(np.array([0, 1]))

  def test_missing_paths(self, tmp_path):
    with pytest.raises(UserError, match=r"`data.path=DIR` is missing; give a folder of shards"):
      Records().load("train")
    assert not Records().has_split("test")
    for path in (tmp_path, tmp_path / "no", tmp_path / "train-*.array_record"):
      with pytest.raises(UserError, match=r"no shards \(\*\.array_record\) there; give a folder"):
        Records(path=str(path)).load("train")

  @pytest.mark.parametrize("content", [b"", b"no such format" * 99, None])
  def test_files_that_are_no_whole_array_record(self, prepared, tmp_path, content):
    file = tmp_path / "train.array_record"
    whole = (prepared / "train-00000-of-00004.array_record").read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"train\.array_record is not a whole ArrayRecord file"):
      Records(path=str(file), num_classes=3).load("train")

  def test_damage_is_noticed(self, prepared, tmp_path):
    data = bytearray((prepared / "train-00000-of-00004.array_record").read_bytes())
    data[700] ^= 255  # within the records: 64 KiB blocks end in padding and the index
    (tmp_path / "train.array_record").write_bytes(data)
    with pytest.raises(UserError, match=r"record \d of .*train\.array_record is damaged"):
      Records(path=str(tmp_path), num_classes=3).load("train")

  def test_shards_that_are_missing_or_too_many(self, prepared, tmp_path):
    for file in prepared.iterdir():
      (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train-00002-of-00004.array_record").unlink()
    with pytest.raises(UserError, match="has 3 of 4 shards, number 2 is the first that is missing"):
      Records(path=str(tmp_path)).load("train")
    record = serialize_example(to_png(IMAGES[0]), 0)
    write_shard(tmp_path / "train-00002-of-00004.array_record", [record])
    with pytest.raises(UserError, match=r"hold 19 records, but train\.shards\.json says 24"):
      Records(path=str(tmp_path)).load("train")
    write_shard(tmp_path / "train-00000-of-00002.array_record", [record])
    with pytest.raises(UserError, match="mixes shards of"):
      Records(path=str(tmp_path)).load("train")

  def test_records_in_large_groups_are_refused(self, tmp_path):
    write_shard(tmp_path / "a.array_record", [b"x"], "group_size:1024")
    with pytest.raises(UserError, match="written with group_size:1024, so that each read decodes"):
      Records(path=str(tmp_path), num_classes=1).load("train")

  def test_a_damaged_description_is_named(self, prepared, tmp_path):
    for file in prepared.iterdir():
      (tmp_path / file.name).write_bytes(file.read_bytes())
    for text in ("{", "{}", "[]"):
      (tmp_path / "train.shards.json").write_text(text)
      with pytest.raises(UserError, match=r"train\.shards\.json is damaged"):
        Records(path=str(tmp_path)).load("train")

  def test_impossible_fields(self):
    for fields in ({"channels": 2}, {"image_size": 0}, {"num_classes": 0}):
      (name,) = fields
      with pytest.raises(ValueError, match=f"{name}="):
        Records(**fields)


class TestWriting:
  def test_resizing_is_the_folders_own(self, pictures, tmp_path):
    file = shards.write_shards(Task(pictures, tmp_path / "out", image_size=5, num_shards=3))
    theirs = everything(Folder(path=str(pictures), image_size=5).load("train"))
    assert as_set(*everything(Records(path=str(file.parent)).load("train"))) == as_set(*theirs)
    assert read_description(file)[:5] == (24, 3, CLASSES, 5, 3)

  def test_without_a_size_the_files_own_bytes_are_kept(self, tmp_path):
    root = save_pictures(tmp_path / "pictures", suffix=".jpg")
    shards.write_shards(Task(root, tmp_path / "out", num_shards=2))
    records = Shards(sorted((tmp_path / "out").glob("*.array_record")))
    kept = {parse_example(records[i])["image"].bytes_list.value[0] for i in range(24)}
    assert kept == {p.read_bytes() for p in root.rglob("*.jpg")}

  def test_a_flat_folder_is_unlabelled_and_grey_stays_grey(self, tmp_path):
    grey = tmp_path / "grey"
    grey.mkdir()
    for i, image in enumerate(IMAGES):
      Image.fromarray(image[:, :, 0]).save(grey / f"{i}.png")
    shards.write_shards(Task(grey, tmp_path / "out", image_size=6, channels=1))
    source = Records(path=str(tmp_path / "out")).load("train")
    assert source.spec == ImageSpec(6, 6, 1, 256, 0)
    record = Shards(sorted((tmp_path / "out").glob("*.array_record")))[0]
    assert list(parse_example(record)) == ["image"]

  def test_the_number_of_shards_follows_from_the_bytes(self, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    total = sum(len(serialize_example(p.read_bytes(), 0)) for p in pictures.rglob("*.png"))
    file = shards.write_shards(Task(pictures, tmp_path / "out"))
    assert abs(read_description(file).num_shards - total / 1000) < 1
    sizes = [len(Shards([f])) for f in sorted(file.parent.glob("*.array_record"))]
    assert max(sizes) - min(sizes) <= 1

  def test_after_an_interruption_it_goes_on_and_ends_the_same(self, pictures, tmp_path, prepared):
    """Killed between shards and within one, by a picture that cannot be read."""
    out = tmp_path / "out"
    task = Task(pictures, out, num_shards=4)
    place = int(fixed_order(24)[14])  # in the third of four shards
    (bad,) = pictures.glob(f"*/{place:03d}.png")
    place_name = bad.relative_to(pictures)
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-70])
    with pytest.raises(UserError, match=f"1 of 24 .* read: {place_name} .*same command again"):
      shards.write_shards(task)
    assert {p.name for p in out.glob("*.array_record")} == {
      f"train-0000{i}-of-00004.array_record" for i in (0, 1)
    }
    with pytest.raises(UserError, match=r"is not finished; .* start the same prepare command"):
      Records(path=str(out)).load("train")
    times = {p: p.stat().st_mtime_ns for p in out.glob("*.array_record")}
    bad.write_bytes(whole)
    shards.write_shards(task)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert contents(out) == contents(prepared)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    shards.write_shards(task)  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before

  def test_an_interruption_before_the_first_shard_is_said(self, pictures, tmp_path):
    for file in pictures.rglob("*.png"):
      file.write_bytes(file.read_bytes()[:-70])
    with pytest.raises(UserError, match="24 of 24 pictures cannot be read"):
      shards.write_shards(Task(pictures, tmp_path / "out", num_shards=4))
    with pytest.raises(UserError, match=r"is not finished; .* start the same prepare command"):
      Records(path=str(tmp_path / "out")).load("train")

  def test_a_process_that_is_killed_leaves_whole_shards_only(self, pictures, tmp_path, prepared):
    out = tmp_path / "out"
    program = textwrap.dedent(f"""
      import pathlib, time
      from diffusion_jax.data import shards
      make = shards._record
      shards._record = lambda *args: (time.sleep(0.1), make(*args))[1]
      shards.write_shards(shards.Task(pathlib.Path({str(pictures)!r}), pathlib.Path({str(out)!r}),
                               num_shards=4))
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(out.glob("*.array_record")) and time.monotonic() < until:
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = sorted(out.glob("*.array_record"))
    assert 1 <= len(found) < 4
    assert not (out / "train.shards.json").exists()
    assert all(f.read_bytes() == (prepared / f.name).read_bytes() for f in found)
    shards.write_shards(Task(pictures, out, num_shards=4))
    assert contents(out) == contents(prepared)

  @pytest.mark.parametrize(
    ("change", "message"),
    [
      ({"image_size": 4}, r"made otherwise \(image_size differs\); choose another --out"),
      ({"num_shards": 2}, r"made otherwise \(num_shards differs\)"),
      ({"image_size": 4, "channels": 1}, r"\(image_size, channels differ\)"),
    ],
  )
  def test_shards_of_another_command_are_not_mixed_in(self, pictures, prepared, change, message):
    with pytest.raises(UserError, match=message):
      shards.write_shards(Task(pictures, prepared)._replace(**change))

  def test_other_pictures_are_not_mixed_in(self, pictures, prepared):
    shards.write_shards(Task(pictures, prepared))  # the same names: it is done
    (pictures / "ant" / "000.png").rename(pictures / "ant" / "new.png")
    with pytest.raises(UserError, match=r"made otherwise \(pictures_sha256 differs\)"):
      shards.write_shards(Task(pictures, prepared))

  def test_a_second_split_must_have_the_firsts_classes(self, pictures, prepared):
    (pictures / "ant").rename(pictures / "dog")
    with pytest.raises(UserError, match=r"pictures has dog, unlike .*train\.shards\.json"):
      shards.write_shards(Task(pictures, prepared, split="test"))

  def test_two_at_once_are_refused(self, pictures, prepared):
    handle = os.open(prepared, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another preparation is writing there"):
      shards.write_shards(Task(pictures, prepared))
    os.close(handle)
    shards.write_shards(Task(pictures, prepared))

  def test_folders_that_do_not_serve(self, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    cases = [
      (Task(tmp_path / "no", tmp_path / "out"), "no: no such folder"),
      (Task(tmp_path / "empty", tmp_path / "out"), "no pictures there"),
      (Task(pictures, tmp_path / "file"), "--out=.*file cannot be written"),
      (Task(pictures, tmp_path / "out", image_size=0), "--image_size=0 must be at least 1"),
      (Task(pictures, tmp_path / "out", num_shards=-1), "--shards=-1 must be at least 1"),
      (Task(pictures, tmp_path / "out", split="a/b"), "--split=a/b must consist of letters"),
    ]
    for task, message in cases:
      with pytest.raises(UserError, match=message):
        shards.write_shards(task)
    Image.fromarray(IMAGES[0]).save(pictures / "stray.png")
    with pytest.raises(UserError, match=r"holds classes \(ant, ...\) and stray.png; move it"):
      shards.write_shards(Task(pictures, tmp_path / "out"))

  def test_tfds_is_imported_before_threads_start(self, pictures, tmp_path):
    """While it is, other threads' imports fail, Pillow's of its formats among them."""
    program = textwrap.dedent(f"""
      import pathlib, sys, threading

      class Watch:
        def find_spec(self, name, path=None, target=None):
          if name == "tensorflow_datasets":
            threads.append(threading.current_thread() is threading.main_thread())

      from diffusion_jax.data import Records, shards
      threads = []
      sys.meta_path.insert(0, Watch())
      if sys.argv[1] == "write":
        pictures, out = pathlib.Path({str(pictures)!r}), pathlib.Path({str(tmp_path)!r})
        shards.write_shards(shards.Task(pictures, out))
      else:
        Records(path={str(tmp_path)!r}, image_size=4).load("train")
      print("in the main thread:", threads)
    """)
    for what in ("write", "read"):
      command = [sys.executable, "-c", program, what]
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      assert done.stdout.endswith("in the main thread: [True]\n"), what

  def test_a_disk_that_is_full(self, pictures, tmp_path):
    program = textwrap.dedent(f"""
      import pathlib, resource
      from diffusion_jax.data import shards
      resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
      pictures, out = pathlib.Path({str(pictures)!r}), pathlib.Path({str(tmp_path)!r})
      shards.write_shards(shards.Task(pictures, out))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "UserError" in done.stderr
    assert "cannot be written (write() failed: File too large" in done.stderr
    assert not list(tmp_path.glob("*.array_record"))


class TestHowMany:
  @pytest.mark.parametrize(("num", "limit"), [(25, 10_000), (100_000, 10_000), (9, 8)])
  def test_shards_without_pictures_or_too_many_are_refused(
    self, num, limit, pictures, tmp_path, monkeypatch
  ):
    monkeypatch.setattr(shards, "MAX_SHARDS", limit)
    words = f"--shards={num}: must be at most {min(24, limit)}, for 24 pictures; leave it out"
    with pytest.raises(UserError, match=words):
      shards.write_shards(Task(pictures, tmp_path / "out", num_shards=num))
    assert not (tmp_path / "out").exists()

  def test_as_many_as_pictures_are_written(self, pictures, tmp_path):
    shards.write_shards(Task(pictures, tmp_path / "out", num_shards=24))
    assert len(Records(path=str(tmp_path / "out")).load("train")) == 24

  def test_no_shard_is_written_through_a_link(self, pictures, tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / "train-00000-of-00001.array_record.part").symlink_to(victim)
    (out / "train-00000-of-00001.array_record").symlink_to(tmp_path / "nowhere")
    shards.write_shards(Task(pictures, out, num_shards=1))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()
    assert len(Records(path=str(out)).load("train")) == 24


class TestCommand:
  def test_the_whole_way(self, call, pictures, tmp_path):
    flags = ("records", pictures, f"--out={tmp_path / 'out'}", "--image_size=4", "--shards=2")
    code, out, _ = call(prepare.main, *flags)
    assert code == 0
    assert "train-00001-of-00002.array_record: 12 pictures" in out
    assert f"prepared {tmp_path / 'out' / 'train.shards.json'}" in out
    assert Records(path=str(tmp_path / "out")).load("train").spec.height == 4
    assert json.loads((tmp_path / "out" / "train.shards.json").read_text())["classes"] == CLASSES

  @pytest.mark.parametrize(
    ("flags", "message"),
    [
      (("records",), "needs a folder of pictures and --out=DIR"),
      (("records", "DIR"), "needs a folder of pictures and --out=DIR"),
      (("records", "DIR", "--out=X", "--data_dir=Y"), "--data_dir=Y: prepare records writes to"),
      (("mnist", "--out=X"), "--out: only `prepare records` takes it"),
      (("inception", "--shards=2"), "--shards: only `prepare records` takes it"),
      (
        ("svhn_cropped", "FILE"),
        "FILE: only inception, dinov2, clip, records, cifar10, .* take a file",
      ),
      (("records", "DIR", "--out=X", "--channels=2"), "invalid choice: .*2"),
    ],
  )
  def test_flags_that_do_not_fit(self, call, flags, message):
    code, _, err = call(prepare.main, *flags)
    assert code == 2
    assert re.search(message, err), err
