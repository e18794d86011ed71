"""The FID Inception network against torch-fidelity's own, on random weights and varied images.

The reference figures lie in inception_fixture.npz; tests/reference/make_inception_fixture.py made
them. `python -m pytest -n 0 tests/models/inception/test_network.py` prints the parity figures.
"""

import json
from pathlib import Path

import inception_cases as cases
import jax
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax import metrics
from diffusion_jax.models.inception import network, torch_port
from diffusion_jax.types import UserError

TOLERANCE = 1e-5
"""Of the largest reference value: 10 times float32's noise, below a tenth of any mutation's."""


@pytest.fixture(scope="module")
def reference():
  with np.load(Path(__file__).parent / "inception_fixture.npz") as file:
    return dict(file)


@pytest.fixture(scope="module")
def state():
  return cases.random_torch_state(cases.SEED)


@pytest.fixture(scope="module")
def params(state):
  return jax.device_put(torch_port.from_torch(state))


@pytest.fixture(scope="module")
def extract(params):
  run = jax.jit(network.apply)

  def call(images, params=params):
    return {name: np.asarray(x) for name, x in run(params, images)._asdict().items()}

  return call


@pytest.fixture
def show(capsys):
  def print_through(text):
    with capsys.disabled():
      print(f"\n{text}", end="")

  return print_through


def error(found, expected):
  return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", cases.SHAPES)
def test_features_are_those_of_torch_fidelity(name, reference, extract, show):
  found = extract(cases.batch(name))
  errors = {kind: error(found[kind], reference[f"{name}/{kind}"]) for kind in found}
  text = ", ".join(f"{kind} {value:.1e}" for kind, value in errors.items())
  show(f"{name} {cases.SHAPES[name]}: {text} of the largest value")
  assert set(errors) == {"pool", "spatial", "logits"}
  assert max(errors.values()) < TOLERANCE


def test_the_images_differ_enough_to_test_anything(reference):
  """Features differ between the images by far more than the tolerance."""
  for kind in ("pool", "spatial", "logits"):
    features = reference[f"full/{kind}"]
    assert features.std(axis=0).mean() > 100 * TOLERANCE * np.abs(features).max()


PICKED = [1, 3]
"""Of the batch "full": a checkerboard and noise."""


def as_float(images):
  return np.asarray(images, np.float32)


def concatenated_otherwise(state):
  """The weights of a network whose Mixed_7b joins its branches in another order."""
  one, a, b, rest = np.split(np.arange(2048), [320, 704, 1088])
  order, state = np.concatenate([one, b, a, rest]), dict(state)
  for name in ("branch1x1", "branch3x3_1", "branch3x3dbl_1", "branch_pool"):
    key = f"Mixed_7c.{name}.conv.weight"
    state[key] = state[key][:, order]
  return state


def mutation_error(reference, found, name="full", picked=PICKED):
  return error(found["pool"], reference[f"{name}/pool"][picked])


def test_without_a_mutation_nothing_is_detected(reference, extract):
  images = as_float(cases.batch("full")[PICKED])
  assert mutation_error(reference, extract(images)) < TOLERANCE


@pytest.mark.parametrize("name", ["scaled to [-1, 1] by 2 / 255", "BGR", "grey"])
def test_wrong_input_is_detected(name, reference, extract, show):
  images = as_float(cases.batch("full")[PICKED])
  wrong = {
    "scaled to [-1, 1] by 2 / 255": images * np.float32(256 / 255),
    "BGR": images[..., ::-1],
    "grey": np.repeat(images[..., :1], 3, axis=-1),
  }
  found = mutation_error(reference, extract(wrong[name]))
  show(f"mutation {name}: {found:.1e}")
  assert found > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["half a pixel", "jax.image", "rounded", "nearest"])
def test_a_wrong_resize_is_detected(name, reference, extract, show):
  """The wrong resize is done here; the network's own leaves images of 299 pixels as they are."""
  picked = [2, 4]
  images, shape = as_float(cases.batch("small")[picked]), (2, 299, 299, 3)
  own = np.asarray(jax.jit(network.resize)(images))
  assert mutation_error(reference, extract(own), "small", picked) < TOLERANCE
  wrong = {
    "half a pixel": lambda: jax.image.resize(images, shape, "linear", antialias=False),
    "jax.image": lambda: jax.image.resize(images, shape, "linear"),
    "rounded": lambda: np.round(own),
    "nearest": lambda: jax.image.resize(images, shape, "nearest"),
  }
  found = mutation_error(reference, extract(np.asarray(wrong[name]())), "small", picked)
  show(f"mutation resize {name}: {found:.1e}")
  assert found > 10 * TOLERANCE


