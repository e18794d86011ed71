"""The folder of latents: what is written is read back, and every damage has its line."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from diffusion_jax.data import Arrays, Digits, Latents, TrainStream, fingerprint, full_pass
from diffusion_jax.data.latents import Encoded, write_latents
from diffusion_jax.data.unfinished import (
  check_latents_out,
  left_encoding,
  part_folder,
  read_progress,
  write_progress,
)
from diffusion_jax.types import UserError

CONFIG = {
  "autoencoder": {"name": "conv_vae", "multipliers": (1, 2), "channels": 32, "dtype": "float32"},
  "decoder": {"name": "gaussian", "std": None},
}


def encode(source, first=0):
  """Mean: four pixels of the image; log-variance: minus a tenth of the next four."""
  for batch in full_pass(source, 256, None, first):
    real = batch.mask > 0
    pixels = batch.image.reshape(len(batch.image), -1).astype(np.float32)
    mean, log_var = (p.reshape(-1, 2, 1, 2) for p in (pixels[:, 20:24], -pixels[:, 24:28] / 10))
    yield np.concatenate([mean, log_var], -1)[real], batch.label[real]


def encoded(**changes):
  made = Encoded(
    sources={split: Digits().load(split) for split in ("train", "test")},
    encode=encode,
    shape=(2, 1, 4),
    weights=np.arange(5, dtype=np.float32),
    image_source={"name": "digits", "flip": False},
    autoencoder=CONFIG,
    made_from={"step": 3},
  )
  return made._replace(**changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  out = tmp_path_factory.mktemp("latents") / "digits"
  return out, write_latents(out, encoded())


@pytest.fixture
def copy(made, tmp_path):
  return shutil.copytree(made[0], tmp_path / "copy")


def test_every_image_has_its_latents_once_and_in_order(made):
  source, images = Latents(str(made[0])), Digits().load("train")
  latents = source.load_latents("train", CONFIG)
  assert len(latents) == len(images) == 1500
  assert latents.spec[:5] == (2, 1, 4, None, 10)
  found, labels = latents.gather(np.arange(1500))
  expected = np.concatenate([stats for stats, _ in encode(images)])
  assert found.dtype == np.float32
  assert found.tobytes() == expected.tobytes()
  assert (labels == images.gather(np.arange(1500))[1]).all()


def test_it_is_the_image_set_itself_to_others(made):
  source = Latents(str(made[0]))
  for split in ("train", "test"):
    assert source.has_split(split)
    assert fingerprint(source.load(split)) == fingerprint(Digits().load(split))
  assert not source.has_split("valid")


def test_times_the_scale_the_draws_have_unit_deviation(made):
  out, scale = made
  stats, _ = Latents(str(out)).load_latents("train", CONFIG).gather(np.arange(1500))
  mean, log_var = np.split(np.float64(stats), 2, axis=-1)
  noise = np.random.default_rng(0).normal(size=(200, *mean.shape))
  z = scale * (mean + np.exp(log_var / 2) * noise)
  assert abs(z.std() - 1) < 5e-3
  stored = Latents(str(out)).autoencoder()
  assert stored.scale == scale
  assert stored.weights.tolist() == [0, 1, 2, 3, 4]


def test_a_published_scale_is_stored_in_place_of_the_measured_one(tmp_path):
  assert write_latents(tmp_path / "given", encoded(scale=0.18215)) == 0.18215
  assert Latents(str(tmp_path / "given")).autoencoder().scale == 0.18215


def test_encoding_again_gives_the_same_bytes(made, tmp_path):
  write_latents(tmp_path / "again", encoded())
  for file in made[0].iterdir():
    assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_processes_read_their_own_rows(made):
  latents = Latents(str(made[0])).load_latents("train", CONFIG)
  whole = TrainStream(latents, 8, seed=1).batch(3)
  part = TrainStream(latents, 8, seed=1, rows=np.asarray([2, 5])).batch(3)
  assert whole.image[[2, 5]].tobytes() == part.image.tobytes()
  assert whole.index[[2, 5]].tolist() == part.index.tolist()


def test_a_moved_folder_is_read(copy):
  moved = copy.rename(copy.with_name("moved"))
  assert len(Latents(str(moved)).load_latents("test", CONFIG)) == 297


def line(function):
  """The one line of the error that a function raises."""
  with pytest.raises(UserError) as raised:
    function()
  assert "\n" not in str(raised.value)
  return str(raised.value)


def read(folder, config=CONFIG):
  source = Latents(str(folder))
  source.load("train")
  return source.load_latents("train", config)


def spoil(file):
  data = bytearray(file.read_bytes())
  data[-3] ^= 1
  file.write_bytes(data)


@pytest.mark.parametrize("name", ["train.npy", "train_labels.npy", "autoencoder.npy"])
def test_a_flipped_bit_is_found(copy, name):
  spoil(copy / name)
  assert f"{name} is damaged" in line(lambda: read(copy))
  (copy / name).unlink()
  assert f"{name} is missing" in line(lambda: read(copy))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scale": 1.0}'])
def test_a_damaged_manifest_is_told(copy, text):
  (copy / "latents.json").write_text(text)
  assert "latents.json is damaged" in line(lambda: read(copy))


def test_a_changed_manifest_is_told(copy):
  manifest = json.loads((copy / "latents.json").read_text())
  (copy / "latents.json").write_text(json.dumps(manifest | {"scale": 2.0}))
  assert "its hash does not hold" in line(lambda: read(copy))


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_a_missing_folder_says_how_to_make_it(path):
  assert "python -m diffusion_jax.encode" in line(lambda: Latents(path).load("train"))


def test_a_field_that_the_folder_lacks_is_not_free(made):
  """Folders of older versions do not say how many groups; another number is another network."""
  config = {**CONFIG, "autoencoder": {**CONFIG["autoencoder"], "norm_groups": 16}}
  assert "set `autoencoder.norm_groups=none`" in line(lambda: read(made[0], config))
  config["autoencoder"]["norm_groups"] = None
  assert len(read(made[0], config)) > 0


def test_another_autoencoder_is_refused_with_the_field(made):
  other = {**CONFIG, "autoencoder": CONFIG["autoencoder"] | {"multipliers": (1, 2, 2)}}
  found = line(lambda: read(made[0], other))
  assert "set `autoencoder.multipliers=1,2`" in found
  other = {**CONFIG, "autoencoder": CONFIG["autoencoder"] | {"dtype": "bfloat16"}}
  assert len(read(made[0], other)) == 1500  # how it computes is not what it is


def test_other_images_are_refused(copy, monkeypatch):
  def half(self, split):
    source = original(self, split)
    source._images = source._images // 2
    return source

  original = Digits.load
  monkeypatch.setattr(Digits, "load", half)
  assert "made from other images" in line(lambda: Latents(str(copy)).load("train"))


def test_images_that_have_moved_are_found_by_data_dir(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 17, (20, 8, 8, 1)).astype(np.uint8)
  np.savez(tmp_path / "a.npz", train_images=images)
  section = {"name": "arrays", "path": str(tmp_path / "a.npz"), "num_levels": 17, "flip": False}
  source = Arrays(section["path"], 17).load("train")
  write_latents(tmp_path / "out", encoded(sources={"train": source}, image_source=section))
  (tmp_path / "a.npz").rename(tmp_path / "b.npz")
  assert "no such file" in line(lambda: Latents(str(tmp_path / "out")).load("train"))
  moved = Latents(str(tmp_path / "out"), str(tmp_path / "b.npz"))
  assert len(moved.load("train")) == 20
  assert "has no test split" in line(lambda: moved.load("test"))


def test_data_dir_is_refused_where_the_images_have_no_files(made):
  assert "leave it out" in line(lambda: Latents(str(made[0]), "elsewhere").load("train"))


def test_a_folder_with_something_in_it_is_kept(made, tmp_path):
  assert "already exists" in line(lambda: check_latents_out(made[0]))
  (tmp_path / "file").touch()
  assert "already exists" in line(lambda: check_latents_out(tmp_path / "file"))
  assert "cannot be written" in line(lambda: check_latents_out(tmp_path / "file" / "below"))


@pytest.mark.parametrize("is_link", [False, True])
def test_what_lies_in_the_way_of_the_part_is_one_line(made, tmp_path, is_link):
  part = part_folder(tmp_path / "out")
  part.symlink_to(made[0]) if is_link else part.touch()
  assert "out.part is in the way; delete it" in line(lambda: check_latents_out(tmp_path / "out"))
  part.unlink()
  check_latents_out(tmp_path / "out")


def test_what_fails_midway_leaves_nothing(tmp_path):
  def broken(source, first=0):
    yield from encode(source)
    raise RuntimeError

  with pytest.raises(RuntimeError):
    write_latents(tmp_path / "out", encoded(encode=broken))
  assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path):
  victim = tmp_path / "victim"
  victim.mkdir()
  (victim / "train.npy").write_text("precious")
  (tmp_path / ".out.part").symlink_to(victim)
  write_latents(tmp_path / "out", encoded())
  assert [(p.name, p.read_text()) for p in victim.iterdir()] == [("train.npy", "precious")]
  assert not (tmp_path / "out").is_symlink()
  assert not (tmp_path / ".out.part").is_symlink()


class Stopped(Exception):
  pass


def test_cut_off_anywhere_it_goes_on_to_the_same_folder(made, tmp_path, capsys):
  """After each batch: what was encoded is not encoded again, and the bytes are the same."""
  begun = []

  def cut(source, first=0):
    for number in range(first, len(source), 256):
      begun.append((source.name, number))
      if len(begun) % 3 == 0:
        raise Stopped
      yield next(encode(source, number))

  for _ in range(4):
    with contextlib.suppress(Stopped):
      write_latents(tmp_path / "out", encoded(encode=cut), stopped=Stopped)
  assert len(set(begun)) == 6 + 2  # batches of the training and of the test split
  assert len(begun) == 8 + 3  # each cut costs the batch that it came in
  for file in made[0].iterdir():
    assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
  assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in made[0].iterdir()}
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
  assert "continuing after 1,024 images" in capsys.readouterr().out


def test_an_encoding_of_other_weights_is_not_gone_on_with(made, tmp_path, capsys):
  def cut(source, first=0):
    yield from itertools.islice(encode(source), 2)
    raise Stopped

  with pytest.raises(Stopped):
    write_latents(tmp_path / "out", encoded(encode=cut), stopped=Stopped)
  assert left_encoding(tmp_path / "out", {}) == {"step": 3}
  other = encoded(weights=np.arange(1, 6, dtype=np.float32))
  write_latents(tmp_path / "out", other)
  assert "made from other weights or images: starting over" in capsys.readouterr().out
  for name in ("train.npy", "test.npy", "test_labels.npy"):
    assert (tmp_path / "out" / name).read_bytes() == (made[0] / name).read_bytes()


@pytest.mark.parametrize(("first", "second"), [(2, None), (None, 2)])
def test_another_command_neither_goes_on_with_a_part_nor_deletes_it(tmp_path, first, second):
  def cut(source, first=0):
    yield from itertools.islice(encode(source), 2)
    raise Stopped

  asked, out = {"step": first, "ema": None}, tmp_path / "out"
  with pytest.raises(Stopped):
    write_latents(out, encoded(encode=cut, asked=asked), stopped=Stopped)
  said = line(lambda: left_encoding(out, {**asked, "step": second}))
  assert f"of other latents there (step: {first} -> {second}); repeat that command" in said
  assert left_encoding(out, asked) == {"step": 3}
  write_progress(part_folder(out), read_progress(part_folder(out))["facts"], {})
  assert left_encoding(out, {**asked, "step": second}) is None  # nothing would be lost


def test_latents_that_are_not_finite_are_refused(tmp_path):
  def infinite(source, first=0):
    for stats, labels in encode(source):
      yield np.full_like(stats, np.inf), labels

  assert "not finite" in line(lambda: write_latents(tmp_path / "out", encoded(encode=infinite)))
  assert list(tmp_path.iterdir()) == []


def test_there_is_no_field_for_mirrored_images():
  assert [f.name for f in dataclasses.fields(Latents)] == ["path", "data_dir"]
  assert Latents().flip is False
