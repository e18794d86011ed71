"""VDM's loss against closed forms of Gaussian data; its even times; its schedule's gradient."""

import dataclasses
import functools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from steps import begin

from diffusion_jax.auditing import oracles
from diffusion_jax.likelihood import ContinuousBound
from diffusion_jax.losses import VDM, BatchPosition
from diffusion_jax.losses.vdm import even_quantiles, mirrored
from diffusion_jax.models import LearnedLinear, LearnedMonotone, Network, NetworkBase
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.processes import PROCESSES, Learned, LinearVP
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.step import Training
from diffusion_jax.types import Batch, Examples, ImageSpec, UserError

ENDS = -13.3, 5.0
NUM = 4000


def closed_form(start, end):
  """Bits/dim of the bound, gamma from start to end."""
  return oracles.bound_bits(-start, -end)


def learned(kind=LearnedLinear, seed=0):
  """(params, params -> process)."""
  schedule = kind(*ENDS)
  # without its interior, whose gradient is another's
  at = lambda p: dataclasses.replace(schedule.bind(p), interior=None)  # noqa: E731
  return jax.device_get(jax.jit(schedule.init)(jax.random.key(seed))), at


def loss_of(process, step_key, keys, x0, index=None, dropout_key=None):
  few = Examples(x0, index=index, step_key=jax.random.key(step_key))
  return VDM()(oracles.gaussian_denoiser(process), few, keys, dropout_key=dropout_key)


@pytest.fixture(scope="module")
def data():
  return jax.jit(lambda: (oracles.keys(NUM), oracles.gaussian_images(NUM)))()


def test_the_mean_is_the_closed_form_of_the_bound(data):
  """The entropy of the data and a small gap: 0.003 bits/dim for the prior, none for the decoder."""
  process = PROCESSES["linear_log_snr"]()
  values, bits, state = jax.jit(lambda k, x: loss_of(process, 0, k, x))(*data)
  assert state == {}
  assert set(bits) == {"prior", "diffusion", "reconstruction"}
  total = sum(map(np.asarray, bits.values()))
  np.testing.assert_allclose(total, values, rtol=1e-5, atol=1e-5)
  above, error = oracles.mean_and_error(np.asarray(values) - oracles.exact_bits(data[1]))
  expected = closed_form(*ENDS) - oracles.entropy_bits()
  assert 0 < expected < 0.005
  assert abs(above - expected) < 4 * error
  assert error < 0.2


def test_the_mean_over_even_times_of_a_line_has_the_closed_variance():
  """(u0 + i / B) mod 1 has the mean (B - 1) / (2 B) + (B u0 mod 1) / B: its variance is
  1 / (12 B^2), where that of B independent times is 1 / (12 B)."""
  num, draws = 16, 2000
  keys = jax.random.split(jax.random.key(3), draws)
  mean = jax.jit(jax.vmap(lambda k: jnp.mean(even_quantiles(BatchPosition(k, jnp.arange(num))))))
  found = np.float64(mean(keys))
  assert abs(found.mean() - 0.5) < 4 / (math.sqrt(12 * draws) * num)
  # The square of a uniform number's distance from its mean varies by its kurtosis, 9 / 5.
  error = math.sqrt((9 / 5 - 1) / draws)
  assert abs(12 * num**2 * np.mean((found - 0.5) ** 2) - 1) < 4 * error


quantiles = jax.jit(even_quantiles)


def test_times_of_a_batch_are_evenly_spread():
  for first in (0, 64, 6400):
    position = BatchPosition(jax.random.key(first), np.arange(first, first + 64, dtype=np.uint32))
    t = np.sort(np.asarray(quantiles(position)))
    np.testing.assert_allclose(np.diff(t), 1 / 64, atol=1e-6)
    assert 0 <= t[0] < 1 / 64


def test_microbatches_and_devices_keep_the_time_of_each_example():
  position = BatchPosition(jax.random.key(1), np.arange(640, 704, dtype=np.uint32))
  whole = np.asarray(quantiles(position))
  for part in (slice(0, None, 4), slice(16, 32)):
    np.testing.assert_array_equal(
      quantiles(position._replace(index=position.index[part])), whole[part]
    )


def test_the_mirrored_digits():
  index = np.asarray([0, 1, 2, 3, 6, 64_000, 2**24 - 1, 2**31 - 5, 2**32 - 1], np.uint32)
  expected = [int(f"{i:032b}"[::-1], 2) / 2**32 for i in index.tolist()]
  found = np.asarray(jax.jit(mirrored)(index))
  np.testing.assert_allclose(found, expected, atol=2**-24)
  assert found[-1] < 1