@pytest.mark.parametrize(
  ("name", "value"),
  [("BATCH_NORM_EPSILON", 1e-5), ("MAX_POOLED", ()), ("MAX_POOLED", ("Mixed_7b", "Mixed_7c"))],
)
def test_other_constants_are_detected(name, value, reference, state, extract, show, monkeypatch):
  """Torch's epsilon; Mixed_7c with an average; Mixed_7b with a maximum."""
  monkeypatch.setattr(torch_port, name, value)
  mutated = torch_port.from_torch(state)
  images = as_float(cases.batch("full")[PICKED])
  found = mutation_error(reference, extract(images, mutated))
  show(f"mutation {name} = {value}: {found:.1e}")
  assert found > 10 * TOLERANCE


def test_another_order_of_branches_is_detected(reference, state, extract, show):
  images = as_float(cases.batch("full")[PICKED])
  mutated = torch_port.from_torch(concatenated_otherwise(state))
  found = mutation_error(reference, extract(images, mutated))
  show(f"mutation order of Mixed_7b's branches: {found:.1e}")
  assert found > 10 * TOLERANCE


def test_averages_that_count_the_padding_are_detected(reference, params, show, monkeypatch):
  monkeypatch.setattr(network, "_average_pool", lambda x: network._sum_pool(x) / 9)
  mutated = jax.jit(lambda params, images: network.apply(params, images))
  images = as_float(cases.batch("full")[PICKED])
  found = mutation_error(reference, mutated(params, images)._asdict())
  show(f"mutation averages count the padding: {found:.1e}")
  assert found > 10 * TOLERANCE


def test_a_7x1_for_a_1x7_is_refused(state):
  key = "Mixed_6b.branch7x7_2.conv.weight"
  swapped = {**state, key: state[key].swapaxes(2, 3)}
  with pytest.raises(UserError, match=r"branch7x7_2.conv.weight has shape \(128, 128, 7, 1\)"):
    torch_port.from_torch(swapped)


def nuclear_frechet(x, y):
  """The Frechet distance of two small samples: a nuclear norm of N x M, not of D x D, numbers."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  rx, ry = ((a - a.mean(axis=0)) / np.sqrt(len(a) - 1) for a in (x, y))
  shared = np.linalg.svd(rx @ ry.T, compute_uv=False).sum()
  return ((x.mean(0) - y.mean(0)) ** 2).sum() + (rx**2).sum() + (ry**2).sum() - 2 * shared


def in_their_span(x, y):
  """The same two samples in as many coordinates as images; a rotation leaves distances alone."""
  basis = np.linalg.qr(np.concatenate([x, y]).astype(np.float64).T)[0]
  return x @ basis, y @ basis


def frechet(x, y):
  moments = [metrics.add(metrics.zeros(a.shape[1]), a) for a in (x, y)]
  return metrics.gaussian_distance(*(part for m in moments for part in (m.mean, m.covariance)))


def extracted_by_fives(extract, images):
  """With the program that the batch "small" has."""
  padded = np.concatenate([images, images[: -len(images) % 5]])
  parts = [extract(padded[i : i + 5]) for i in range(0, len(padded), 5)]
  return {kind: np.concatenate([p[kind] for p in parts])[: len(images)] for kind in parts[0]}


@pytest.mark.costly
def test_metrics_are_those_of_torch_fidelity_end_to_end(reference, extract, show):
  """FID within 1e-3; the others far closer, up to torch-fidelity's float32 kernel."""
  about = json.loads(str(reference["about"]))
  assert about["settings"] == cases.SETTINGS
  expected = about["metrics"]
  x, y = (
    extracted_by_fives(extract, cases.samples()),
    extracted_by_fives(extract, cases.reference()),
  )
  fid = frechet(*in_their_span(x["pool"], y["pool"]))
  kid = metrics.kernel_distance(
    x["pool"], y["pool"], cases.SETTINGS["kid_subsets"], cases.SETTINGS["kid_subset_size"]
  )
  score = metrics.inception_score(x["logits"], cases.SETTINGS["isc_splits"])
  balls = metrics.precision_recall(y["pool"], x["pool"], cases.SETTINGS["prc_neighborhood"])
  found = {
    "frechet_inception_distance": fid,
    "kernel_inception_distance_mean": kid.value,
    "kernel_inception_distance_std": kid.standard_deviation,
    "inception_score_mean": score.mean, "precision": balls[0], "recall": balls[1],
  }  # fmt: skip
  for name, value in found.items():
    show(f"{name}: {value:.8g}, torch-fidelity {expected[name]:.8g}")
    np.testing.assert_allclose(value, expected[name], rtol=1e-3)
  np.testing.assert_allclose(score.mean - 1, expected["inception_score_mean"] - 1, rtol=1e-3)
  own = nuclear_frechet(x["pool"], y["pool"])
  show(f"FID of the nuclear norm: {own:.10g}, relative difference {fid / own - 1:.1e}")
  np.testing.assert_allclose(fid, own, rtol=1e-6)


