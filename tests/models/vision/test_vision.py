"""DINOv2 and CLIP: their pictures, their names in published files, and how they are prepared."""

import hashlib

import jax
import numpy as np
import pytest
from PIL import Image
from torch_files import as_zip, contiguous
from vision_cases import (
  DEPTH,
  GRID,
  OUT,
  SIDE,
  WIDTH,
  clip_state,
  dinov2_state,
  hugging_face_state,
)

from diffusion_jax import prepare
from diffusion_jax.evaluation.sample_metrics import Protocol
from diffusion_jax.extractors import load_vision, optional_vision
from diffusion_jax.metrics import create_metrics
from diffusion_jax.models.vision import vision_weights
from diffusion_jax.models.vision.pillow_resize import center_square, pillow_weights, resize_bicubic
from diffusion_jax.models.vision.transformer import CLIP, DINOV2, embed, network_input
from diffusion_jax.models.vision.vision_keys import from_state, our_names, resized_positions
from diffusion_jax.types import UserError

SMALL = {"dinov2": DINOV2._replace(side=SIDE), "clip": CLIP._replace(side=SIDE)}


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (300, 200, 3)])
def test_pictures_are_resized_to_the_level_as_pillow_does(shape):
  images = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
  found = np.asarray(resize_bicubic(images, 56))[0]
  pillow = Image.fromarray(images[0].squeeze()).resize((56, 56), Image.Resampling.BICUBIC)
  expected = np.asarray(pillow).reshape(found.shape)
  assert np.abs(found - expected).max() <= 1  # a half may be rounded the other way
  assert (found == expected).mean() > 0.999


def test_the_weights_of_pixels_sum_to_one_and_keep_a_picture_of_the_right_size():
  np.testing.assert_allclose(pillow_weights(32, 224).sum(1), 1, atol=1e-6)
  np.testing.assert_array_equal(pillow_weights(224, 224), np.eye(224))


def test_the_middle_square():
  image = np.arange(2 * 5).reshape(1, 2, 5, 1)
  np.testing.assert_array_equal(center_square(image)[0, :, :, 0], [[1, 2], [6, 7]])


@pytest.mark.parametrize("recipe", [DINOV2, CLIP], ids=lambda r: r.name)
def test_the_input_is_standardised_by_channel_and_grey_is_colour(recipe):
  recipe = recipe._replace(side=4)
  grey = np.asarray(network_input(np.full((1, 8, 8, 1), 51, np.uint8), recipe))
  expected = (0.2 - np.float32(recipe.mean)) / np.float32(recipe.deviation)
  np.testing.assert_allclose(grey[0, 2, 2], expected, rtol=1e-5)
  with pytest.raises(UserError, match=f"1 or 3 channels, these have 4; .*--{recipe.name}=none"):
    network_input(np.zeros((1, 8, 8, 4), np.uint8), recipe)


def test_the_published_sizes():
  assert (DINOV2.side, CLIP.side) == (224, 336)
  assert DINOV2.mean == (0.485, 0.456, 0.406)


def test_the_names_of_every_file_lead_to_the_same_parameters():
  openai = clip_state()
  params = [
    from_state(our_names(state, SMALL["clip"]), SMALL["clip"], "the file")
    for state in (openai, hugging_face_state(openai))
  ]
  jax.tree.map(np.testing.assert_array_equal, *params)
  assert params[0]["projection"].shape == (WIDTH, OUT)
  assert params[0]["blocks"]["qkv"]["kernel"].shape == (DEPTH, WIDTH, 3 * WIDTH)
  np.testing.assert_array_equal(
    params[0]["blocks"]["inner"]["kernel"][1],
    openai["visual.transformer.resblocks.1.mlp.c_fc.weight"].T,
  )


