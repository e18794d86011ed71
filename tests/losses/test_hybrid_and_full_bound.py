"""The hybrid loss and the full bound, term by term against the estimator and against gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.auditing import oracles
from diffusion_jax.auditing.estimator_rows import ddpm_bound_bits, learned_bound_bits
from diffusion_jax.core import rng
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.likelihood import VariationalBound
from diffusion_jax.losses import BatchPosition, FullBound, Hybrid, Simple, loss_aware_times
from diffusion_jax.processes import Denoiser, Flow, LinearVP
from diffusion_jax.types import Examples

PROCESS = LinearVP(20, 0.01, 0.5)
NUM = 12
KEYS = rng.example_keys(jax.random.key(0), np.arange(NUM))
X0 = from_levels(np.random.default_rng(0).integers(0, 17, (NUM, 3, 3, 2)), 17)
PARAMS = {"mean": np.float32(0.6), "variance": np.float32(0.4)}


def model(params=PARAMS, prediction="eps"):
  """One number for the output, one for the variance logits."""

  def output(xt, time, condition, key):
    return jnp.concatenate([params["mean"] * xt, params["variance"] * jnp.tanh(xt)], axis=-1)

  return Denoiser(output, PROCESS, prediction, learned_variance=True)


def examples(num_levels: int | None = 17):
  return Examples(X0, index=np.arange(NUM), step_key=jax.random.key(1), num_levels=num_levels)


def output(loss, params=PARAMS, prediction="eps", num_levels: int | None = 17, **options):
  return loss(model(params, prediction), examples(num_levels), KEYS, **options)


def at_step(t, function, eps=None):
  """What a function gives where every image's time is step t, which may be traced."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rng, "uniform", lambda keys: jnp.full(NUM, (t - 0.5) / 20))
    if eps is not None:
      patch.setattr(rng, "normal", lambda keys, shape: eps)
    return function()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
def test_hybrid_is_simple_and_a_thousandth_of_the_bound(prediction):
  """At the same times and noise; L_vlb has the factor T of one uniform t, in bits/dim."""

  @jax.jit
  def run(params):
    losses = Simple(), FullBound("uniform"), Hybrid(), Hybrid(0.1)
    return [output(loss, params, prediction) for loss in losses]

  (simple, *_), (bound, *_), (hybrid, metrics, _), (heavier, *_) = jax.device_get(run(PARAMS))
  np.testing.assert_allclose(metrics["simple"], simple, rtol=2e-4)
  np.testing.assert_allclose(metrics["vlb_bits_per_dim"], bound, rtol=1e-6)
  np.testing.assert_allclose(hybrid, metrics["simple"] + np.float32(0.001) * bound, rtol=1e-6)
  assert (heavier > hybrid).any()


def test_the_bound_of_hybrid_trains_the_variance_alone():
  @jax.jit
  def gradients(params):
    mean = lambda p, loss: jnp.mean(output(loss, p).values)  # noqa: E731
    return [jax.grad(mean)(params, v) for v in (Hybrid(0.5), Simple(), FullBound("uniform"))]

  hybrid, simple, bound = jax.device_get(gradients(PARAMS))
  np.testing.assert_allclose(hybrid["mean"], simple["mean"], rtol=1e-5)
  np.testing.assert_allclose(hybrid["variance"], 0.5 * bound["variance"], rtol=1e-5)
  assert float(simple["variance"]) == 0
  assert abs(bound["mean"]) > 1e-2
  assert abs(bound["variance"]) > 1e-2


@pytest.mark.parametrize("num_levels", [17, None])
def test_over_all_steps_the_full_bound_is_the_estimators(num_levels):
  """With one noise for every step: the mean of prior + T L_t over t is the sum of all terms."""
  eps = jnp.asarray(normal(7, *X0.shape))
  bound = VariationalBound("learned", clip=False)

  @jax.jit
  def exact(params):
    args = model(params), examples(num_levels), KEYS
    return at_step(1, lambda: bound.estimate(*args).bits_per_dim, eps)

  @jax.jit
  def both(params, t):
    losses = FullBound("uniform"), FullBound("importance")
    return at_step(
      t, lambda: [output(v, params, num_levels=num_levels).values for v in losses], eps
    )

  found, seen = np.moveaxis([np.asarray(both(PARAMS, t)) for t in range(1, 21)], 1, 0)
  np.testing.assert_allclose(np.mean(found, axis=0), exact(PARAMS), rtol=2e-5)
  np.testing.assert_allclose(seen, found, rtol=1e-5)  # an empty history draws uniformly


