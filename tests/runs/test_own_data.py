"""A config is chosen from the data, with reasons, and its file gives the same run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.config import Override
from diffusion_jax.data.base import Seen
from diffusion_jax.data.finding import find_data, name_of_data
from diffusion_jax.runs import own_data
from diffusion_jax.runs.data_argument import folder_for_data, naming_data
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def save(path, width=24, height=20, mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
  Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path):
  for i in range(30):
    save(tmp_path / "my photos" / "ab"[i % 2] / f"{i}.png")
  return tmp_path / "my photos"


def seen(*sizes, num_images=100, num_classes=0, is_grey=False, resizable=True):
  return Seen(sizes, is_grey, num_images, num_classes, resizable)


@pytest.mark.parametrize(
  ("sizes", "device", "size"),
  [
    ([(28, 28)], "cpu", None),
    ([(32, 32)], "cpu", None),
    ([(30, 30)], "cpu", 16),  # cannot be halved twice
    ([(64, 64)], "cpu", 32),
    ([(64, 64)], "accelerator", None),
    ([(600, 800), (3000, 4000)], "accelerator", 64),
    ([(600, 800), (3000, 4000)], "cpu", 32),
    ([(20, 90)] * 2 + [(500, 400)] * 8, "cpu", 16),  # a fifth would be enlarged
    ([(20, 90)] + [(500, 400)] * 19, "cpu", 32),  # a twentieth may be
    ([(5, 4)], "cpu", 8),
  ],
)
def test_the_resolution_enlarges_at_most_a_tenth(sizes, device, size):
  assert own_data.choose_size(seen(*sizes), device)[0] == size


def test_images_that_cannot_be_resized_stay(tmp_path):
  assert own_data.choose_size(seen((48, 40), resizable=False), "cpu") == (
    None, "all images are 40x48",
  )  # fmt: skip


@pytest.mark.parametrize(
  ("height", "width", "levels"),
  [
    (8, 8, 2),
    (16, 16, 2),
    (28, 28, 3),
    (32, 32, 3),
    (64, 64, 4),
    (33, 33, 1),
    (48, 40, 4),
    (2, 2, 1),
  ],
)
def test_levels_halve_both_sides(height, width, levels):
  multipliers = own_data._multipliers(height, width)
  assert len(multipliers) == levels
  assert height % 2 ** (levels - 1) == width % 2 ** (levels - 1) == 0


@pytest.mark.parametrize(
  ("num_images", "fraction"), [(20, 0.1), (50_000, 0.1), (60_000, 0.08), (1_281_167, 0.003)]
)
def test_a_tenth_is_held_out_of_a_set_that_is_not_large(num_images, fraction):
  assert own_data._held_out_fraction(num_images) == pytest.approx(fraction)


@pytest.mark.parametrize(("num_images", "conditional"), [(49, False), (50, True)])
def test_labels_are_learnt_if_classes_have_images(num_images, conditional):
  first, *_ = own_data._label_choices(seen((8, 8), num_images=num_images, num_classes=10))
  assert (first.field, first.value) == ("conditional", conditional)


def test_the_choice_says_what_and_why(photos):
  chosen = own_data.choose_config(str(photos), "cpu", 1)
  values = {(c.section, c.field): c.value for c in chosen.choices}
  assert values["data", "image_size"] == 16
  assert values["data", "test_fraction"] == 0.1
  assert values["generative", "conditional"] is True
  assert all(choice.reason for choice in chosen.choices)
  text = own_data.describe_choice(chosen, [Override("training", "num_steps", "7")])
  assert "the shorter side is always 20 pixels, 100% at least 16" in text
  assert "7     set by you" in text.replace("  set", " set").replace("       ", "     ")
  replaced = own_data.describe_choice(chosen, [Override("model", "name", "mlp")])
  assert "model.channels" not in replaced


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_every_choice_builds_a_model(platform, num_devices, photos):
  chosen = own_data.choose_config(str(photos), platform, num_devices)
  experiment = build_experiment(chosen.raw)
  assert experiment.training.batch_size % num_devices == 0
  experiment.create(experiment.data.load("train").spec)


@pytest.mark.parametrize(
  "overrides", [[], [Override("model", "name", "mlp"), Override("training", "num_steps", "3")]]
)
def test_the_saved_file_gives_the_same_run(overrides, photos, tmp_path):
  chosen = own_data.choose_config(str(photos), "cpu", 1)
  experiment = build_experiment(chosen.raw, overrides)
  file = tmp_path / "mine.py"
  file.write_text(own_data.config_source(experiment, chosen, f'{photos}\\"""'), encoding="utf-8")
  assert load_experiment(str(file), []).to_dict() == experiment.to_dict()
  assert "# there is no test split" in file.read_text()


