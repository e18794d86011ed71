"""Prepared data in a bucket: record sets, sets of tensorflow-datasets and of Hugging Face."""

import shutil

import numpy as np
import pytest
from bucket import other_machine, serve_bucket
from PIL import Image

from diffusion_jax import prepare
from diffusion_jax.core import buckets
from diffusion_jax.data import (
  Digits,
  Folder,
  Latents,
  Records,
  Tfds,
  fetch_data,
  hugging_face,
  shards,
  standard,
)
from diffusion_jax.data.finding import find_data
from diffusion_jax.data.hugging_face import HuggingFace
from diffusion_jax.data.tfds import prepared_names, set_path
from diffusion_jax.types import UserError

SET = "gs://b/sets/pets"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  yield from serve_bucket(monkeypatch, tmp_path)


@pytest.fixture
def pictures(tmp_path):
  for i, image in enumerate(IMAGES):
    file = tmp_path / "pictures" / ("ant", "bee")[i % 2] / f"{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)
  return tmp_path / "pictures"


def sorted_pixels(source):
  images = source.gather(np.arange(len(source)))[0]
  return sorted(images.reshape(len(images), -1).tolist())


def test_records_go_to_a_bucket_and_are_read_on_another_machine(
  bucket, pictures, call, monkeypatch, tmp_path
):
  code, out, err = call(prepare.main, "records", str(pictures), f"--out={SET}", "--shards=2")
  assert (code, err) == (0, "")
  assert f"prepared {SET}/train.shards.json" in out
  assert str(tmp_path / "machine1") not in out
  names = ["train-00000-of-00002.array_record", "train-00001-of-00002.array_record"]
  assert bucket.names(SET) == [*names, "train.shards.json"]
  assert bucket.written[-1] == f"{SET}/train.shards.json"
  other_machine(monkeypatch, tmp_path)
  assert find_data(SET) == {"name": "records", "path": SET}
  for path in (SET, f"{SET}/", f"{SET}/train-*", f"{SET}/train-*.array_record"):
    source = Records(path=path).load("train")
    assert sorted_pixels(source) == sorted(IMAGES.reshape(len(IMAGES), -1).tolist())
    assert source.about.classes == ["ant", "bee"]
    assert not Records(path=path).has_split("test")
  with pytest.raises(UserError, match=r"`data.path=gs://b/none`: no shards"):
    Records(path="gs://b/none").load("train")


def test_a_preparation_cut_off_is_no_set_and_goes_on_on_another_machine(
  bucket, pictures, monkeypatch, tmp_path, capsys
):
  def task():
    return shards.Task(pictures, set_path("gs://b/sets", "pets"), num_shards=3)

  write, written = shards._write_shard, []

  def write_one(pool, content, places, target, phase):
    if len(written) == 1:
      raise KeyboardInterrupt
    written.append(target.name)
    write(pool, content, places, target, phase)

  with monkeypatch.context() as patch:
    patch.setattr(shards, "_write_shard", write_one)
    with pytest.raises(KeyboardInterrupt):
      shards.write_shards(task())
  other_machine(monkeypatch, tmp_path)
  assert bucket.names(SET) == [written[0], "train.shards.json.part"]
  with pytest.raises(UserError, match="the preparation of train is not finished"):
    Records(path=SET).load("train")
  before = len(bucket.written)
  shards.write_shards(task())
  buckets.upload_changes()
  assert [name.removeprefix(f"{SET}/") for name in bucket.written[before:]][-1] == (
    "train.shards.json"
  )
  assert f"{SET}/{written[0]}" not in bucket.written[before:]  # it was there
  assert len(Records(path=SET).load("train")) == len(IMAGES)


def test_a_bucket_that_cannot_be_written_is_said_before_pictures_are_read(
  bucket, pictures, monkeypatch
):
  out = set_path("gs://b/sets", "pets")
  bucket.is_down = True
  with pytest.raises(UserError, match=r"gs://b/sets/pets cannot be written \(the network is down"):
    shards.write_shards(shards.Task(pictures, out))
  bucket.is_down = False