def test_importance_weights_leave_the_mean_alone():
  """Sum over t of p_t (L_t / p_t) is the bound, whatever the history."""
  num, process = 4000, LinearVP(30, 1e-3, 0.3)
  loss, denoiser = FullBound(), oracles.gaussian_denoiser(process)

  @jax.jit
  def draw(state, key, x0, dropout_key):
    keys, few = rng.example_keys(key, jnp.arange(num)), Examples(x0, step_key=key)
    return loss(denoiser, few, keys, state=state, dropout_key=dropout_key)

  def run(state, seed, dropout_key):
    along = normal(seed, num, oracles.NUM_DIMS) * np.sqrt(oracles.VARIANCES)
    x0 = np.float32(along @ oracles.AXES.T).reshape(num, *oracles.SHAPE)
    return draw(state, jax.random.key(seed), x0, dropout_key)

  first, _, state = run(loss.initial_state(process), 3, jax.random.key(0))
  assert (np.asarray(state["age"]) > 0).all()
  weighted = run(state, 5, None).values
  uniform = run(loss.initial_state(process), 5, None).values
  mean, error = oracles.mean_and_error(weighted)
  assert abs(mean - learned_bound_bits(process)) < 4 * error
  assert error < 0.5 * oracles.mean_and_error(uniform)[1]
  mean, error = oracles.mean_and_error(first)
  assert abs(mean - learned_bound_bits(process)) < 4 * error


def test_the_oracles_bound_is_the_least_of_its_kind():
  """Above the entropy, below either fixed variance."""
  process = LinearVP()
  fixed = [
    np.mean([ddpm_bound_bits(process, v**0.5, large) for v in oracles.VARIANCES])
    for large in (False, True)
  ]
  assert oracles.entropy_bits() < learned_bound_bits(process) < min(fixed)


def test_only_training_changes_the_state():
  start = FullBound().initial_state(PROCESS)

  @jax.jit
  def states(params):
    keys = None, jax.random.key(0)
    return [output(FullBound(), params, state=start, dropout_key=key).state for key in keys]

  measured, trained = jax.device_get(states(PARAMS))
  assert all((measured[n] == v).all() for n, v in start.items())
  assert int((trained["age"] > 0).sum()) == NUM
  assert jax.tree.structure(trained) == jax.tree.structure(start)
  assert FullBound("uniform").initial_state(PROCESS) == {}


def test_an_own_loop_without_steps_and_indices_has_a_history_too():
  """The examples of each call are numbered on from those before, and a key is a step."""

  @jax.jit
  def run(state, key):
    keys = rng.example_keys(key, jnp.arange(NUM))
    out = FullBound()(model(), Examples(X0), keys, state=state, dropout_key=key)
    return out.state

  state = FullBound().initial_state(PROCESS)
  for step in range(3):
    state = run(state, jax.random.key(step))
  ages = np.asarray(state["age"])
  assert sorted(ages[ages > 0]) == list(range(1, 3 * NUM + 1))


def test_steps_and_variances_are_needed():
  plain = Denoiser(lambda x, *_: x, PROCESS)
  timeless = Denoiser(lambda x, *_: x, Flow(), "velocity", learned_variance=True)
  for loss in (Hybrid(), FullBound()):
    shaped = lambda model, loss=loss: jax.eval_shape(  # noqa: E731
      lambda keys: loss(model, examples(), keys), KEYS
    )
    with pytest.raises(ValueError, match="learned_variance=False: this loss trains variances"):
      shaped(plain)
    with pytest.raises(ValueError, match="trains variances of steps, and it has no steps"):
      shaped(timeless)


def test_extreme_outputs_leave_gradients_finite():
  """Far from the data at every step, and variances far beyond beta."""
  wild = {"mean": np.float32(300.0), "variance": np.float32(20.0)}

  @jax.jit
  def slopes(params, t):
    losses = Hybrid(), FullBound("uniform")
    mean = lambda p, loss: jnp.mean(output(loss, p).values)  # noqa: E731
    return at_step(t, lambda: [jax.grad(mean)(params, loss) for loss in losses])

  for t in (1, 2, 20):
    assert all(np.isfinite(v) for slope in slopes(wild, t) for v in slope.values())


def test_impossible_fields_are_refused():
  with pytest.raises(ValueError, match=r"weight=0.0 must be positive, e\.g\. 0\.001"):
    Hybrid(0.0)


# ---- The history --------------------------------------------------------------------------------


class BruteForce:
  """Lists of everything, cut at the end."""

  def __init__(self, num):
    self.seen = [[] for _ in range(num)]

  def add(self, index, number, terms):
    for i, t, v in sorted(zip(index, number, terms, strict=True)):
      self.seen[t - 1].append((i, v * v))

  def last(self):
    return [entries[-10:] for entries in self.seen]

  def probabilities(self):
    if any(len(entries) < 10 for entries in self.seen):
      return np.full(len(self.seen), 1 / len(self.seen))
    root = np.sqrt([np.mean([v for _, v in entries]) for entries in self.last()])
    return 0.999 * root / root.sum() + 0.001 / len(root)


