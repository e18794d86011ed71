"""A named array of the data, from training to samples and figures."""

import json

import numpy as np
import pytest
import tiny

from diffusion_jax import evaluate, sample, train

pytestmark = pytest.mark.costly

FLAGS = [
  *tiny.TINY, "--config.data.name=arrays", "--config.data.fields=code",
  "--config.generative.conditional=false", "--config.generative.fields=code",
  "--config.generative.dropped=code", "--config.generative.prediction=x0",
  "--config.guidance.weight=2",
  "--config.logging.tensorboard=false", "--config.training.num_steps=300",
  "--config.optimizer.learning_rate=0.01",
]  # fmt: skip


@pytest.fixture
def data(tmp_path):
  """Images that are black or white, as their code is -1 or 1."""
  code = np.resize([-1.0, 1.0], (64, 1)).astype(np.float32)
  images = np.broadcast_to(127.5 * (code[:, :, None, None] + 1), (64, 8, 8, 1)).astype(np.uint8)
  arrays = {"train_images": images, "train_code": code, "test_images": images, "test_code": code}
  np.savez(tmp_path / "data.npz", **arrays)
  return tmp_path / "data.npz"


def test_samples_have_the_colour_of_their_array(data, tmp_path, call):
  flags = [*FLAGS, f"--config.data.path={data}", f"--workdir={tmp_path}/run"]
  code, _, err = call(train.main, *flags)
  assert code == 0, err
  code, _, err = call(
    sample.main, f"--workdir={tmp_path}/run", "--num=16", f"--out={tmp_path}/x.npz"
  )
  assert code == 0, err
  mean = np.load(tmp_path / "x.npz")["images"].mean((1, 2, 3))
  assert mean[1::2].mean() - mean[0::2].mean() > 50  # black and white, as far as it has learned
  more = ["--features=none", "--inception=none", "--config.eval.likelihoods=vlb"]
  code, _, err = call(evaluate.main, f"--workdir={tmp_path}/run", *more, f"--out={tmp_path}/eval")
  assert code == 0, err
  (path,) = (tmp_path / "eval").rglob("metrics.json")
  assert json.loads(path.read_text())["likelihoods"]["vlb"]["bits_per_dim"] > 0


def test_a_network_without_named_arrays_is_refused_before_a_folder_is_made(data, tmp_path, call):
  flags = [*FLAGS, f"--config.data.path={data}", f"--workdir={tmp_path}/run"]
  code, _, err = call(train.main, *flags, "--config.model.name=dit", "--config.model.heads=2")
  assert code == 2
  assert "needs a network that takes fields, and DiT takes label" in err
  assert not (tmp_path / "run").exists()
