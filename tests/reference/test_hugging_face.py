"""Data sets of Hugging Face, with the real library, offline, on sets made here."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import HuggingFace, streamed
from diffusion_jax.data.finding import find_data
from diffusion_jax.data.source import DecodedSource
from diffusion_jax.runs import own_data
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import UserError

pytestmark = pytest.mark.reference
RNG = np.random.default_rng(0)
NAMES = ["cat", "小狗"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def picture(width=12, height=10, mode="RGB"):
  file = io.BytesIO()
  pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(file, "PNG")
  return {"bytes": file.getvalue(), "path": None}


def make(num, features=None, broken=(), **columns):
  import datasets

  cells = [{"bytes": b"no picture", "path": None} if i in broken else picture() for i in range(num)]
  features = features or {"label": datasets.ClassLabel(names=NAMES)}
  columns = columns or {"label": [i % 2 for i in range(num)]}
  kinds = datasets.Features({"image": datasets.Image(), **features})
  return datasets.Dataset.from_dict({"image": cells, **columns}, features=kinds)


@pytest.fixture
def saved(tmp_path):
  import datasets

  both = datasets.DatasetDict({"train": make(30), "validation": make(4)})
  both.save_to_disk(str(tmp_path / "saved"))
  return tmp_path / "saved"


def test_a_saved_set_is_found_and_read(saved):
  assert find_data(str(saved)) == {"name": "hugging_face", "path": str(saved)}
  data = HuggingFace(path=str(saved), image_size=8)
  train, test = data.load("train"), data.load("test")
  assert (len(train), len(test), train.spec.shape) == (30, 4, (8, 8, 3))
  assert (train.about.classes, train.about.counts) == (NAMES, [15, 15])
  assert train.gather(np.arange(4))[1].tolist() == [0, 1, 0, 1]
  assert train.about.files.found == 30


def test_pixels_are_those_of_the_images(saved):
  import datasets

  source = HuggingFace(path=str(saved)).load("train")
  theirs = datasets.load_from_disk(str(saved))["train"]
  images = source.gather(np.arange(30))[0]
  assert all(
    (np.asarray(row["image"]) == ours).all() for row, ours in zip(theirs, images, strict=True)
  )


def test_a_config_is_chosen(saved, tmp_path):
  chosen = own_data.choose_config(str(saved), "cpu", 1)
  values = {(c.section, c.field): c.value for c in chosen.choices}
  assert values["data", "image_size"] == 8
  assert values["generative", "conditional"] is True
  assert ("data", "test_fraction") not in values
  data = build_experiment(chosen.raw).data
  assert (len(data.load("train")), len(data.load("test"))) == (30, 4)


def test_one_split_holds_out_a_part(tmp_path):
  make(40).save_to_disk(str(tmp_path / "one"))
  data = build_experiment(own_data.choose_config(str(tmp_path / "one"), "cpu", 1).raw).data
  assert (len(data.load("train")), len(data.load("test"))) == (36, 4)


def test_by_name(tmp_path):
  """A local folder stands for a repository; the library treats both alike."""
  (tmp_path / "repo").mkdir()
  make(6).to_parquet(str(tmp_path / "repo" / "train.parquet"))
  data = HuggingFace(dataset=str(tmp_path / "repo"), image_size=8)
  assert len(data.load("train")) == 6
  assert not data.has_split("test")
  assert find_data("hf:ylecun/mnist:plain") == {
    "name": "hugging_face", "dataset": "ylecun/mnist", "subset": "plain",
  }  # fmt: skip


def test_names_and_numbers_as_labels(tmp_path):
  import datasets

  for kind, values, classes in (
    ("string", ["b", "a", "b"], ["a", "b"]),
    ("int64", [2, 0, 2], ["0", "1", "2"]),
  ):
    rows = make(3, {"label": datasets.Value(kind)}, label=values)
    rows.save_to_disk(str(tmp_path / kind))
    source = HuggingFace(path=str(tmp_path / kind)).load("train")
    assert source.about.classes == classes
    assert source.gather(np.arange(3))[1].tolist() == [classes.index(str(v)) for v in values]
    assert (
      HuggingFace(path=str(tmp_path / kind), label_key=None).load("train").spec.num_classes == 0
    )


def test_broken_images_are_refused_or_skipped(tmp_path):
  make(5, broken=(1, 3)).save_to_disk(str(tmp_path / "a"))
  with pytest.raises(UserError, match=r"2 of 5 pictures cannot be read: row 1 \(.*row 3"):
    HuggingFace(path=str(tmp_path / "a"), image_size=8).load("train")
  source = HuggingFace(path=str(tmp_path / "a"), image_size=8, unreadable="skip").load("train")
  assert (len(source), source.gather(np.arange(3))[1].tolist()) == (3, [0, 0, 0])
  assert sum(source.about.files.skipped.values()) == 2


def test_what_is_not_there_is_one_line(saved, tmp_path):
  for fields, message in (
    ({"path": f"{tmp_path}/none"}, "cannot be loaded"),
    ({"dataset": "nobody/nothing"}, "cannot be loaded"),
    ({"path": str(saved), "image_key": "photo"}, "no column of images named photo"),
    ({"path": str(saved), "label_key": "kind"}, "its columns are image, label"),
    ({"path": str(saved), "train_split": "all"}, "has the splits train, validation, not all"),
  ):
    with pytest.raises(UserError) as error:
      HuggingFace(**fields).load("train")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_that_exceeds_the_memory_is_decoded_as_it_is_read(tmp_path):
  make(30).save_to_disk(str(tmp_path / "set"))
  fields = {"path": str(tmp_path / "set"), "image_size": 8, "test_fraction": 0.2}
  for split in ("train", "test"):
    kept = HuggingFace(**fields).load(split)
    read = HuggingFace(**fields, max_ram_gib=1e-9).load(split)
    index = np.arange(len(kept))[::-1]
    assert isinstance(read, DecodedSource)
    assert (len(read), read.spec) == (len(kept), kept.spec)
    assert (read.about.classes, read.about.files) == (kept.about.classes, kept.about.files)
    for ours, theirs in zip(read.gather(index), kept.gather(index), strict=True):
      np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("max_ram_gib", [8.0, 1e-9])
def test_rows_without_a_picture_are_refused_or_skipped(max_ram_gib, tmp_path):
  import datasets

  cells = [picture(), None, {"bytes": b"no picture", "path": None}, picture()]
  kinds = datasets.Features({"image": datasets.Image()})
  datasets.Dataset.from_dict({"image": cells}, features=kinds).save_to_disk(str(tmp_path / "set"))
  fields = {"path": str(tmp_path / "set"), "image_size": 8, "max_ram_gib": max_ram_gib}
  with pytest.raises(UserError, match=r"row 1.*row 2"):
    HuggingFace(**fields).load("train")
  source = HuggingFace(**fields, unreadable="skip").load("train")
  assert source.gather(np.arange(2))[0].shape == (2, 8, 8, 3)
  assert (len(source), sum(source.about.files.skipped.values())) == (2, 2)


class TestStreaming:
  @pytest.fixture
  def repo(self, tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    make(30, broken=(3,)).to_parquet(str(folder / "train.parquet"))
    make(4).to_parquet(str(folder / "test.parquet"))
    return str(folder)

  def test_it_gives_the_images_of_the_whole_download(self, repo):
    skip = {"image_size": 8, "unreadable": "skip"}
    whole = HuggingFace(dataset=repo, **skip)
    small = HuggingFace(dataset=repo, streaming=True, **skip)
    for split, num in (("train", 29), ("test", 4)):
      ours, theirs = small.load(split), whole.load(split)
      assert len(ours) == len(theirs) == num
      pairs = zip(ours.gather(np.arange(num)), theirs.gather(np.arange(num)), strict=True)
      assert all((a == b).all() for a, b in pairs)
      assert ours.about.files == theirs.about.files
      assert ours.about.classes == NAMES
    with pytest.raises(UserError, match="1 of 30 pictures cannot be read: row 3"):
      dataclasses.replace(small, unreadable="refuse").load("train")

  def test_it_is_downloaded_once_and_only_the_small_images_are_kept(
    self, repo, tmp_path, monkeypatch
  ):
    data = HuggingFace(dataset=repo, streaming=True, image_size=8, channels=1)
    assert data.load("test").spec.shape == (8, 8, 1)
    monkeypatch.setattr(streamed, "_shrunk", lambda *_: pytest.fail("downloaded again"))
    assert len(data.load("test")) == 4
    kept = [file.read_bytes() for file in (tmp_path / "hf").rglob("*.arrow")]
    assert len(kept) == 1
    import datasets

    original = datasets.load_dataset(repo, split="test", streaming=True)
    cells = original.cast_column("image", datasets.Image(decode=False))
    assert not any(row["image"]["bytes"] in kept[0] for row in cells)

  def test_a_config_is_chosen_from_its_first_rows(self, repo):
    given = {("data", "streaming"): True, ("data", "unreadable"): "skip"}
    chosen = own_data.choose_config(f"hf:{repo}", "cpu", 1, given)
    values = {(c.section, c.field): c.value for c in chosen.choices}
    assert values["data", "image_size"] == 8
    assert values["generative", "conditional"] is True

  def test_a_folder_and_no_size_are_refused(self, repo, saved):
    with pytest.raises(ValueError, match="downloads a set by its name"):
      HuggingFace(path=str(saved), streaming=True)
    with pytest.raises(UserError, match=r"set `data\.image_size=\.\.\.`"):
      HuggingFace(dataset=repo, streaming=True).load("train")
    with pytest.raises(UserError, match=r"cannot be loaded .*Bad split: nope"):
      HuggingFace(dataset=repo, streaming=True, image_size=8, train_split="nope").load("train")
