"""The train step: one update that is right, sharded, and skipped where it is not finite."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import begin

from diffusion_jax.core import rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.generative import Diffusion, ModelBase
from diffusion_jax.generative.base import loss_keys
from diffusion_jax.likelihood import ContinuousBound, ProbabilityFlow, Spectrum, VariationalBound
from diffusion_jax.losses import Simple
from diffusion_jax.models import MLP, DiT, UNet
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.processes import LinearVP
from diffusion_jax.samplers import DDIM, Guidance
from diffusion_jax.training import step
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
from diffusion_jax.types import Batch, Estimate, GenerativeModel, ImageSpec, LossOutput, UserError

pytestmark = pytest.mark.costly


class Quadratic(ModelBase):
  """loss_i = |w - image_i|^2 / 2: gradients and steps can be written down."""

  def init(self, key):
    return {"w": jnp.float32(1.0)}, {}

  def loss(self, params, loss_state, key, batch, **_):
    error = params["w"] - batch.image[:, 0, 0, 0].astype(jnp.float32)
    return LossOutput(0.5 * error**2, {"error": error}, loss_state)


def batch(values):
  image = np.asarray(values, np.float32).reshape(-1, 1, 1, 1)
  num = len(image)
  return Batch(
    image, np.zeros(num, np.int32), np.ones(num, np.float32), np.arange(num, dtype=np.uint32)
  )


def build(generative, optimizer, training=None, devices=1, ema=None):
  """A state and a jitted step on the first devices."""
  training = training or Training(batch_size=8)
  mesh = create_mesh(MeshShape(), jax.devices()[:devices])
  return begin(generative, optimizer, training, ema=ema, mesh=mesh)


def test_one_update_by_hand():
  """Mean gradient w - mean(x) = -3; Adam's first update is the rate against its sign."""
  state, train_step = build(Quadratic(), Adam(learning_rate=0.1, clip_norm=None))
  state, scalars = train_step(state, batch([2, 6] * 4))
  np.testing.assert_allclose(scalars["loss"], (0.5 + 12.5) / 2)
  np.testing.assert_allclose(scalars["error"], -3.0)
  np.testing.assert_allclose(scalars["grad_norm"], 3.0)
  np.testing.assert_allclose(state.params["w"], 1.1, rtol=1e-6)
  np.testing.assert_allclose(state.ema["w"], 1.05, rtol=1e-6)
  assert int(state.step) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_non_finite_update_is_skipped_and_counted(bad):
  """1e30 squared overflows: a loss of infinity with a finite gradient is no update either."""
  state, train_step = build(Quadratic(), Adam(learning_rate=0.1))
  state, _ = train_step(state, batch(np.arange(8)))
  before = jax.tree.map(np.asarray, state)
  for skipped in (1, 2):
    state, scalars = train_step(state, batch([bad] * 8))
    for name in ("params", "opt_state", "offsets", "aux"):
      kept = jax.tree.map(lambda a, b: bool(a == b), getattr(before, name), getattr(state, name))
      assert all(jax.tree.leaves(kept)), name
    assert int(scalars["num_skipped_in_a_row"]) == int(state.num_skipped) == skipped
  assert int(state.step) == 3
  state, scalars = train_step(state, batch(np.arange(8)))
  assert int(scalars["num_skipped_in_a_row"]) == 0
  assert int(scalars["num_skipped"]) == 2
  assert float(state.params["w"]) != float(before.params["w"])


def test_an_update_that_leaves_the_range_of_float32_is_skipped():
  """Gradient and loss are finite, but not what a rate of 1e38 makes of them at a norm of 1e3."""
  state, train_step = build(Quadratic(), Adam(learning_rate=3e38, clip_norm=None))
  state, _ = train_step(state, batch([-9.0] * 8))  # Adam moves by the rate: still finite
  before = float(state.params["w"])
  state, scalars = train_step(state, batch([-9.0] * 8))
  assert np.isfinite(before)
  assert float(state.params["w"]) == before
  assert np.isfinite(state.ema["w"])
  assert int(scalars["num_skipped"]) == 1


