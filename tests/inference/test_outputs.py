"""Images written batch by batch: bounded memory, and a kill that costs one batch."""

import dataclasses
import gc
import json
import tracemalloc
import weakref

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core import files
from diffusion_jax.core.picture_grid import image_grid, label_captions
from diffusion_jax.data import Arrays, load_pictures
from diffusion_jax.inference import outputs
from diffusion_jax.types import UserError

FACTS = {"asked": {"seed": 0}, "step": 3, "weights": "w"}


def picture(index, side=8):
  """Image i is a function of i alone."""
  return np.stack(
    [np.random.default_rng(i).integers(0, 256, (side, 6, 3), np.uint8) for i in index]
  )


@dataclasses.dataclass
class Drawer:
  """Draws batches of `size`, and is cut off at the one of number `stop`.

  Attributes:
    calls: first images of the batches that it drew.
    alive, most: arrays of batches that are alive, and the most there were at one time.
  """

  size: int = 4
  stop: int = -1
  side: int = 8
  calls: list = dataclasses.field(default_factory=list)
  alive: int = 0
  most: int = 0

  def __call__(self, first):
    if len(self.calls) == self.stop:
      raise KeyboardInterrupt
    self.calls.append(first)
    images = picture(range(first, first + self.size), self.side)
    self.alive += 1
    self.most = max(self.most, self.alive)
    weakref.finalize(images, self.gone)
    return {"images": images, "labels": np.arange(first, first + self.size) % 3}

  def gone(self):
    self.alive -= 1


def draw(out, num, drawer, facts=FACTS, names=()):
  chunks = outputs.make(out, facts, num, drawer.size, drawer, "drawing")
  outputs.finish(out, chunks, num, drawer.size, 5, names)
  return drawer


def content(out):
  files = [out] if out.is_file() else sorted(out.iterdir())
  return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["a.npz", "a.png", "folder"])
def test_cut_off_anywhere_the_same_command_ends_bit_for_bit_the_same(tmp_path, name):
  (tmp_path / "straight").mkdir()
  (tmp_path / "cut").mkdir()
  straight, cut = tmp_path / "straight" / name, tmp_path / "cut" / name
  assert draw(straight, 14, Drawer()).calls == [0, 4, 8, 12]
  for stop in (0, 2, 1):
    with pytest.raises(KeyboardInterrupt):
      draw(cut, 14, Drawer(stop=stop))
    assert not cut.is_file()
  assert draw(cut, 14, Drawer()).calls == [12]
  assert content(cut) == content(straight)
  assert {p.name for p in (tmp_path / "cut").iterdir()} == {name}  # nothing is left behind


def test_a_kill_while_the_file_is_put_together_draws_nothing_again(tmp_path, monkeypatch):
  for name, owner, part in (
    ("a.npz", outputs, "write_npz"),
    ("a.png", files, "write_png"),
    ("b", files, "write_png"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, part, lambda *args: 1 / 0)
      with pytest.raises(ZeroDivisionError):
        draw(tmp_path / name, 6, Drawer())
    assert draw(tmp_path / name, 6, Drawer()).calls == []


def test_the_files_hold_every_image_once_and_in_order(tmp_path):
  expected = picture(range(10))
  for name in ("a.npz", "a.png", "folder"):
    draw(tmp_path / name, 10, Drawer())
  with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
    assert set(file.files) == {"images", "labels"}
    np.testing.assert_array_equal(file["images"], expected)
    np.testing.assert_array_equal(file["labels"], np.arange(10) % 3)
    assert (file["images"].dtype, file["labels"].dtype) == (np.uint8, np.int32)
  for i in range(10):
    np.testing.assert_array_equal(Image.open(tmp_path / f"folder/{i:06d}.png"), expected[i])
  captions = [str(i % 3) for i in range(10)]
  grid = image_grid(expected, 5, captions)
  np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), grid)


