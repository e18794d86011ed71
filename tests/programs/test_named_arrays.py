"""A named array of the data, from training to samples, edits and figures."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

import diffusion_jax as dj
from diffusion_jax import edit, evaluate, sample, train

pytestmark = pytest.mark.costly

FLAGS = [
  *tiny.TINY, "--config.data.name=arrays", "--config.data.fields=code",
  "--config.generative.conditional=false", "--config.generative.fields=code",
  "--config.generative.dropped=code", "--config.generative.prediction=x0",
  "--config.guidance.weight=2",
  "--config.logging.tensorboard=false", "--config.training.num_steps=300",
  "--config.optimizer.learning_rate=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Images that are black or white, as their code is -1 or 1."""
  code = np.resize([-1.0, 1.0], (64, 1)).astype(np.float32)
  images = np.broadcast_to(127.5 * (code[:, :, None, None] + 1), (64, 8, 8, 1)).astype(np.uint8)
  arrays = {"train_images": images, "train_code": code, "test_images": images, "test_code": code}
  path = tmp_path_factory.mktemp("data") / "data.npz"
  np.savez(path, **arrays)
  return path


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
  """A run that has learned the colour of a code, as far as it needs to be told."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  train.main([*FLAGS, f"--config.data.path={data}", f"--workdir={workdir}"])
  return workdir


def test_samples_have_the_colour_of_their_array(workdir, tmp_path, call):
  code, _, err = call(sample.main, f"--workdir={workdir}", "--num=16", f"--out={tmp_path}/x.npz")
  assert code == 0, err
  mean = np.load(tmp_path / "x.npz")["images"].mean((1, 2, 3))
  assert mean[1::2].mean() - mean[0::2].mean() > 50  # black and white, as far as it has learned
  more = ["--features=none", "--inception=none", "--config.eval.likelihoods=vlb"]
  code, _, err = call(evaluate.main, f"--workdir={workdir}", *more, f"--out={tmp_path}/eval")
  assert code == 0, err
  (path,) = (tmp_path / "eval").rglob("metrics.json")
  assert json.loads(path.read_text())["likelihoods"]["vlb"]["bits_per_dim"] > 0


def test_a_run_is_given_arrays_or_takes_those_of_the_held_out_images(workdir, tmp_path, call):
  run = dj.load_run(workdir)
  own = run.sample(16, fields={"code": [[1.0], [-1.0]]}).mean((1, 2, 3))
  assert own[0::2].mean() - own[1::2].mean() > 50
  call(sample.main, f"--workdir={workdir}", "--num=4", f"--out={tmp_path}/x.npz")
  np.testing.assert_array_equal(run.sample(4), np.load(tmp_path / "x.npz")["images"])
  assert (run.sample(4, fields={"code": [1.0]}) != run.sample(4, fields={})).any()
  with pytest.raises(dj.UserError, match=r"^fields\['code'\] has shape \[2\]; it must be \[N, 1\]"):
    run.sample(2, fields={"code": [1.0, 2.0]})
  xt, t = np.zeros((2, 8, 8, 1), np.float32), np.float32([0.9, 0.9])
  means = [run.denoise(xt, t, dj.Condition(fields={"code": np.full((2, 1), c, "f4")})).mean()
           for c in (-1, 1)]  # fmt: skip
  assert means[1] - means[0] > 0.5
  zeros = dj.Condition(fields={"code": np.zeros((2, 1), np.float32)})
  np.testing.assert_array_equal(run.denoise(xt, t), run.denoise(xt, t, zeros))
  with pytest.raises(dj.UserError, match="'text' is no named array of this model; it takes code"):
    run.denoise(xt, t, dj.Condition(fields={"text": xt}))


def test_edited_images_are_given_their_own_array(workdir, tmp_path, call):
  """Grey images become darker or lighter with their code; a folder of pictures has none."""
  grey, code = np.full((2, 8, 8, 1), 128, np.uint8), np.float32([[-1], [1]])
  np.savez(tmp_path / "mine.npz", images=grey, code=code)
  flags = [f"--workdir={workdir}", f"--out={tmp_path}/grid.png", "--inpaint=center", "--num=2"]
  failed, _, err = call(edit.main, *flags, f"--images={tmp_path}/mine.npz")
  assert not failed, err
  grid = np.asarray(Image.open(tmp_path / "grid.png"))
  dark, light = (grid[70:102, 2 + 34 * c : 34 + 34 * c].mean() for c in (0, 1))
  assert light - dark > 10
  assert call(edit.main, *flags)[0] == 0  # the held-out images, with their own
  (tmp_path / "folder").mkdir()
  for number in range(2):
    Image.fromarray(grey[number, ..., 0]).save(tmp_path / f"folder/{number}.png")
  failed, _, err = call(edit.main, *flags, f"--images={tmp_path}/folder")
  assert failed == 2
  assert "this model needs the named arrays code of each image" in err
  assert err.count("\n") == 1


def test_a_network_without_named_arrays_is_refused_before_a_folder_is_made(data, tmp_path, call):
  flags = [*FLAGS, f"--config.data.path={data}", f"--workdir={tmp_path}/run"]
  code, _, err = call(train.main, *flags, "--config.model.name=dit", "--config.model.heads=2")
  assert code == 2
  assert "needs a network that takes fields, and DiT takes label" in err
  assert not (tmp_path / "run").exists()
