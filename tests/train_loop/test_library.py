"""Arguments of another type are refused by name, before anything is moved, read or compiled."""

import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.core.wording import one_line
from diffusion_jax.inference.run import folder_text
from diffusion_jax.metrics.feature_arrays import check_integers
from diffusion_jax.processes.denoiser import check_times
from diffusion_jax.train_loop.library import check_arguments, make_experiment

FEATURES = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((5, None, False), "^config=5: must be the name of a shipped config"),
    (([], None, False), r"^config=\[\]: must be the name"),
    ((None, np.zeros(3), False), "^data is ndarray: must be a path or a name; save arrays first"),
    (("smoke", None, "no"), "^fresh='no': must be True or False$"),
    (("smoke", None, 1), "^fresh=1: must be True or False$"),
    (("smoke", None, False, 5), "^init_from=5: must be the folder of a run$"),
    (("smoke", None, False, "runs/a", "no"), "^init_partial='no': must be True or False$"),
    (("smoke", None, False, None, True), "^init_partial=True: needs init_from"),
  ],
)
def test_arguments_of_another_type_are_named(arguments, message):
  with pytest.raises(dj.UserError, match=message):
    check_arguments(*arguments)


@pytest.mark.parametrize(
  ("config", "sections", "message"),
  [
    (
      "smoke",
      {"learning_rate": 1e-3},
      "^learning_rate=0.001: .*did you mean `optimizer.learn",
    ),
    ("smoke", {"epochs": 3}, "^epochs=3: there is no such argument.*`training.num_steps="),
    ("smoke", {"training": 3}, "^training=3: must be a mapping of fields, or a built part$"),
    ("smoke", {"training": {1: 2}}, "^training: the field 1 must be a text$"),
  ],
)
def test_sections_that_are_none_are_named(config, sections, message):
  with pytest.raises(dj.UserError, match=message):
    make_experiment(config, sections)


def test_a_folder_is_a_path():
  with pytest.raises(dj.UserError, match=r"^workdir=5: must be a path$"):
    folder_text(5)


def test_values_in_messages_take_one_line():
  assert one_line(np.ones((2, 2), int)) == "array([[1, 1], [1, 1]])"
  assert len(one_line("a" * 200)) < 90


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: check_integers(k=1.5), "^k=1.5: must be an integer$"),
    (lambda: check_integers(k=True), "^k=True: must be an integer$"),
    (lambda: dj.metrics.inception_score(FEATURES, seed=-1), "^seed=-1: must be between 0 and"),
    (
      lambda: dj.metrics.kernel_distance(FEATURES, FEATURES, 3, 10, seed=2**32),
      "^seed=4294967296: must be between",
    ),
    (lambda: dj.metrics.create_metrics("fid"), "^metrics='fid': must be a list such as"),
    (
      lambda: dj.metrics.gaussian_distance(np.zeros(2), -np.eye(2), np.zeros(2), np.eye(2)),
      "^first covariance has a negative variance",
    ),
  ],
)
def test_metrics_name_their_arguments(call, message):
  with pytest.raises((ValueError, dj.UserError), match=message):
    call()


def test_a_denoiser_names_its_arguments():
  build = lambda **options: dj.Denoiser(lambda x, *_: x, dj.processes.Flow(), **options)  # noqa: E731
  for sigma in (-1.0, 0.0, float("nan")):
    with pytest.raises(ValueError, match=r"^sigma_data=.* must be positive$"):
      build(sigma_data=sigma)
  with pytest.raises(ValueError, match=r"^t of shape \(3,\): must be one time per example, \[4\]$"):
    check_times(np.zeros(3), np.zeros((4, 2)))
  check_times(0.5, np.zeros((4, 2)))