def test_one_set_of_tensorflow_datasets_is_copied_and_a_standard_one_is_prepared_there(
  bucket, monkeypatch, tmp_path
):
  bucket.put("gs://b/tfds/large/1.0.0/dataset_info.json", b"{}")

  def make(official, content, data_dir):
    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "mnist-train.array_record-00000-of-00001").write_text("1")
    return folder

  obtained = []
  monkeypatch.setattr(standard, "_write", make)
  monkeypatch.setattr(standard, "_obtain", lambda url, path, checksum: obtained.append(path))
  monkeypatch.setitem(standard.STANDARD, "mnist", lambda files: None)
  monkeypatch.setenv("TFDS_DATA_DIR", "gs://b/tfds")
  folder = Tfds(dataset="mnist")._folder()
  assert obtained[0].is_relative_to(tmp_path / "machine1/diffusion_jax/downloads/mnist")
  buckets.upload_changes()
  assert bucket.written[-1] == "gs://b/tfds/mnist/3.0.1/dataset_info.json"
  other_machine(monkeypatch, tmp_path)
  monkeypatch.setattr(standard, "prepare_standard", None)  # it is there
  for data_dir in (None, "gs://b/tfds", "gs://b/tfds/"):
    again = Tfds(dataset="mnist", data_dir=data_dir)._folder()
    assert again != folder
    assert [file.name for file in sorted(again.iterdir())] == [
      "dataset_info.json",
      "mnist-train.array_record-00000-of-00001",
    ]
  assert not list((tmp_path / "machine2").rglob("large"))
  assert {"mnist", "large"} <= prepared_names()
  with pytest.raises(UserError, match=r"has the version 3.0.1$"):
    Tfds(dataset="mnist:9.9.9")._folder()
  with pytest.raises(UserError, match=r"--data_dir=DIR, and copy DIR/imagenet2012 to gs://b/tfds"):
    Tfds(dataset="imagenet2012")._folder()


def test_tensorflow_prepares_into_a_folder_only(bucket, call):
  code, _, err = call(prepare.main, "imagenet_v2", "--data_dir=gs://b/tfds")
  assert code == 2
  assert (
    err == "error: --data_dir=gs://b/tfds: prepare imagenet_v2 in a folder, and copy that there\n"
  )
  code, _, err = call(prepare.main, "imagenet_v2", "--data_dir=")
  assert (code, err) == (2, "error: --data_dir= is empty; give a path or leave it out\n")


def test_a_set_saved_by_hugging_face_is_copied(bucket, monkeypatch, tmp_path):
  bucket.put("gs://b/saved/dataset_dict.json", b"{}")
  bucket.put("gs://b/saved/train/state.json", b"{}")
  assert find_data("gs://b/saved") == {"name": "hugging_face", "path": "gs://b/saved"}
  read = []

  class Library:
    load_from_disk = staticmethod(read.append)

  monkeypatch.setattr(hugging_face, "_library", lambda: Library)
  HuggingFace(path="gs://b/saved")._from_disk("gs://b/saved")
  shutil.copytree(read[0], tmp_path / "found")
  assert (tmp_path / "found/train/state.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
  ("data", "copied"),
  [
    (Records(path="gs://b/set/train-*", test_path="gs://b/test"), {"set/train-0", "test/1"}),
    (Tfds(dataset="pets/small:1.0.0", data_dir="gs://b/tfds"), {"small/1.0.0/x"}),
    (HuggingFace(path="gs://b/set"), {"set/train-0"}),
    (Latents(path="gs://b/test", data_dir="gs://b/set"), {"test/1"}),
    (Folder(path="gs://b/test"), {"test/1"}),
    (Digits(), set()),
  ],
  ids=lambda value: type(value).__name__,
)
def test_each_process_of_a_job_can_copy_the_data_before_they_are_read(
  bucket, tmp_path, data, copied
):
  for name in ("set/train-0", "test/1", "tfds/pets/small/1.0.0/x", "tfds/other/1.0.0/x"):
    bucket.put(f"gs://b/{name}", b"1")
  fetch_data(data)
  found = (tmp_path / "machine1").glob("diffusion_jax/buckets/*/files/**/*")
  names = (path.parts[path.parts.index("files") + 1 :] for path in found if path.is_file())
  assert {"/".join(name) for name in names} == copied