def test_an_own_loop_needs_no_step_and_no_indices(data):
  """Its times are as even, from the first example's key."""
  process, num = PROCESSES["linear_log_snr"](), 256
  keys, x0 = data[0][:num], data[1][:num]
  asked = []
  model = oracles.ExactDenoiser(process=process, estimate=lambda at, _: asked.append(at.t) or at.xt)

  @jax.jit
  def times():
    VDM()(model, Examples(x0), keys)
    return asked[0]

  np.testing.assert_allclose(np.diff(np.sort(times())), 1 / num, atol=1e-6)


def test_steps_are_refused(data):
  model = oracles.gaussian_denoiser(LinearVP(10))
  with pytest.raises(ValueError, match="differentiates the log-SNR in time; use a process in"):
    VDM()(model, Examples(data[1][:2]), data[0][:2])


@pytest.mark.parametrize("kind", [LearnedLinear, LearnedMonotone])
def test_the_gradient_moves_the_ends_as_the_bounds_derivative_does(kind, data):
  """d bound / d gamma(0), d gamma(1), in closed form; b moves both ends, w the last alone."""
  params, at = learned(kind)
  gradients = jax.jit(jax.vmap(
    lambda p, k, x, i: jax.grad(lambda p: loss_of(
      at(p), 5, k[None], x[None], i[None]).values[0])(p), (None, 0, 0, 0)))(
    params, *data, np.arange(NUM))  # fmt: skip
  h = 1e-4
  start, end = (
    (closed_form(*np.add(ENDS, d)) - closed_form(*np.subtract(ENDS, d))) / (2 * h)
    for d in ((h, 0), (0, h))
  )
  for name, expected in (("b", start + end), ("w", end)):
    mean, error = oracles.mean_and_error(gradients[name])
    assert abs(mean - expected) < 4 * error + 1e-4, name
  for name in set(gradients) - {"b", "w"}:
    for leaf in gradients[name].values():
      assert not np.asarray(leaf).any(), name  # while it is measured; see below for training


def mean_square(process):
  """E[(gamma'(t) SNR / 2 |x0 - x0_hat|^2)^2] over times and the oracle's data, in (bits/dim)^2.

  What is left of x0 is Gaussian: the mean of the square of its squared length is (sum of v)^2 +
  2 sum of v^2, v the variances along the axes.
  """
  t = (jnp.arange(400) + 0.5) / 400
  log_snr, slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))
  snr, variances = jnp.exp(log_snr)[:, None], jnp.asarray(oracles.VARIANCES, jnp.float32)
  left = snr * variances / (1 + snr * variances)
  fourth = jnp.square(left.sum(1)) + 2 * jnp.square(left).sum(1)
  return jnp.mean(jnp.square(0.5 * slope / (16 * math.log(2))) * fourth)


def test_the_interior_of_a_schedule_follows_the_gradient_of_the_mean_square(data):
  """Along its closed form, by quadrature, the loss's mean gradient is as long as that is."""
  schedule = LearnedMonotone(*ENDS, width=16)
  params = jax.device_get(jax.jit(schedule.init)(jax.random.key(2)))
  inside = lambda p: {n: p[n] for n in ("l1", "l2", "l3")}  # noqa: E731
  params["l3"]["weight"] = 8 * params["l3"]["weight"]  # far from a line

  def process(params):
    own = (functools.partial(f, params) for f in (schedule.gamma, schedule.interior_gamma))
    gamma, interior = own
    return Learned(gamma, *ENDS, interior)

  whole = lambda p: Learned(functools.partial(schedule.interior_gamma, p), *ENDS)  # noqa: E731
  flat = lambda p: jax.flatten_util.ravel_pytree(inside(p))[0]  # noqa: E731
  wanted = np.asarray(jax.jit(lambda p: flat(jax.grad(lambda p: mean_square(whole(p)))(p)))(params))

  def one(key, x0, index):
    def value(params):
      args = process(params), 5, key[None], x0[None], index[None]
      return loss_of(*args, dropout_key=jax.random.key(0)).values[0]

    return flat(jax.grad(value)(params)) @ wanted

  along = np.float64(jax.jit(jax.vmap(one))(*data, np.arange(NUM))) / float(wanted @ wanted)
  mean, error = oracles.mean_and_error(along)
  assert abs(mean - 1) < 4 * error
  assert error < 0.1


def test_the_bound_does_not_depend_on_the_schedule_between_its_ends(data):
  """The same images under a line and under a network far from it."""
  keys, x0 = data[0][:400], data[1][:400]
  params, at = learned(LearnedMonotone)
  params["l3"]["weight"] = np.append(np.full(100, np.float32(0.05)), params["l3"]["weight"][100:])
  line = jax.jit(lambda p: at(p)._gamma(jnp.asarray(0.5)))(params) - (ENDS[0] + ENDS[1]) / 2
  assert abs(float(line)) > 0.5
  bound = ContinuousBound(64)

  def bits(process):
    return bound.estimate(oracles.gaussian_denoiser(process), Examples(x0), keys).bits_per_dim

  straight, of_line = learned()
  found = jax.jit(lambda p, s: (bits(at(p)), bits(of_line(s))))(params, straight)
  found = np.asarray(found)
  mean, error = oracles.mean_and_error(found[0] - found[1])
  # They take the same places in the log-SNR and the same noise: only the inverse differs.
  assert abs(mean) < 1e-3
  assert error < 1e-3


