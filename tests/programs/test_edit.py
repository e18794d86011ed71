"""The editing program: what is given stays, what is hidden is filled in, ways go end to end."""

import os
import signal
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import edit
from diffusion_jax.core.picture_grid import LINE
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.generative import ModelBase
from diffusion_jax.inference import draw
from diffusion_jax.inference.masks import GREY, known_pixels
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.runs.stored import stored_config
from diffusion_jax.types import ImageSpec, UserError

pytestmark = pytest.mark.costly


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture
def cells(smoke_run, call, tmp_path):
  """The images of the grid that the program writes with these flags, 8x8 pixels each.

  `captioned`: the rows with the names of classes above them.
  """

  def cells(*flags, captioned=(0,)):
    out = tmp_path / "grid.png"
    code, _, err = call(edit.main, f"--workdir={smoke_run}", f"--out={out}", *flags)
    assert code == 0, err
    grid = np.asarray(Image.open(out))
    rows, columns = (grid.shape[0] - 2 - LINE * len(captioned)) // 34, (grid.shape[1] - 2) // 34
    tops = [2 + 34 * r + LINE * sum(c <= r for c in captioned) for r in range(rows)]
    image = lambda top, c: grid[top : top + 32 : 4, 2 + 34 * c : 34 + 34 * c : 4]  # noqa: E731
    return np.stack([[image(top, c) for c in range(columns)] for top in tops])

  return cells


@pytest.fixture(scope="module")
def held_out(smoke_run):
  """The pictures of the test split."""
  source = build_experiment(stored_config(smoke_run)).data.load("test")
  return as_pictures(draw.first_examples(source, 32).image, 256)[..., 0]


@pytest.mark.parametrize(
  ("what", "hidden"),
  [
    ("left", np.s_[:, :4]), ("right", np.s_[:, 4:]), ("top", np.s_[:4]), ("bottom", np.s_[4:]),
    ("center", np.s_[2:6, 2:6]),
  ],
)  # fmt: skip
def test_the_known_part_stays_and_the_rest_is_drawn(cells, held_out, what, hidden):
  given, shown, filled = cells(f"--inpaint={what}", "--num=3")
  np.testing.assert_array_equal(given, held_out[:3])
  is_known = np.ones((8, 8), bool)
  is_known[hidden] = False
  np.testing.assert_array_equal(shown[:, is_known], given[:, is_known])
  assert (shown[:, ~is_known] == GREY).all()
  np.testing.assert_array_equal(filled[:, is_known], given[:, is_known])
  assert (filled[:, ~is_known] != given[:, ~is_known]).mean() > 0.5


def test_a_picture_says_what_to_hide_and_the_seed_what_comes(cells, tmp_path):
  mask = np.zeros((8, 8), np.uint8)
  mask[3] = 255
  Image.fromarray(mask).save(tmp_path / "mask.png")
  given, _, first = cells(f"--inpaint={tmp_path}/mask.png", "--num=2")
  again = cells(f"--inpaint={tmp_path}/mask.png", "--num=2")[2]
  other = cells(f"--inpaint={tmp_path}/mask.png", "--num=2", "--seed=1")[2]
  np.testing.assert_array_equal(first, again)
  assert (first[:, 3] != other[:, 3]).any()
  np.testing.assert_array_equal(np.delete(first, 3, axis=1), np.delete(given, 3, axis=1))


def test_an_image_does_not_depend_on_its_batch_and_a_cut_costs_one(cells, smoke_run, call, tmp_path,
                                                                   monkeypatch):  # fmt: skip
  """Asked to stop in its second batch, the same command goes on to the same picture."""
  flags = ["--inpaint=left", "--num=3"]
  whole = cells(*flags)
  apart = cells(*flags, "--batch_size=1")
  assert np.abs(apart.astype(int) - whole).max() <= 1
  quantise, count = edit.to_uint8, iter(range(9))

  def asked_to_stop(images):
    if next(count) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return quantise(images)

  out = tmp_path / "cut.png"
  command = [f"--workdir={smoke_run}", f"--out={out}", *flags, "--batch_size=1"]
  with monkeypatch.context() as patch:
    patch.setattr(edit, "to_uint8", asked_to_stop)
    assert call(edit.main, *command)[0] == 75
  assert not out.exists()
  assert "of other images there (seed: 0 -> 1)" in call(edit.main, *command, "--seed=1")[2]
  assert call(edit.main, *command)[0] == 0
  assert out.read_bytes() == (tmp_path / "grid.png").read_bytes()