def test_skipped_updates_do_not_advance_the_schedule():
  state, train_step = build(Quadratic(), Adam(learning_rate=1.0, warmup_steps=10))
  rates = []
  for values in ([1] * 8, [np.nan] * 8, [1] * 8):
    state, scalars = train_step(state, batch(values))
    rates.append(float(scalars["learning_rate"]))
  np.testing.assert_allclose(rates, [0.0, 0.1, 0.1], atol=1e-7)


def test_clipping_scales_the_whole_gradient():
  grads = {"a": jnp.asarray([3.0]), "b": jnp.asarray([[4.0]])}
  clipped = step.clip_by_norm(grads, jnp.float32(5.0), 1.0)
  np.testing.assert_allclose([clipped["a"][0], clipped["b"][0, 0]], [0.6, 0.8], rtol=1e-6)
  assert step.clip_by_norm(grads, jnp.float32(5.0), 10.0)["a"] == 3.0
  assert step.clip_by_norm(grads, jnp.float32(5.0), None) is grads


@pytest.mark.parametrize(
  ("scope", "expected"), [("global", (-1.0, 3.0)), ("microbatch", (0.0, 7.0))]
)
def test_clip_scope(scope, expected):
  """Microbatch gradients +4 and -10: clipped to 1 each they cancel; their mean -3 clips to -1.

  The norm that is logged is that before the clip: 3, or the mean of 4 and 10.
  """
  optimizer = Adam(learning_rate=0.1, clip_norm=1.0, clip_scope=scope, b1=0.0)
  training = Training(batch_size=8, accumulation_steps=2)
  state, train_step = build(Quadratic(), optimizer, training)
  state, scalars = train_step(state, batch([-3, 11] * 4))
  np.testing.assert_allclose(scalars["grad_norm"], expected[1], atol=1e-6)
  moment = named_leaves(state.opt_state)["0/mu/w"]
  np.testing.assert_allclose(moment, expected[0], atol=1e-6)


# ---- A real network on several meshes -----------------------------------------------------------

SPEC = ImageSpec(8, 8, 1, 256, 3)
PARTS = {
  "process": LinearVP(num_timesteps=50),
  "model": MLP(hidden=64, depth=1, dropout=0.3),  # its kernels are large enough for fsdp to split
  "loss": Simple(),
  "sampler": DDIM(steps=2),
  "guidance": Guidance(),
  "spectrum": Spectrum(),
  "vlb": VariationalBound(),
  "continuous_vlb": ContinuousBound(),
  "probability_flow": ProbabilityFlow(),
}


UNET = UNet(channels=16, multipliers=(1,), num_blocks=1, attention_resolutions=(), dropout=0.3)

DIT = DiT(depth=2, hidden=32, heads=2, patch=4)


def diffusion(**changes) -> GenerativeModel:
  return Diffusion(conditional=True).create(PARTS | changes, SPEC)


def images(num=16) -> Batch:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (num, 8, 8, 1)).astype(np.uint8)
  label = rng.integers(0, 3, num).astype(np.int32)
  return Batch(image, label, np.ones(num, np.float32), np.arange(num, dtype=np.uint32) + 64)


def two_steps(mesh, accumulation_steps=1, **changes):
  """Loss of two steps and the parameters after them."""
  training = Training(batch_size=16, accumulation_steps=accumulation_steps)
  optimizer, generative = Adam(learning_rate=1e-2), diffusion(**changes)
  state, train_step = begin(generative, optimizer, training, ema=EMA(0.9), mesh=mesh)
  split = {n for n, leaf in named_leaves(state.params).items() if not leaf.is_fully_replicated}
  assert bool(split) == (mesh.shape["fsdp"] * mesh.shape["tensor"] > 1)
  losses = []
  for _ in range(2):
    state, scalars = train_step(state, images())
    losses.append(float(scalars["loss"]))
  return losses, {n: np.asarray(v) for n, v in named_leaves(state.params).items()}


@functools.cache
def on_one_device(model):
  return two_steps(create_mesh(MeshShape(), jax.devices()[:1]), model=model)