def test_a_file_of_other_content_is_kept(tmp_path):
  file = tmp_path / "mine.py"
  own_data.check_config_target(file, "x")
  file.write_text("mine")
  own_data.check_config_target(file, "mine")
  with pytest.raises(UserError, match="exists with other content"):
    own_data.check_config_target(file, "x")
  with pytest.raises(UserError, match=r"must end in \.py"):
    own_data.check_config_target(tmp_path / "mine", "x")
  file.write_bytes(b"\xff")
  with pytest.raises(UserError, match="exists with other content"):
    own_data.check_config_target(file, "x")


def test_a_run_continues_with_its_own_choice(photos, tmp_path, monkeypatch):
  run, section = tmp_path / "run", find_data(str(photos))
  chosen = own_data.choose_config(str(photos), "gpu", 1)
  run.mkdir()
  own_data.store_choice(run, chosen)
  assert own_data.stored_choice(run, section) is None  # nothing is trained yet
  monkeypatch.setattr(own_data.store, "saved_steps", lambda folder: [1])
  stored = own_data.stored_choice(run, section)
  assert stored.is_stored
  assert build_experiment(stored.raw).to_dict() == build_experiment(chosen.raw).to_dict()
  own_data.store_choice(run, stored)  # does not write again
  moved = own_data.stored_choice(run, section | {"path": "elsewhere"})
  assert moved.raw["data"] == stored.raw["data"] | {"path": "elsewhere"}
  assert own_data.stored_choice(run, {"name": "digits"}) is None
  own_data.store_choice(run, own_data.choose_config(str(photos), "cpu", 1))  # may yet be refused
  assert own_data.stored_choice(run, section).raw == stored.raw
  (run / own_data.CHOSEN).write_text(json.dumps([1]))
  assert own_data.stored_choice(run, section) is None


def test_the_choices_follow_the_fields_that_are_set(photos):
  given = {
    ("data", "image_size"): 32,
    ("data", "test_path"): str(photos),
    ("generative", "conditional"): False,
    ("training", "num_steps"): 8000,
  }
  chosen = own_data.choose_config(str(photos), "cpu", 1, given)
  assert chosen.raw["model"]["multipliers"] == (1, 2, 2)
  assert chosen.raw["optimizer"]["warmup_steps"] == 400
  assert chosen.raw["checkpoint"]["every_steps"] == 1000
  assert "guidance" not in chosen.raw
  assert "test_fraction" not in chosen.raw["data"]


@pytest.mark.parametrize(
  ("message", "said"),
  [
    ("`data.path={path}`: no pictures there", "`data=photos`: no pictures there"),
    ("{path}: this archive cannot be read", "`data=photos`: this archive cannot be read"),
    ("set `data.path=ROOT/train`", "set `data=ROOT/train`"),
    ("`data.image_size=7` is odd", "`data.image_size=7` is odd"),
  ],
)
def test_an_error_names_the_argument_that_was_given(message, said, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "photos").mkdir()
  with pytest.raises(UserError) as error, naming_data("photos"):
    raise UserError(message.format(path=tmp_path / "photos"))
  assert str(error.value) == said


def test_a_damaged_archive_is_named_by_its_argument(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "photos.zip").write_bytes(b"no archive")
  with pytest.raises(UserError, match=r"^`data=photos\.zip`: this archive cannot be read"):
    find_data("photos.zip")


