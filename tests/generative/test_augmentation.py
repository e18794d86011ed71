"""EDM's augmentation: exact where it can be, as often as asked, told to the network, no leak."""

import itertools
import math

import jax
import numpy as np
import pytest
from numpy_draws import moved
from scipy import stats

from diffusion_jax.core import rng
from diffusion_jax.generative import augmentation
from diffusion_jax.generative.augmentation import (
  Augmentation,
  Draws,
  as_labels,
  draw_augmentation,
  warp,
)
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import Batch, ImageSpec, UserError

pytestmark = pytest.mark.costly

WIDE = np.random.default_rng(1).normal(size=(8, 14, 2)).astype(np.float32)
STILL = Draws(*[np.float32(0.0)] * 8)
TRANSFORM = jax.jit(Augmentation(0.12).transform)
WARP = jax.jit(warp)
NUM = 20_000


def transform(x, **draws):
  values = {name: np.float32(value) for name, value in draws.items()}
  return np.asarray(TRANSFORM(STILL._replace(**values), x))


@pytest.fixture(scope="module")
def drawn():
  """What is done to NUM images at probability 0.12."""
  keys = rng.example_keys(jax.random.key(1), np.arange(NUM))
  draws = jax.jit(jax.vmap(lambda key: draw_augmentation(0.12, key)))(keys)
  labels = jax.jit(jax.vmap(as_labels))(draws)
  return jax.tree.map(np.asarray, draws), np.asarray(labels)


def test_an_image_that_is_left_alone_is_the_same_to_the_bit():
  np.testing.assert_array_equal(transform(WIDE), WIDE)
  warped = WARP(WIDE, np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
  np.testing.assert_allclose(warped, WIDE, atol=2e-6)


def test_flips_are_those_of_numpy():
  np.testing.assert_array_equal(transform(WIDE, flip_x=1), WIDE[:, ::-1])
  np.testing.assert_array_equal(transform(WIDE, flip_y=1), WIDE[::-1])
  np.testing.assert_array_equal(transform(WIDE, flip_x=1, flip_y=1), WIDE[::-1, ::-1])


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-5, 4), (9, -3)])
def test_a_shift_by_whole_pixels_moves_the_image_in_its_mirrors(right, down):
  """As far as the mirror images go without the filter seeing their end."""
  padded = np.pad(WIDE, ((7, 7), (13, 13), (0, 0)), mode="reflect")
  exact = padded[7 - down : 15 - down, 13 - right : 27 - right]
  found = transform(WIDE, move_x=right / 14 / 0.125, move_y=down / 8 / 0.125)
  np.testing.assert_allclose(found, exact, atol=1e-4)