@pytest.mark.slow  # the singular values of 2048 x 2048 numbers
def test_the_frechet_distance_of_2048_features_is_that_of_the_nuclear_norm(extract, show):
  x, y = extract(cases.samples())["pool"], extract(cases.reference())["pool"]
  fid, own = frechet(x, y), nuclear_frechet(x, y)
  show(f"FID {fid:.10g}, of the nuclear norm {own:.10g}: relative difference {fid / own - 1:.1e}")
  np.testing.assert_allclose(fid, own, rtol=1e-6)


def test_resize_lies_on_pixel_corners_and_smooths_nothing():
  resize = jax.jit(network.resize, static_argnums=1)
  ramp = np.float32([0.0, 10.0, 40.0]).reshape(1, 1, 3, 1)
  wide = np.asarray(resize(np.tile(ramp, (1, 3, 1, 1)), 6))
  assert wide.shape == (1, 6, 6, 1)
  np.testing.assert_allclose(wide[0, 0, :, 0], [0, 5, 10, 25, 40, 40], atol=1e-5)
  row = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)
  small = np.asarray(resize(np.tile(row, (1, 8, 1, 1)), 4))
  np.testing.assert_array_equal(small[0, 0, :, 0], [0, 2, 4, 6])
  full = as_float(cases.batch("full")[:1])
  np.testing.assert_array_equal(jax.jit(network.resize)(full), full)


def test_averages_count_only_what_exists():
  pool = jax.jit(network._average_pool)
  np.testing.assert_allclose(pool(np.ones((1, 4, 5, 2), np.float32)), 1.0, rtol=1e-6)
  impulse = np.zeros((1, 4, 4, 1), np.float32)
  impulse[0, 0] = [[1], [0], [0], [0]]
  one = np.asarray(pool(impulse))[0, :, :, 0]
  np.testing.assert_allclose(one[:2, :2], [[1 / 4, 1 / 6], [1 / 6, 1 / 9]], rtol=1e-6)
  assert not one[2:].any()


@pytest.mark.parametrize("size", [7, 8])
def test_maxima_are_those_of_the_windows(size):
  x = normal(0, 2, size, size, 3)
  for stride in (1, 2):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    expected = windows[:, ::stride, ::stride].max(axis=(-1, -2))
    found = jax.jit(network._max_pool, static_argnums=1)(x, stride)
    np.testing.assert_array_equal(found, expected)


def test_grey_images_are_repeated_and_others_refused(extract, params):
  grey = cases.batch("small")[..., :1]
  one, three = extract(grey), extract(np.repeat(grey, 3, axis=-1))
  assert error(one["pool"], three["pool"]) < 1e-6
  with pytest.raises(UserError, match="1 or 3 channels, these have 4"):
    network.apply(params, np.zeros((1, 8, 8, 4), np.uint8))


def test_the_weights_have_the_published_number_of_elements():
  shapes = torch_port.torch_shapes()
  assert len(shapes) == 472
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == 23_885_392


def test_other_state_dicts_are_refused(state):
  counted = {**state, "Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(7)}
  assert torch_port.from_torch(counted).keys() == torch_port.from_torch(state).keys()
  without = {name: array for name, array in state.items() if name != "fc.bias"}
  holey = {**state, "fc.weight": np.where(np.eye(1008, 2048), np.nan, state["fc.weight"])}
  for match, wrong in {
    r"1 of its 472 arrays are missing \(fc.bias\), 0 are unknown;": without,
    r"0 of its 472 arrays are missing, 1 are unknown \(AuxLogits.fc.bias\)":
      {**state, "AuxLogits.fc.bias": np.zeros(1000)},
    r"fc.weight has shape \(1000, 2048\), expected \(1008, 2048\)":
      {**state, "fc.weight": np.zeros((1000, 2048))},
    r"fc.weight has .* finite values": holey,
  }.items():  # fmt: skip
    with pytest.raises(UserError, match=match):
      torch_port.from_torch(wrong)