begin, remember = jax.jit(loss_aware_times.begin), jax.jit(loss_aware_times.remember)


def test_the_history_against_lists():
  """Batches in which a step occurs often, of which more than ten times in one batch."""
  rng, num, batch = np.random.default_rng(0), 5, 32
  memory, lists = loss_aware_times.empty(num), BruteForce(num)
  uniform_until = None
  for step in range(12):
    position = BatchPosition(jax.random.key(step), np.arange(batch) + step * batch)
    memory = begin(memory, position)
    np.testing.assert_allclose(memory["probability"], lists.probabilities(), rtol=1e-5)
    if uniform_until is None and not np.allclose(memory["probability"], 1 / num):
      uniform_until = step
    number = rng.choice(num, batch, p=[0.6, 0.2, 0.1, 0.07, 0.03]) + 1
    terms = rng.exponential(size=batch) * number
    memory = jax.device_get(remember(memory, position, number, np.float32(terms)))
    lists.add(position.index, number, np.float32(terms))
    for row, entries in enumerate(lists.last()):
      there = memory["age"][row] > 0
      assert memory["age"][row][there].tolist() == [i + 1 for i, _ in entries]
      kept = memory["squares"][row][there]
      np.testing.assert_allclose(kept, [v for _, v in entries], rtol=1e-6)
  assert uniform_until > 2


def test_the_history_survives_four_billion_images():
  """The last ten of each step are the same wherever the numbers pass 2^32."""

  def squares(first, num=3, batch=16):
    rng, memory = np.random.default_rng(2), loss_aware_times.empty(num)
    for step in range(8):
      index = (first + np.arange(batch) + step * batch).astype(np.uint32)
      number, terms = rng.integers(1, num + 1, batch), np.float32(rng.exponential(size=batch))
      memory = remember(memory, BatchPosition(jax.random.key(step), index), number, terms)
    assert (np.asarray(memory["age"]) > 0).all()
    return np.asarray(memory["squares"])

  before = squares(0)
  for past in (16, 40, 48, 127):
    np.testing.assert_array_equal(squares(2**32 - past), before)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_remembered_as_a_whole(parts):
  """Every parts-th example together, as the step cuts them."""
  rng, whole, cut = np.random.default_rng(1), loss_aware_times.empty(3), loss_aware_times.empty(3)
  for step in range(4):
    index, number = np.arange(32) + 32 * step, rng.integers(1, 4, 32)
    terms, key = np.float32(rng.normal(size=32)), jax.random.key(step)
    everything = BatchPosition(key, index)
    whole = begin(whole, everything)
    drawn_by = np.asarray(whole["probability"])
    whole = jax.device_get(remember(whole, everything, number, terms))
    for part in range(parts):
      rows = slice(part, None, parts)
      position = BatchPosition(key, index[rows])
      cut = begin(cut, position)
      assert (np.asarray(cut["probability"]) == drawn_by).all()
      cut = jax.device_get(remember(cut, position, number[rows], terms[rows]))
    assert all((whole[n] == cut[n]).all() for n in whole)
  found = jax.jit(loss_aware_times.probabilities)(whole["squares"], whole["age"])
  assert np.ptp(np.asarray(found)) > 0.01


def test_a_time_is_drawn_exactly_as_often_as_its_weight_says():
  """Over every uniform number that float32 draws: 2^23 of them, 4,000 steps from 1e-7 to 1e-2."""
  size = np.geomspace(1e-6, 1, 4000)
  squares = np.repeat(np.float32(size[:, None] ** 2), 10, axis=1)
  probability = jax.jit(loss_aware_times.probabilities)(squares, np.ones((4000, 10), np.uint32))
  probability = np.asarray(probability)
  np.testing.assert_allclose(probability.sum(), 1, rtol=1e-5)
  assert probability.min() > 0.001 / 4000 * 0.99
  uniform = np.arange(2**23, dtype=np.float32) / np.float32(2**23)
  drawn = jax.device_get(jax.jit(loss_aware_times.draw_times)(probability, uniform))
  counts = np.bincount(drawn.number, minlength=4001)[1:]
  assert counts.min() >= 1
  weight = np.zeros(4000)
  weight[drawn.number - 1] = drawn.probability
  np.testing.assert_array_equal(counts / 2**23, weight)
  np.testing.assert_allclose(weight, probability, atol=2.5 / 2**23)