def test_positions_of_dinov2_are_interpolated_to_the_grid():
  state = dinov2_state(grid=5)
  params = from_state(our_names(state, SMALL["dinov2"]), SMALL["dinov2"], "the file")
  assert params["positions"].shape == (GRID**2 + 1, WIDTH)
  np.testing.assert_array_equal(params["positions"][0], state["pos_embed"][0, 0])
  flat = np.ones((26, 2), np.float32)
  np.testing.assert_allclose(resized_positions(flat, 3), 1, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_the_shapes_of_the_published_networks(name):
  """ViT-L/14 by shapes alone: no program is compiled."""
  recipe = vision_weights.RECIPES[name]
  state = dinov2_state(depth=1) if name == "dinov2" else clip_state()
  params = from_state(our_names(state, SMALL[name]), SMALL[name], "the file")
  images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), np.float32)
  features = jax.eval_shape(lambda p, x: embed(p, x, recipe), params, images)
  assert features.shape == (2, WIDTH if name == "dinov2" else OUT)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"norm.weight": None}, r"1 are missing \(norm.weight\), and 0 are unknown"),
    ({"register_tokens": np.zeros((1, 4, WIDTH))}, r"1 are unknown \(register_tokens\)"),
    ({"norm.bias": np.zeros(3)}, r"norm.bias has shape \(3,\), expected \(128,\)"),
    ({"norm.bias": np.full(WIDTH, np.nan)}, "and finite values"),
    ({"patch_embed.proj.weight": None}, "holds no dinov2 vision transformer"),
  ],
)
def test_another_network_is_refused(change, message):
  state = {n: a for n, a in (dinov2_state() | change).items() if a is not None}
  with pytest.raises(UserError, match=message):
    from_state(our_names(state, SMALL["dinov2"]), SMALL["dinov2"], "a.pth")


@pytest.fixture
def file(tmp_path, monkeypatch):
  """A PyTorch file like DINOv2's, and an empty cache."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  path = tmp_path / "small.pth"
  path.write_bytes(as_zip(*contiguous(dinov2_state())))
  return path


def test_weights_are_prepared_and_found_again(file, call, monkeypatch):
  sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
  code, out, _ = call(prepare.main, "dinov2", str(file))
  assert code == 0
  assert (
    f"is not that of the published file, so its metrics are named fd_dinov2_{sha256[:8]}" in out
  )
  other = load_vision("dinov2")
  assert (other.name, other.stamp["published"]) == (f"dinov2_{sha256[:8]}", False)
  published = vision_weights.PublishedFile("url", 1, sha256)
  monkeypatch.setitem(vision_weights.PUBLISHED_FILES, "dinov2", published)
  found = load_vision("dinov2")
  assert (found.name, found.stamp["sha256"]) == ("dinov2", sha256)
  jax.tree.map(
    np.testing.assert_array_equal, found.params, vision_weights.load_vision_weights(DINOV2, file)[0]
  )
  fd, kd = create_metrics(("fid", "kid"))
  assert Protocol(found, "train", 50_000).name(fd) == "fd_dinov2"
  assert Protocol(found, "test", 10_000).name(kd) == "kd_dinov2_test_10k"
  assert "published file (its SHA-256 agrees)" in call(prepare.main, "dinov2", str(file))[1]


def test_without_weights_a_line_has_the_command_to_type(file):
  flags = {"dinov2": None, "clip": "none"}
  extractors, missing = optional_vision(flags, lambda load: load())
  assert extractors == []
  assert len(missing) == 1
  assert missing[0].endswith("run diffusion-jax prepare dinov2 FILE")
  with pytest.raises(UserError, match=r"there are no weights at a\.npz"):
    optional_vision({"dinov2": "a.npz", "clip": "none"}, lambda load: load())


def test_a_damaged_or_wrong_file_is_refused_before_anything_is_stored(file, call, tmp_path):
  code, _, err = call(prepare.main, "clip", str(file))
  assert code == 2
  assert "holds no clip vision transformer" in err
  assert not vision_weights.vision_path(CLIP).exists()
  code, _, err = call(prepare.main, "dinov2")
  assert code == 2
  assert "prepare dinov2 needs its file: run diffusion-jax prepare dinov2 FILE with https://" in err
  file.write_bytes(file.read_bytes()[:-200])
  code, _, err = call(prepare.main, "dinov2", str(file))
  assert (code, err.count("\n")) == (2, 1)
  assert "is no readable PyTorch state dict" in err
  whole = vision_weights.vision_path(DINOV2)
  whole.parent.mkdir(parents=True)
  np.savez(whole, facts=np.array("{}"))
  with pytest.raises(UserError, match="holds no weights of dinov2"):
    load_vision("dinov2")