def config(**sections):
  return build_experiment({
    "generative": {"name": "diffusion"},
    "process": {"name": "learned_linear", "gamma_min": -6.0, "gamma_max": 4.0},
    "model": {"name": "unet", "channels": 8, "multipliers": (1,), "num_blocks": 1,
              "attention_resolutions": ()},
    "loss": {"name": "vdm"}, "sampler": {"name": "probability_flow"}, "data": {"name": "digits"},
    "optimizer": {"name": "adam"}, **sections,
  })  # fmt: skip


SPEC = ImageSpec(4, 4, 1, 17, 3)


@dataclasses.dataclass(frozen=True)
class Tiny(NetworkBase):
  """A network that compiles in a moment: pixels with pixels, by the noise."""

  def create(self, spec, num_labels):
    def apply(params, x, time, condition, dropout_key=None):
      h = jnp.tanh(x.reshape(len(x), -1) @ params["a"] + time[:, None] / 1000)
      return (h @ params["b"]).reshape(x.shape)

    def init(key):
      a, b = jax.random.normal(key, (2, spec.num_dims, 256)) / 4
      return {"a": a, "b": b.T / 16}

    return Network(init, apply)


def batch(number, num=16):
  image = np.random.default_rng(number).integers(0, 17, (num, 4, 4, 1)).astype(np.uint8)
  index = np.arange(number * num, (number + 1) * num, dtype=np.uint32)
  return Batch(image, np.zeros(num, np.int32), np.ones(num, np.float32), index)


STEPS = 12


@functools.cache
def trained(process, devices, shape=None, parts=1, steps=2):
  """(states after each step, losses)."""
  sections = {**config(process={"name": process}).sections, "model": Tiny()}
  generative = sections["generative"].create(sections, SPEC)
  training = Training(batch_size=16, accumulation_steps=parts)
  optimizer = Adam(learning_rate=1e-2)
  mesh = create_mesh(shape or MeshShape(), jax.devices()[:devices])
  state, run = begin(generative, optimizer, training, mesh=mesh)
  states, losses = [], []
  for number in range(steps):
    state, scalars = run(state, batch(number))
    states.append(jax.device_get(state))
    losses.append(float(scalars["loss"]))
  return states, losses


@pytest.mark.costly
@pytest.mark.parametrize(
  ("devices", "shape", "parts"), [(8, None, 1), (8, MeshShape(1, 8), 1), (1, None, 4)]
)
def test_one_device_eight_shards_and_microbatches_train_the_same_schedule(devices, shape, parts):
  """The network has no dropout, which microbatches draw for themselves.

  Under fsdp its matrices are split.
  """
  states, losses = trained("learned_linear", 1, steps=STEPS)
  others, found = trained("learned_linear", devices, shape, parts)
  one, other = states[1], others[1]
  np.testing.assert_allclose(found, losses[:2], rtol=2e-6)
  for tree in ("params", "ema"):
    for name, value in getattr(one, tree)["process"].items():
      np.testing.assert_allclose(getattr(other, tree)["process"][name], value, rtol=1e-6)


@pytest.mark.parametrize("name", ["learned_linear", "learned_monotone"])
def test_training_moves_the_schedule_which_stays_monotone(name):
  state = trained(name, 1, steps=STEPS)[0][-1]
  schedule = {"learned_linear": LearnedLinear, "learned_monotone": LearnedMonotone}[name]()
  start = jax.jit(lambda key: schedule.init(jax.random.fold_in(key, 1)))(jax.random.key(0))
  process = state.params["process"]
  assert abs(process["b"] - np.asarray(start["b"])) > 0.02
  assert process["b"] != state.ema["process"]["b"]
  gamma = jax.jit(schedule.gamma)(process, np.linspace(0, 1, 301, dtype=np.float32))
  assert (np.diff(np.asarray(gamma)) > 0).all()


@pytest.mark.parametrize(
  ("sections", "words"),
  [
    ({"loss": {"name": "simple"}}, "learns its noise schedule.*`loss.name=vdm`"),
    ({"process": {"name": "linear_vp"}}, "needs a process in continuous time"),
  ],
)
def test_wrong_pairs_of_loss_and_process_are_refused(sections, words):
  with pytest.raises(UserError, match=words):
    config(**sections).create(SPEC)
