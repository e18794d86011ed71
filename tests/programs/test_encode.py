"""From autoencoder to latents to a diffusion model of them, by the programs that a user starts."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from diffusion_jax import encode, sample, train
from diffusion_jax.checkpoints import step_folders, store
from diffusion_jax.checkpoints.checksums import checksums
from diffusion_jax.data import Latents, latents, unfinished
from diffusion_jax.runs import signals
from diffusion_jax.runs.stored import load_experiment

pytestmark = pytest.mark.costly

SIZE = ["--config.data.num_images=64", "--config.data.image_size=8", "--config.data.channels=1"]
AUTOENCODER = [
  "--config=configs/autoencoder_digits.py", "--config.data.name=synthetic", *SIZE,
  "--config.model.channels=8", "--config.model.dropout=0", "--config.training.num_steps=6",
  "--config.training.batch_size=16", "--config.logging.sample_every_steps=none",
  "--config.logging.num_samples=8", "--config.logging.tensorboard=false",
]  # fmt: skip
LATENT = [
  "--config=configs/latent_digits.py", "--config.autoencoder.channels=8",
  "--config.autoencoder.dropout=0", *tiny.MODEL,
  "--config.optimizer.weight_decay=0.1", "--config.training.num_steps=8",
  "--config.training.batch_size=16", "--config.checkpoint.every_steps=4",
  "--config.logging.every_steps=1", "--config.logging.sample_every_steps=none",
  "--config.logging.num_samples=8", "--config.logging.tensorboard=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
  """An autoencoder's run, its latents, and a run on them."""
  folder = tmp_path_factory.mktemp("latent")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(request.config.rootpath)
    train.main([*AUTOENCODER, f"--workdir={folder / 'autoencoder'}"])
    encode.main([f"--workdir={folder / 'autoencoder'}", f"--out={folder / 'latents'}"])
    train.main([*LATENT, *where(folder)])
  return folder


def where(folder, run="run"):
  return [f"--config.data.path={folder / 'latents'}", f"--workdir={folder / run}"]


def one_line(err, *words):
  assert err.startswith("error: ")
  assert err.count("\n") == 1, err
  assert all(word in err for word in words), err


def state_of(workdir):
  """Every leaf of the last checkpoint by its name: what the checksums say."""
  return store.read_meta(workdir / "checkpoints")["leaves"]


def sections(folder):
  return json.loads((folder / "run" / "config.json").read_text())


def test_every_image_is_encoded_once_whatever_the_batch(folder, tmp_path):
  """The second folder is made 24 images at a time, over 8 devices, with padding."""
  encode.main([f"--workdir={folder / 'autoencoder'}", f"--out={tmp_path / 'b'}", "--batch_size=24"])
  for split, num in (("train", 64), ("test", 16)):
    one, two = (
      Latents(str(path)).load_latents(split, sections(folder))
      for path in (folder / "latents", tmp_path / "b")
    )
    assert len(one) == len(two) == num
    (first, labels), (second, others) = (s.gather(np.arange(num)) for s in (one, two))
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (labels == others).all()
    assert len({row.tobytes() for row in first}) == num


def test_the_program_is_deterministic(folder, tmp_path):
  encode.main([f"--workdir={folder / 'autoencoder'}", f"--out={tmp_path / 'again'}"])
  for file in (folder / "latents").iterdir():
    assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_part_of_another_command_is_refused_and_kept(folder, tmp_path, call, monkeypatch):
  """The checkpoint is the same; what was typed is not."""
  flags = [f"--workdir={folder / 'autoencoder'}", f"--out={tmp_path / 'a'}", "--batch_size=24"]
  with monkeypatch.context() as patch:
    patch.setattr(signals, "stop_here", stop_at(3))
    assert call(encode.main, *flags, "--step=6")[0] == 75
  part = unfinished.part_folder(tmp_path / "a")
  before = {file.name: file.read_bytes() for file in part.iterdir()}
  code, _, err = call(encode.main, *flags)
  assert code == 2
  one_line(err, "a part of other latents there (step: 6 -> None)")
  assert {file.name: file.read_bytes() for file in part.iterdir()} == before
  assert call(encode.main, *flags, "--step=6")[0] == 0
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


def stop_at(number):
  """Asks to stop at the call of that number."""
  calls = itertools.count(1)

  def stop():
    if next(calls) == number:
      raise signals.StoppedEarly("stopped")

  return stop


def test_a_checkpoint_holds_the_autoencoder_as_it_was(folder):
  """After training with weight decay, the weights and their average are the folder's."""
  leaves, stored = state_of(folder / "run"), Latents(str(folder / "latents")).autoencoder()
  weights = jax.numpy.asarray(stored.weights)
  expected = checksums({"weights": weights, "distance": jax.numpy.zeros_like(weights)})
  assert leaves["params/autoencoder"]["checksum"] == list(expected["weights"])
  assert leaves["offsets/ema/autoencoder"]["checksum"] == list(expected["distance"])