def test_beyond_the_mirror_images_are_zeros():
  np.testing.assert_array_equal(transform(WIDE, move_x=40 / 14 / 0.125), 0.0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_whole_turns_are_those_of_numpy(quarters):
  """Of a smooth image, nearly: the filter is not quite symmetric."""
  smooth = wave(*np.mgrid[:24, :24].astype(float)[::-1], 24, 24).astype(np.float32)
  found = transform(smooth, angle=quarters * np.pi / 2)
  error = [np.abs(found - np.rot90(smooth, k)).max() / np.abs(smooth).max() for k in range(4)]
  assert error[quarters] < 0.05
  assert min(error[:quarters] + error[quarters + 1 :]) > 0.5


# ---- The filter and the steps of the published program ------------------------------------------


def test_the_filter_is_the_orthonormal_one_with_six_vanishing_moments():
  h = np.asarray(augmentation.SYM6)
  products = np.correlate(h, h, mode="full")[len(h) - 1 :: 2]  # with itself shifted by 0, 2, 4, ...
  np.testing.assert_allclose(products, [1, 0, 0, 0, 0, 0], atol=1e-12)
  assert h.sum() == pytest.approx(np.sqrt(2), abs=1e-12)
  sign = (-1.0) ** np.arange(12)
  for power in range(6):
    place = (np.arange(12) - 5) / 6
    assert abs(np.sum(sign * place**power * h)) < 1e-10, power


def test_the_filter_is_a_factor_of_daubechies_polynomial():
  """Its zeros besides six at -1: of each zero y of the polynomial, z or 1 / z; so eight filters."""
  polynomial = [math.comb(5 + k, k) for k in range(6)]  # in y = (2 - z - 1 / z) / 4
  places = [y for y in np.roots(polynomial[::-1]) if y.imag >= -1e-9]
  errors = []
  for inside in itertools.product([True, False], repeat=len(places)):
    zeros = [-1.0] * 6
    for y, small in zip(places, inside, strict=True):
      pair = sorted(np.roots([1, 4 * y - 2, 1]), key=abs)
      zero = pair[0] if small else pair[1]
      zeros += [zero] if abs(y.imag) < 1e-9 else [zero, np.conj(zero)]
    taps = np.real(np.poly(zeros))
    errors.append(np.abs(taps * np.sqrt(2) / taps.sum() - augmentation.SYM6).max())
  assert len(errors) == 8
  assert min(errors) < 1e-10


def correlate(x, taps, before, after, step=1):
  """Sums over j of taps[j] x[step m + j - before] along the first axis, zeros around it."""
  x = np.pad(x, [(before, after)] + [(0, 0)] * (x.ndim - 1))
  num = (len(x) - len(taps)) // step + 1
  return sum(tap * x[j : j + step * (num - 1) + 1 : step] for j, tap in enumerate(taps))


def with_zeros_between(x):
  longer = np.zeros((2 * len(x) - 1, *x.shape[1:]))
  longer[::2] = x
  return longer


def along_both(step, x):
  return step(step(x).swapaxes(0, 1)).swapaxes(0, 1)


def published_warp(x, matrix, shift, whole):
  """The steps of EDM's program, one after the other in float64.

  Args:
    whole: pad by whole mirror images, as in a large batch; else as far as this image reaches.
  """
  height, width, _ = x.shape
  taps, size = np.asarray(augmentation.SYM6), np.array([width, height])
  inverse = np.linalg.inv(matrix)
  half = (size - 1) / 2
  corners = (np.array([(i, j) for i in (-1, 1) for j in (-1, 1)]) * half - shift) @ inverse.T
  reach = np.stack([-corners.min(0), corners.max(0)]) + 6 - half  # before and after, by (x, y)
  margin = np.ceil(np.clip(reach, 0, size - 1)).astype(int)
  margin = np.stack([size - 1, size - 1]) if whole else margin
  x = np.pad(x.astype(float), [tuple(margin[:, 1]), tuple(margin[:, 0]), (0, 0)], mode="reflect")
  large = along_both(lambda v: correlate(with_zeros_between(v), taps[::-1], 6, 6), x)
  # Sample q of the finer grid lies at pixel q / 2 - 3; pixel p of the padded image at sample 2 p.
  places = [np.arange(2 * n + 12) / 2 - 3 for n in size]
  target = np.stack(np.meshgrid(*places), -1) - half
  source = 2 * ((target - shift) @ inverse.T + half + margin[0])
  samples = bilinear(large, source)
  return along_both(lambda v: correlate(v, taps, 5, 5, step=2)[3:-3], samples)


def bilinear(x, place):
  """Values at (x, y) places between the pixels, zeros outside."""
  x = np.pad(x, [(1, 1), (1, 1), (0, 0)])
  column, row = np.moveaxis(place + 1, -1, 0)
  total = 0.0
  for right in (0, 1):
    for below in (0, 1):
      i, j = np.floor(row).astype(int) + below, np.floor(column).astype(int) + right
      inside = (i >= 0) & (i < x.shape[0]) & (j >= 0) & (j < x.shape[1])
      weight = inside * (1 - np.abs(row - i)) * (1 - np.abs(column - j))
      total = total + weight[..., None] * x[i % x.shape[0], j % x.shape[1]]
  return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("whole", [True, False])
def test_a_warp_is_that_of_the_published_steps(seed, whole):
  """For noise, which has all frequencies."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((14, 18, 2)).astype(np.float32)
  matrix = (np.eye(2) + 0.15 * rng.standard_normal((2, 2))).astype(np.float32)
  shift = rng.standard_normal(2).astype(np.float32)
  exact = published_warp(x, matrix.astype(float), shift.astype(float), whole)
  np.testing.assert_allclose(WARP(x, matrix, shift), exact, atol=1e-4)


@pytest.mark.parametrize("far", [(30.0, -4.0), (-3.0, 25.0)])
def test_a_warp_that_leaves_the_mirror_images_is_that_of_the_published_steps(far):
  x = np.random.default_rng(0).standard_normal((14, 18, 2)).astype(np.float32)
  matrix, shift = np.float32([[1.1, 0.2], [-0.3, 0.9]]), np.float32(far)
  exact = published_warp(x, matrix.astype(float), shift.astype(float), True)
  assert (np.abs(exact).max(-1) < 1e-12).any()  # there are zeros
  np.testing.assert_allclose(WARP(x, matrix, shift), exact, atol=1e-4)


def wave(column, row, height, width):
  """Smooth, and the same in the mirrors at the edges: three cosines of the place."""
  x, y = np.pi * column / (width - 1), np.pi * row / (height - 1)
  return (np.cos(2 * x) + np.cos(3 * y) + np.cos(x) * np.cos(2 * y))[..., None]


@pytest.mark.parametrize(
  "draws",
  [
    {"angle": 0.4},
    {"scale": 1.5},
    {"scale": -1.0},
    {"stretch": 1.2, "axis": 0.7},
    {"move_x": 0.3, "move_y": -0.7},
    {"scale": 0.8, "angle": -2.0, "stretch": -0.9, "axis": 2.1, "move_x": -0.4, "move_y": 0.2},
  ],
  ids=lambda draws: ",".join(draws),
)
def test_a_smooth_image_is_where_the_formula_says(draws):
  """Against the image's own formula at M^-1 (p - shift), M = stretch rotation scale, in float64.

  To 4%: the published filter also takes a little of what the grid can hold, and is not symmetric.
  """
  height, width = 24, 32
  row, column = np.mgrid[:height, :width].astype(float)
  d = {name: draws.get(name, 0.0) for name in Draws._fields}
  turn = lambda a: np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])  # noqa: E731
  factor = 2 ** (0.2 * d["stretch"])
  stretching = turn(d["axis"]) @ np.diag([factor, 1 / factor]) @ turn(-d["axis"])
  matrix = stretching @ turn(d["angle"]) * 2 ** (0.2 * d["scale"])
  centre = np.array([(width - 1) / 2, (height - 1) / 2])
  shift = 0.125 * np.array([width * d["move_x"], height * d["move_y"]])
  points = np.stack([column, row], -1) - centre - shift
  source = points @ np.linalg.inv(matrix).T + centre
  exact = wave(source[..., 0], source[..., 1], height, width)
  found = transform(wave(column, row, height, width).astype(np.float32), **draws)
  assert np.abs(found - exact).max() < 0.04 * np.abs(exact).max()
  unmoved = wave(column, row, height, width)
  assert np.abs(unmoved - exact).max() > 0.2 * np.abs(exact).max()  # else it would prove nothing


def test_shrinking_removes_what_the_new_grid_cannot_hold():
  """The finest checkerboard becomes grey, as its mean is, and does not alias."""
  board = (-1.0) ** np.add(*np.mgrid[:32, :32])[..., None].astype(np.float32)
  found = transform(board.astype(np.float32), scale=-5.0)  # by half
  assert np.abs(found).max() < 0.1


def test_constant_images_stay():
  ones = np.ones((16, 16, 1), np.float32)
  found = transform(ones, scale=-1.0, angle=1.0, stretch=1.0, axis=1.0, move_x=1.0)
  np.testing.assert_allclose(found, 1.0, atol=1e-5)


@pytest.mark.parametrize(
  ("field", "rate"),
  [
    ("flip_x", 0.5),
    ("flip_y", 0.06),
    ("scale", 0.12),
    ("angle", 0.12),
    ("stretch", 0.12),
    ("axis", 0.06),
    ("move_x", 0.12),
    ("move_y", 0.12),
  ],
)
def test_each_is_applied_as_often_as_asked(drawn, field, rate):
  count = int((getattr(drawn[0], field) != 0).sum())
  assert abs(count - NUM * rate) < 4 * np.sqrt(NUM * rate * (1 - rate))


def test_coins_are_independent_but_for_the_two_halves_of_a_shift(drawn):
  draws = drawn[0]
  names = ("flip_x", "flip_y", "scale", "angle", "stretch", "move_x")
  on = np.stack([getattr(draws, n) != 0 for n in names]).astype(float)
  correlation = np.corrcoef(on) - np.eye(len(names))
  assert np.abs(correlation).max() < 4.5 / np.sqrt(NUM)
  np.testing.assert_array_equal(draws.move_x != 0, draws.move_y != 0)
  there = draws.move_x != 0
  assert abs(np.corrcoef(draws.move_x[there], draws.move_y[there])[0, 1]) < 4 / np.sqrt(there.sum())


def test_what_is_applied_has_the_distribution_of_the_paper(drawn):
  draws = drawn[0]
  for name in ("scale", "stretch", "move_x", "move_y"):
    values = getattr(draws, name)
    assert stats.kstest(values[values != 0], "norm").pvalue > 1e-4, name
  for name in ("angle", "axis"):
    values = getattr(draws, name)
    assert stats.kstest(values[values != 0], "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-4, name


def test_labels_say_what_was_done(drawn):
  """The transformations can be read off them, and those of an untouched image are zeros."""
  draws, labels = drawn
  assert labels.shape == (NUM, augmentation.NUM_LABELS)
  np.testing.assert_array_equal(labels[:, 0], draws.flip_x)
  np.testing.assert_array_equal(labels[:, 1], draws.flip_y)
  np.testing.assert_array_equal(labels[:, 2], draws.scale)
  np.testing.assert_allclose(np.arctan2(labels[:, 4], labels[:, 3] + 1), draws.angle, atol=1e-5)
  np.testing.assert_allclose(np.hypot(labels[:, 5], labels[:, 6]), np.abs(draws.stretch), atol=1e-5)
  turned = draws.axis != 0
  angle = np.arctan2(labels[:, 6], labels[:, 5])[turned]
  of_line = (angle - draws.axis[turned] + np.pi / 2) % np.pi - np.pi / 2  # a line's angle, mod pi
  np.testing.assert_allclose(of_line, 0, atol=1e-4)
  np.testing.assert_array_equal(labels[:, 7], draws.move_x)
  np.testing.assert_array_equal(labels[:, 8], draws.move_y)
  untouched = np.all([value == 0 for value in draws], axis=0)
  assert 0.2 < untouched.mean() < 0.3  # 0.5 0.94 0.88^4 = 0.28
  assert (labels[untouched] == 0).all()
  assert (np.abs(labels[~untouched]).max(axis=1) > 0).all()


# ---- In the model -------------------------------------------------------------------------------

SPEC = ImageSpec(8, 8, 1, 256, 3)
RAW = {
  "generative": {"name": "diffusion", "prediction": "edm", "augmentation": 0.5},
  "process": {"name": "edm"},
  "model": {"name": "unet", "channels": 8, "multipliers": (1,), "num_blocks": 1,
            "attention_resolutions": (), "dropout": 0.0, "augmentation_labels": 9},
  "loss": {"name": "edm"},
  "sampler": {"name": "heun", "steps": 2},
  "data": {"name": "digits"},
  "optimizer": {"name": "adam"},
}  # fmt: skip


def without():
  """The same model that is neither augmented nor told."""
  model = {**RAW["model"], "augmentation_labels": 0}
  return {**RAW, "generative": {"name": "diffusion", "prediction": "edm"}, "model": model}


def batch(num=16):
  image = np.random.default_rng(0).integers(0, 256, (num, *SPEC.shape)).astype(np.uint8)
  return Batch(image, np.zeros(num, np.int32), np.ones(num, np.float32),
               np.arange(num, dtype=np.uint32))  # fmt: skip


class Trial:
  """A model with weights away from their start at zero, and its losses, each compiled once."""

  def __init__(self, raw):
    self.model = build_experiment(raw).create(SPEC)
    shapes, aux = jax.eval_shape(self.model.init, jax.random.key(0))
    assert not jax.tree.leaves(aux)
    self.aux = aux
    self.params = moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes), 0.3)

    def loss(params, part, train):
      return self.model.loss(params, aux, jax.random.key(3), part, train=train)[0]

    self.loss = jax.jit(loss, static_argnums=2)

  def losses(self, params, train=True):
    """Of the batch, half by half."""
    halves = [jax.tree.map(lambda a, i=i: a[i : i + 8], batch()) for i in (0, 8)]
    return np.concatenate([self.loss(params, half, train) for half in halves])


@pytest.fixture(scope="module")
def told():
  return Trial(RAW)


def test_training_is_the_same_on_one_and_eight_devices_and_for_any_batch(told):
  """Two batches of 8 images on one device, and one of 16 on eight."""
  whole = told.losses(told.params)
  assert whole.std() > 0
  mesh = create_mesh(MeshShape(), jax.devices()[:8])
  parted = told.loss(told.params, sharding.put_batch(batch(), mesh), True)
  assert len(parted.sharding.device_set) == 8
  np.testing.assert_allclose(parted, whole, rtol=2e-4)


def changed(params, amount):
  """Other weights of the augmentation's labels."""
  kernel = params["augmentation"]["kernel"] + amount
  assert set(params["augmentation"]) == {"kernel"}  # a bias would be there for images as they are
  return {**params, "augmentation": {"kernel": kernel}}


def test_the_network_is_told_in_training_and_nowhere_else(told):
  params, other = told.params, changed(told.params, np.float32(1.0))
  assert params["augmentation"]["kernel"].shape == (9, 8)
  augmented = told.losses(other) != told.losses(params)
  assert 0.6 < augmented.mean() < 1  # all but the images that stayed as they are: 4% are expected
  keys = rng.example_keys(jax.random.key(0), np.arange(2))
  sample = jax.jit(lambda p: told.model.sample(p, keys).images)
  x, t = np.ones((2, *SPEC.shape), np.float32), np.full(2, 0.5, np.float32)
  denoise = jax.jit(lambda p, x, t: told.model.denoise(p, x, t))
  for measure in (
    lambda p: told.losses(p, train=False),
    sample,
    lambda p: denoise(p, x, t),
  ):
    np.testing.assert_array_equal(measure(params), measure(other))


def test_without_labels_it_is_the_network_that_was_never_told(told):
  plain = Trial(without())
  rest = {name: value for name, value in told.params.items() if name != "augmentation"}
  assert jax.tree.structure(rest) == jax.tree.structure(plain.params)
  found = told.losses(told.params, train=False)
  np.testing.assert_allclose(found, plain.losses(rest, train=False), rtol=1e-6)


def refused(section, **fields):
  return {**RAW, section: {**RAW[section], **fields}}


@pytest.mark.parametrize(
  ("raw", "spec", "words"),
  [
    (refused("generative", augmentation=1.5), SPEC, "augmentation=1.5 must be between"),
    (refused("generative", augmentation=0.0), SPEC, r"set `model.augmentation_labels=0` \("),
    (refused("model", augmentation_labels=0), SPEC, "set `model.augmentation_labels=9`"),
    (refused("model", multipliers=(1,)), SPEC._replace(width=3), "images of 3 pixels are too"),
    ({**RAW, "model": {"name": "dit"}}, SPEC, r"needs a network with 9 .* has 0; .*unet has it"),
    (refused("model", augmentation_labels=-1), SPEC, "augmentation_labels=-1 must not be negative"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_to_type(raw, spec, words):
  with pytest.raises(UserError, match=words):
    build_experiment(raw).create(spec)


def test_negative_spreads_are_refused():
  with pytest.raises(ValueError, match="must not be negative"):
    Augmentation(0.12, scale_std=-0.1)