def test_a_way_leads_from_one_image_to_the_other(cells, held_out):
  """With many steps the first and last of many places are all but the images themselves."""
  flags = ["--interpolate=99", "--num=2", "--config.sampler.steps=100"]
  ways = cells(*flags, captioned=(0, 1)).astype(int)
  assert ways.shape[:2] == (2, 101)
  np.testing.assert_array_equal(ways[:, 0], held_out[0:4:2])
  np.testing.assert_array_equal(ways[:, -1], held_out[1:4:2])
  steps = np.abs(np.diff(ways, axis=1)).mean((2, 3))
  apart = np.abs(ways[:, 0] - ways[:, -1]).mean((1, 2))
  assert (steps.max(1) < 0.3 * apart).all()


def test_given_images_and_wrong_ones(cells, smoke_run, call, tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "mine.npz", images=images)
  given = cells("--inpaint=top", f"--images={tmp_path}/mine.npz", "--num=3", captioned=())[0]
  np.testing.assert_array_equal(given, images[..., 0])
  np.savez(tmp_path / "rgb.npz", images=np.repeat(images, 3, -1))  # grey, stored in colour
  again = cells("--inpaint=top", f"--images={tmp_path}/rgb.npz", "--num=3", captioned=())[0]
  np.testing.assert_array_equal(again, images[..., 0])
  np.savez(tmp_path / "big.npz", images=np.zeros((3, 9, 9, 1), np.uint8))
  flags = [f"--workdir={smoke_run}", f"--out={tmp_path}/x.png", "--inpaint=top"]
  for name, message in (
    ("big", "have shape (9, 9, 1), the model needs (8, 8, 1)"),
    ("mine", "--num=8 needs 8 images, there are 3: lower --num"),
  ):
    code, _, err = call(edit.main, *flags, f"--images={tmp_path}/{name}.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


WRONG = {
  "neither": ([], "give one of --inpaint=left and --interpolate=8"),
  "both": (["--inpaint=left", "--interpolate=2"], "give one of --inpaint=left"),
  "empty": (["--inpaint="], "--inpaint= is empty; must be left, right"),
  "part": (["--inpaint=middle"], "--inpaint=middle: must be left, right, top, bottom, center"),
  "places": (["--interpolate=0"], "--interpolate=0: must be at least 1"),
  "num": (["--inpaint=left", "--num=0"], "--num=0: must be at least 1"),
  "seed": (["--inpaint=left", "--seed=-1"], "--seed=-1: must be between"),
  "step": (["--inpaint=left", "--step=x"], "--step=x: must be latest or a number"),
  "out": (["--inpaint=left", "--out=a.npz"], "--out=a.npz: must be a name ending in .png"),
  "noise": (
    ["--interpolate=2", "--config.sampler.eta=1"],
    "draws noise, so that images have no one encoding; use --config.sampler.name=ddim",
  ),
}


def mask_of(width, height, path):
  """A .png of a few bytes that says it has so many pixels."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")))
  return str(path)


def test_masks_that_cannot_be_used_give_one_line(tmp_path, recwarn):
  """Empty, bombs of both sizes that Pillow knows, of other sizes, damaged, a folder."""
  spec = ImageSpec(8, 6, 1, 256, 0)
  (tmp_path / "text.png").write_text("no picture")
  wrong = {
    "": r"^--inpaint= is empty; must be left, .*, or a \.png of 6x8 pixels$",
    mask_of(
      60_000, 60_000, tmp_path / "a.png"
    ): r"of 6x8 pixels \(Image size \(3600000000 pixels\)",
    mask_of(
      10_000, 10_000, tmp_path / "b.png"
    ): r"has 10000x10000 pixels; must be .* of 6x8 pixels",
    mask_of(8, 6, tmp_path / "c.png"): r"has 8x6 pixels; must be left",
    mask_of(6, 8, tmp_path / "d.png"): r"of 6x8 pixels \(.*truncated",
    f"{tmp_path}/text.png": r"of 6x8 pixels \(no picture of a known",
    f"{tmp_path}": r"of 6x8 pixels \(.*[Dd]irectory",
    f"{tmp_path}/none.png": r"none\.png: must be left, .* of 6x8 pixels \(No such file",
  }
  for text, words in wrong.items():
    with pytest.raises(UserError, match=words) as raised:
      known_pixels(text, spec)
    assert "\n" not in str(raised.value)
  assert not recwarn.list


def test_a_sampler_that_chooses_its_steps_cannot_edit():
  model = ModelBase()
  with pytest.raises(UserError, match="and a sampler of fixed steps"):
    draw.make_inpaint(model, create_mesh(MeshShape()))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_flags_give_one_line_and_exit_code_2(name, smoke_run, call, tmp_path):
  flags, message = WRONG[name]
  code, _, err = call(edit.main, f"--workdir={smoke_run}", f"--out={tmp_path}/x.png", *flags)
  assert code == 2
  assert message in err
  assert err.count("\n") == 1
  assert not (tmp_path / "x.png").exists()