@pytest.mark.parametrize(
  ("model", "devices", "shape"),
  [
    (PARTS["model"], 4, MeshShape()),
    (PARTS["model"], 8, MeshShape()),
    (PARTS["model"], 8, MeshShape(-1, 4)),
    pytest.param(UNET, 4, MeshShape(), marks=pytest.mark.slow),
    pytest.param(UNET, 8, MeshShape(), marks=pytest.mark.slow),
    pytest.param(UNET, 8, MeshShape(-1, 4), marks=pytest.mark.slow),
    pytest.param(UNET, 8, MeshShape(-1, 1, 4), marks=pytest.mark.slow),
    (DIT, 8, MeshShape(2, 4)),  # each block is gathered when it is come to
    (UNET, 8, MeshShape(2, 2, 2)),  # only its blocks have layers that `tensor` splits
  ],
)
def test_the_same_training_on_any_mesh(model, devices, shape, monkeypatch):
  """Noise, times, label dropout and dropout belong to the example, not to the device.

  Losses differ by the order of float32 sums only. Adam's first steps divide by |gradient|, so a
  rounding error in a gradient near zero can move a weight: its share is bounded instead.
  """
  monkeypatch.setattr(sharding, "MIN_TENSOR_WIDTH", 2)  # the network of this test is narrow
  losses, params = two_steps(create_mesh(shape, jax.devices()[:devices]), model=model)
  expected = on_one_device(model)
  np.testing.assert_allclose(losses, expected[0], rtol=2e-5)
  moved = [np.abs(params[n] - v) > 1e-4 for n, v in expected[1].items()]
  assert np.mean(np.concatenate([m.ravel() for m in moved])) < 0.01


def test_another_seed_for_dropout_would_be_seen():
  """The comparison above can fail: without dropout the losses are others."""
  model = dataclasses.replace(PARTS["model"], dropout=0.0)
  losses, _ = two_steps(create_mesh(MeshShape(), jax.devices()[:1]), model=model)
  assert abs(losses[1] / on_one_device(PARTS["model"])[0][1] - 1) > 1e-4


def test_another_seed_draws_other_noise_and_times():
  """The network's output starts at zero, so that the first loss is of the draws alone."""
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  state, run = begin(diffusion(), Adam(), Training(batch_size=16, seed=0), mesh=mesh)
  other, run_other = begin(diffusion(), Adam(), Training(batch_size=16, seed=1), mesh=mesh)
  losses = [float(r(s, images())[1]["loss"]) for s, r in ((state, run), (other, run_other))]
  assert abs(losses[0] - losses[1]) > 1e-3
  again, run = begin(diffusion(), Adam(), Training(batch_size=16, seed=0), mesh=mesh)
  assert float(run(again, images())[1]["loss"]) == losses[0]


def test_draws_are_bitwise_the_same_on_any_mesh():
  from diffusion_jax.losses import Simple
  from diffusion_jax.processes import Denoiser

  model = Denoiser(lambda x, *_: x, LinearVP())

  def draws(index):
    keys = rng.example_keys(rng.numbered(jax.random.key(0), 7), index)
    noised = Simple().noised(model, jnp.zeros((len(index), 8, 8, 1)), keys)
    hidden = rng.uniform(rng.stream(keys, Stream.CONDITION_DROPOUT))
    return noised.t, noised.eps, hidden

  index = np.arange(100, 116, dtype=np.uint32)
  results = []
  for devices in (1, 4, 8):
    mesh = create_mesh(MeshShape(), jax.devices()[:devices])
    results.append(jax.tree.map(np.asarray, jax.jit(draws)(sharding.put_rows(index, mesh))))
  for other in results[1:]:
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, results[0], other)))


def test_accumulation_is_the_whole_batch_in_parts():
  model = dataclasses.replace(PARTS["model"], dropout=0.0)
  mesh = create_mesh(MeshShape(), jax.devices()[:4])
  whole, _ = two_steps(mesh, model=model)
  parts, _ = two_steps(mesh, accumulation_steps=4, model=model)
  np.testing.assert_allclose(parts, whole, rtol=2e-5)