def test_a_run_that_was_cut_off_ends_bit_for_bit_where_a_straight_one_does(folder):
  """Stopped after 4 of 8 steps by deleting what came after, then continued."""
  whole, cut = folder / "run", folder / "cut"
  shutil.copytree(whole, cut)
  step_folders.delete_after(cut / "checkpoints", 4)
  (cut / "held_out.json").unlink()
  assert store.saved_steps(cut / "checkpoints") == [4]
  train.main([*LATENT, *where(folder, "cut")])
  assert state_of(cut) == state_of(whole)


def test_a_run_samples_and_reconstructs_alone(folder, tmp_path):
  """Moved, and with the latents gone: samples need nothing but the run's own folder."""
  shutil.copytree(folder / "run", tmp_path / "moved")
  flags = ["--num=8", "--config.sampler.steps=2"]
  made = {}
  for name, run, gone in (("here", folder / "run", False), ("there", tmp_path / "moved", True)):
    extra = [f"--config.data.path={tmp_path / 'nowhere'}"] * gone
    sample.main([f"--workdir={run}", f"--out={tmp_path / name}.npz", *flags, *extra])
    made[name] = np.load(tmp_path / f"{name}.npz")["images"]
  assert made["here"].shape == (8, 8, 8, 1)
  assert made["here"].tobytes() == made["there"].tobytes()
  assert made["here"].std() > 0


def test_other_latents_do_not_continue_a_run(folder, call, tmp_path):
  again = tmp_path / "again"
  shutil.copytree(folder / "run", again)
  shutil.copytree(folder / "latents", tmp_path / "latents")
  spoiled = np.load(tmp_path / "latents" / "train.npy") + 1
  replace(tmp_path / "latents", "train.npy", spoiled)
  flags = [*LATENT, f"--config.data.path={tmp_path / 'latents'}", f"--workdir={again}"]
  code, _, err = call(train.main, *flags, "--config.training.num_steps=9")
  assert code == 2
  one_line(err, "the data set changed", "latents of synthetic train")


def replace(folder, name, array):
  """Another array, with a manifest that fits it."""
  np.save(folder / name, array)
  manifest = latents._unseal(json.loads((folder / "latents.json").read_text()))
  manifest["files"][name] = latents._sha256(folder / name)
  (folder / "latents.json").write_text(json.dumps(latents._seal(manifest)))


def test_a_damaged_folder_is_one_line_before_the_run_is_touched(folder, call, tmp_path):
  spoiled = shutil.copytree(folder / "latents", tmp_path / "latents")
  data = bytearray((spoiled / "train.npy").read_bytes())
  data[-1] ^= 1
  (spoiled / "train.npy").write_bytes(data)
  code, _, err = call(train.main, *LATENT, f"--config.data.path={spoiled}",
                      f"--workdir={tmp_path / 'new'}")  # fmt: skip
  assert code == 2
  one_line(err, "train.npy is damaged")
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.data.path=nowhere"], ["no latents there", "diffusion_jax.encode"]),
    (["--config.autoencoder.channels=16"], ["--config.autoencoder.channels=8"]),
    (["--config.data.name=synthetic"], ["--config.data.name=latents"]),
    (["--config.sampler.clip=true"], ["--config.sampler.clip=false"]),
  ],
)
def test_what_does_not_fit_is_one_line(folder, call, tmp_path, flags, words):
  own = [f"--config.data.path={folder / 'latents'}"] * ("path" not in str(flags))
  own *= "data.name" not in str(flags)
  code, _, err = call(train.main, *LATENT, *own, *flags, f"--workdir={tmp_path / 'new'}")
  assert code == 2
  one_line(err, *words)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--batch_size=0"], ["must be at least 1"]),
    (["--step=last"], ["must be latest or a number"]),
    (["--step=5"], ["no such checkpoint", "6"]),
    (["--config.data.image_size=4"], ["the autoencoder takes"]),
  ],
)
def test_wrong_flags_are_one_line(folder, call, tmp_path, flags, words):
  flags = [f"--workdir={folder / 'autoencoder'}", f"--out={tmp_path / 'out'}", *flags]
  code, _, err = call(encode.main, *flags)
  assert code == 2
  one_line(err, *words)
  assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_one_line(folder, call):
  code, _, err = call(encode.main, f"--workdir={folder / 'autoencoder'}",
                      f"--out={folder / 'latents'}")  # fmt: skip
  assert code == 2
  one_line(err, "already exists")


def test_a_run_of_another_kind_is_one_line(folder, call, tmp_path):
  code, _, err = call(encode.main, f"--workdir={folder / 'run'}", f"--out={tmp_path / 'out'}")
  assert code == 2
  one_line(err, "no autoencoder with spatial latents", "--config=autoencoder_digits")


def test_the_two_configs_describe_one_autoencoder():
  autoencoder, latent = (
    load_experiment(f"configs/{name}_digits.py", []).to_dict() for name in ("autoencoder", "latent")
  )
  assert autoencoder["model"] == latent["autoencoder"]
  assert autoencoder["decoder"] == latent["decoder"]