def test_the_files_name_the_classes(tmp_path):
  names = ["cat", "a/b", "K\u00e4se"]
  for name in ("a.npz", "a.png", "folder"):
    draw(tmp_path / name, 5, Drawer(), names=names)
  with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
    assert file["class_names"].tolist() == names
  assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
    "000000_cat.png", "000001_a_b.png", "000002_K\u00e4se.png", "000003_cat.png", "000004_a_b.png",
  ]  # fmt: skip
  captions = label_captions([0, 1, 2, 0, 1], names)
  grid = image_grid(picture(range(5)), 5, captions)
  np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), grid)
  again = Arrays(path=str(tmp_path / "a.npz")).load("train")
  assert list(again.about.classes) == names
  assert again.about.notes == []
  assert len(load_pictures(tmp_path / "folder", "--samples")) == 5


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_no_more_than_a_batch_is_held(tmp_path, name):
  """As many arrays alive, and as much memory at the peak, for 40 batches as for 4."""
  peaks = []
  for num in (4, 16, 160):  # the first to have loaded whatever is loaded once
    gc.collect()
    drawer = Drawer(side=1000)
    tracemalloc.start()
    draw(tmp_path / f"{num}{name}", num, drawer)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert drawer.most <= 2
  assert peaks[2] < peaks[1] + 144 * 1000 * 6 * 3 / 10  # a tenth of the images there are more


def test_a_part_of_other_images_is_never_mixed_in(tmp_path):
  out = tmp_path / "a.npz"
  with pytest.raises(KeyboardInterrupt):
    draw(out, 10, Drawer(stop=2))
  assert outputs.left_over(out, {"seed": 0}) == FACTS
  with pytest.raises(UserError, match=r"part of other images there \(seed: 0 -> 1\); repeat that"):
    outputs.left_over(out, {"seed": 1})
  other = {**FACTS, "weights": "v"}  # the checkpoint is gone: the same command, from a newer one
  assert draw(out, 10, Drawer(), other).calls == [0, 4, 8]


def test_what_is_damaged_or_of_no_use_stops_nothing(tmp_path, capsys):
  out = tmp_path / "a.npz"
  assert outputs.left_over(out, {"seed": 1}) is None
  with pytest.raises(KeyboardInterrupt):
    draw(out, 10, Drawer(stop=2))
  (outputs.parts_folder(out) / "000000.npz").write_bytes(b"half")
  assert draw(out, 10, Drawer()).calls == [0, 8]
  assert "is damaged: computed again" in capsys.readouterr().out
  with pytest.raises(KeyboardInterrupt):
    draw(tmp_path / "b.npz", 10, Drawer(stop=0))
  assert outputs.left_over(tmp_path / "b.npz", {"seed": 1}) is None  # nothing would be lost


def test_a_refusal_leaves_nothing_behind(tmp_path):
  def refuse(first):
    raise UserError("4 of 4 images are not finite")

  with pytest.raises(UserError, match="not finite"):
    outputs.make(tmp_path / "a.npz", FACTS, 4, 4, refuse, "drawing")
  assert not list(tmp_path.iterdir())


def test_an_unfinished_folder_is_not_measured_as_if_it_were_whole(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    draw(tmp_path / "a", 10, Drawer(stop=1))
  outputs.check_out(tmp_path / "a")
  with pytest.raises(UserError, match="was cut off; start it again"):
    load_pictures(tmp_path / "a", "--samples")


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("name", ["a.npz", "a.png", "folder"])
def test_what_lies_in_the_way_of_the_parts_is_one_line(tmp_path, name, is_link):
  parts = outputs.parts_folder(tmp_path / name)
  parts.parent.mkdir(exist_ok=True)
  parts.symlink_to(tmp_path / "nowhere") if is_link else parts.touch()
  with pytest.raises(UserError, match=r"parts is in the way; delete it$"):
    outputs.check_out(tmp_path / name)
  parts.unlink()
  outputs.check_out(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "folder"])
def test_a_kill_while_the_parts_are_deleted_leaves_a_finished_output(tmp_path, monkeypatch, name):
  """Facts without batches would be another command's to take, batches without facts nobody's."""
  delete = outputs.shutil.rmtree

  def killed(folder, **options):
    if any(folder.glob("[0-9]*.npz")):
      (folder / "facts.json").unlink()
      raise KeyboardInterrupt
    delete(folder, **options)

  with monkeypatch.context() as patch:
    patch.setattr(outputs.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      draw(tmp_path / name, 10, Drawer())
  assert not outputs.parts_folder(tmp_path / name).exists()
  if name == "folder":
    assert len(load_pictures(tmp_path / name, "--samples")) == 10
    with pytest.raises(UserError, match="is not empty"):
      outputs.check_out(tmp_path / name)
  else:
    draw(tmp_path / name, 10, Drawer())
    assert [p.name for p in tmp_path.iterdir()] == [name]  # the next command clears up


def test_facts_are_written_for_people(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    draw(tmp_path / "a.npz", 10, Drawer(stop=1))
  stored = json.loads((tmp_path / ".a.npz.parts/facts.json").read_text())
  assert stored == FACTS