def test_microbatches_draw_their_own_dropout():
  """Two copies of the same examples in two microbatches, with the same keys, differ by dropout."""
  generative = diffusion()
  params = jax.tree.map(lambda p: p + 0.05, jax.jit(generative.init)(jax.random.key(0))[0])
  first, key = images(4), jax.random.key(1)
  same = first._replace(index=first.index)
  other = first._replace(index=np.r_[first.index[1:], first.index[:1]])
  loss = jax.jit(lambda batch: generative.loss(params, {}, key, batch, train=True).values)
  a, b = loss(first), loss(same)
  assert (a == b).all()
  assert (loss(other) != a).any()


def test_split_batch_keeps_each_devices_examples():
  parts = step.split_batch(batch(np.arange(8)), 2)
  assert parts.image[..., 0, 0, 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_masked_mean_leaves_padding_out():
  assert step.masked_mean(jnp.asarray([1.0, 3.0, 99.0]), jnp.asarray([1.0, 1.0, 0.0])) == 2.0


def with_likelihoods(called) -> GenerativeModel:
  """A model with a cheap and a dear likelihood that note that they were called."""

  def likelihood(name, bits):
    def of(params, keys, batch):
      called.append(name)
      value = jnp.full(len(batch.index), bits)
      return Estimate(value, {"part": value / 2, "curve": value[:, None]})

    return of

  class Measured(Quadratic):
    likelihoods: ClassVar = {"elbo": likelihood("elbo", 3.0), "vlb": likelihood("vlb", 5.0)}

  return Measured()


@pytest.mark.parametrize("names", [(), ("elbo",), ("vlb", "elbo")])
def test_the_eval_step_measures_the_likelihoods_that_it_is_told(names):
  called = []
  eval_step = step.make_eval_step(with_likelihoods(called), names)
  values = eval_step({"w": jnp.float32(1.0)}, {}, batch([1, 3]), 0)
  assert called == list(names)
  expected = {f"{n}/{part}" for n in names for part in ("bits_per_dim", "part")}
  assert set(values) == {"loss", "error"} | expected  # a curve is no scalar of an example
  np.testing.assert_allclose(values["loss"], [0.0, 2.0])
  if names:
    np.testing.assert_allclose(values["elbo/part"], 1.5)


def test_only_the_default_elbo_may_be_missing():
  assert step.measured_likelihoods(Quadratic(), ("elbo",)) == []
  assert step.measured_likelihoods(with_likelihoods([]), ("elbo",)) == ["elbo"]
  assert step.measured_likelihoods(with_likelihoods([]), ()) == []
  with pytest.raises(UserError, match=r"names 'vbl'.*it has elbo,vlb: `eval\."):
    step.measured_likelihoods(with_likelihoods([]), ("elbo", "vbl"))
  with pytest.raises(UserError, match="it has none"):
    step.measured_likelihoods(Quadratic(), ("vlb",))


@pytest.mark.parametrize(
  "fields", [{"num_steps": 0}, {"batch_size": 0}, {"seed": -1}, {"accumulation_steps": 0}]
)
def test_impossible_training_is_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    Training(**fields)


def test_no_two_draws_of_a_run_have_one_key():
  """Of the loss, its dropout, the measured likelihoods, the samples and the parameters."""
  key, one = jax.random.key(0), images(4)
  training = [rng.numbered(rng.stream(key, Stream.TRAINING), n) for n in (0, 1, 2**31 - 1)]
  held_out = rng.stream(key, Stream.HELD_OUT)
  keys = [rng.stream(key, Stream.INIT), *training, held_out, *rng.sample_keys(0, one.index)]
  for step_key in (*training, held_out):
    found = loss_keys(step_key, one, train=True)
    keys += [*found.examples, found.dropout]
  keys += list(rng.example_keys(rng.stream(held_out, Stream.LIKELIHOOD), one.index))
  keys += list(rng.example_keys(rng.stream(key, Stream.LIKELIHOOD), one.index))
  assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == len(keys)