def test_pictures_of_one_size_have_no_range():
  _, one = own_data.choose_size(seen((1, 9)), "cpu")
  _, more = own_data.choose_size(seen((9, 9), (12, 12)), "cpu")
  assert one.startswith("the shorter side is always 1 pixel,")
  assert more.startswith("shorter sides are 9 to 12 pixels,")


def test_data_that_have_moved_name_the_run_to_go_on_with(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs/photos").mkdir(parents=True)
  with pytest.raises(UserError) as error:
    folder_for_data("./photos")
  assert "runs/photos" not in str(error.value)
  (tmp_path / "runs/photos" / own_data.CHOSEN).write_text("{}")
  with pytest.raises(UserError, match=r"go on with `data=NEW_PLACE` `workdir=runs/photos`"):
    folder_for_data("./photos")


def test_a_link_that_leads_nowhere_is_called_one(tmp_path):
  (tmp_path / "photos").symlink_to("nowhere")
  with pytest.raises(UserError, match="is a link that leads nowhere"):
    find_data(f"{tmp_path}/photos")


def test_a_missing_library_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(UserError, match=r"pip install 'diffusion_jax\[hf\]'"):
    own_data.choose_config("hf:ylecun/mnist", "cpu", 1)


class TestFinding:
  def test_files_and_folders(self, photos, tmp_path):
    assert find_data(str(photos)) == {"name": "folder", "path": str(photos)}
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))
    assert find_data(f"{tmp_path}/a.npz")["name"] == "arrays"
    assert find_data("digits") == {"name": "digits"}
    assert find_data("cifar10") == {"name": "tfds", "dataset": "cifar10"}

  @pytest.mark.parametrize(
    ("text", "message"),
    [
      ("", "`data=` is empty; give a folder"),
      ("hf:", "`data=hf:` names no data set; write hf:NAME"),
      ("cifar1O", "no such folder, file or data set. Did you mean 'cifar10'?"),
      ("hdfs://bucket/x", "addresses are not supported"),
      ("./nowhere", "no such folder, file or data set. Give a folder"),
    ],
  )
  def test_nothing_there(self, text, message):
    with pytest.raises(UserError) as error:
      find_data(text)
    assert message in str(error.value)

  def test_other_files(self, tmp_path):
    for name, message in (("a.py", "write `config="), ("a.csv", r"a \.csv is no data set")):
      (tmp_path / name).touch()
      with pytest.raises(UserError, match=message):
        find_data(f"{tmp_path}/{name}")

  @pytest.mark.parametrize(
    ("text", "name"),
    [
      ("photos/", "photos"),
      ("a b/photos.tar.gz", "photos"),
      ("x/[my] set.zip", "my_set"),
      ("小狗", "小狗"),
    ],
  )
  def test_names_of_runs(self, text, name):
    assert name_of_data(text, {"path": text}) == name
    assert name_of_data("imagenet_resized/64x64:0.1", {}) == "imagenet_resized_64x64_0.1"
    assert folder_for_data("digits") == Path("runs/digits")


def test_unlabelled_arrays_hold_out_a_part(tmp_path):
  np.savez(tmp_path / "a.npz", RNG.integers(0, 256, (40, 8, 8), np.uint8))
  chosen = own_data.choose_config(f"{tmp_path}/a.npz", "cpu", 1)
  data = build_experiment(chosen.raw).data
  assert (len(data.load("train")), len(data.load("test"))) == (36, 4)
  both = np.concatenate(
    [data.load(s).gather(np.arange(n))[0] for s, n in (("train", 36), ("test", 4))]
  )
  assert len(np.unique(both.reshape(40, -1), axis=0)) == 40


def test_the_table_of_classes(photos):
  save(photos / "小狗" / "x.png")
  data = build_experiment(own_data.choose_config(str(photos), "cpu", 1).raw).data
  table = own_data.class_table(data.load("train"), data.load("test"))
  lines = table.splitlines()
  assert lines[0] == "  class  training  held out"
  assert [line.split()[0] for line in lines[1:]] == ["a", "b", "小狗"]
  assert sum(int(n) for line in lines[1:] for n in line.split()[1:]) == 31
