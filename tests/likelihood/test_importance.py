"""The importance-weighted bound on a linear VAE, whose evidence and posterior are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from diffusion_jax.core import rng
from diffusion_jax.core.rng import Stream
from diffusion_jax.likelihood import ImportanceWeighted
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh

# x = W z + b + 0.5 noise, z ~ N(0, I).
W = np.asarray([[1, 0.2], [-0.5, 0.8], [0.3, -0.6], [0, 0.4]])
B = np.asarray([0.1, -0.2, 0, 0.3])
X = np.asarray([0.5, -1, 0.3, 0.8])
LOG_EVIDENCE = -3.8007885297
POSTERIOR_MEAN = np.asarray([0.50219795, -0.24080329])
POSTERIOR_COV = np.asarray([[0.1677386516, 0.0439590949], [0.0439590949, 0.1839341076]])

# q's mean and covariance -> ELBO and IWAE_2 in closed form or by quadrature (its digits), chi^2 of
# the posterior against q, and IWAE_5, _50 by Monte Carlo with its standard error.
ROWS = {
  "diagonal": (
    POSTERIOR_MEAN, np.diag(np.diag(POSTERIOR_COV)),
    -3.835266, (-3.817018, 1e-6), 0.066818, (-3.80724, -3.80134, 6e-5),
  ),
  "mean-field": (
    POSTERIOR_MEAN, np.diag(1 / np.diag(np.linalg.inv(POSTERIOR_COV))),
    -3.833129, (-3.817911, 1e-6), 0.082762, (-3.80814, -3.80147, 6e-5),
  ),
  "shifted": (
    np.asarray([0.3, -0.2]), np.diag([0.2, 0.3]),
    -4.089271, (-3.913456, 1e-6), 0.367160, (-3.84006, -3.80441, 1.4e-4),
  ),
  "prior": (
    np.zeros(2), np.eye(2), -8.263165, (-5.54, 5e-3), 2.808588, (-4.2708, -3.8306, 6e-4),
  ),
}  # fmt: skip
NUM = 20_000


@functools.cache
def keys(num, seed=0):
  return rng.example_keys(jax.random.key(seed), np.arange(num, dtype=np.uint32))


def gaussian(mean, cov):
  """The numbers of N(mean, cov) that its draws and densities take, in float32."""
  root = np.linalg.cholesky(cov)
  constant = 0.5 * len(cov) * math.log(2 * math.pi) + np.log(np.diag(root)).sum()
  return jax.tree.map(np.float32, (mean, root.T, np.linalg.inv(root).T, constant))


def log_normal(x, law):
  """log N(x; mean, cov) of each row, in float32."""
  mean, _, whitening, constant = law
  white = (x - mean) @ whitening
  return -0.5 * jnp.sum(white**2, axis=-1) - constant


def log_weight(law):
  """log p(x, z) - log q(z), z ~ q = `law`, for every key."""
  noise, prior = gaussian(np.zeros(4), 0.25 * np.eye(4)), gaussian(np.zeros(2), np.eye(2))

  def of(keys):
    z = rng.normal(keys, (2,)) @ law[1] + law[0]
    joint = log_normal(np.float32(X) - (z @ W.T.astype(np.float32) + B), noise)
    return joint + log_normal(z, prior) - log_normal(z, law)

  return of


@functools.cache
def program(num_draws, chunk):
  """The compiled bound of any `gaussian` q: (q, keys) -> bits/dim."""
  iwae = ImportanceWeighted(num_draws, chunk)
  return jax.jit(lambda law, keys: iwae.estimate(log_weight(law), keys, 4).bits_per_dim)


def bounds(num_draws, mean, cov, num=NUM, chunk=50, seed=0):
  """IWAE_K in nats, from `num` independent sets of K draws."""
  bits = program(num_draws, chunk)(gaussian(mean, cov), keys(num, seed))
  return -4 * math.log(2) * np.asarray(bits, np.float64)


def standard_error(values):
  return values.std(ddof=1) / math.sqrt(len(values))


def test_the_example_is_the_one_that_was_solved():
  assert stats.multivariate_normal(B, W @ W.T + 0.25 * np.eye(4)).logpdf(X) == pytest.approx(
    LOG_EVIDENCE, abs=1e-9
  )


@pytest.mark.parametrize("num_draws", [1, 2, 7, 50])
def test_the_exact_posterior_gives_the_evidence_without_variance(num_draws):
  found = bounds(num_draws, POSTERIOR_MEAN, POSTERIOR_COV, 4000)
  np.testing.assert_allclose(found, LOG_EVIDENCE, atol=2e-5)  # each draw, not only their mean


@pytest.mark.parametrize("name", ROWS)
def test_one_draw_is_the_elbo_and_more_are_the_known_bounds(name):
  mean, cov, elbo, (two, digits), _, (five, fifty, error) = ROWS[name]
  for num_draws, exact, uncertain in [(1, elbo, 1e-6), (2, two, digits), (5, five, error)]:
    found = bounds(num_draws, mean, cov)
    tolerance = math.hypot(standard_error(found), uncertain)
    assert abs(found.mean() - exact) < 4 * tolerance, num_draws
  found = bounds(50, mean, cov, 4000)
  assert abs(found.mean() - fifty) < 4 * math.hypot(standard_error(found), error)


@pytest.mark.parametrize("name", ROWS)
def test_bounds_rise_with_k_and_stay_below_the_evidence(name):
  mean, cov, elbo, *_ = ROWS[name]
  means, errors = [elbo], [0.0]
  for num_draws in (2, 8, 32, 128):
    found = bounds(num_draws, mean, cov, 4000, seed=1)
    means.append(found.mean())
    errors.append(standard_error(found))
  for i in range(4):
    assert means[i] <= means[i + 1] + 3 * math.hypot(errors[i], errors[i + 1])
    assert means[i + 1] <= LOG_EVIDENCE + 3 * errors[i + 1]


@pytest.mark.parametrize("name", ["diagonal", "shifted"])
def test_the_gap_closes_as_chi_squared_over_2k(name):
  """log p - IWAE_K = chi^2(posterior || q) / (2 K) + O(1 / K^2)."""
  mean, cov, _, _, chi2, _ = ROWS[name]
  found = bounds(50, mean, cov)
  gap, law = LOG_EVIDENCE - found.mean(), chi2 / 100
  assert abs(gap - law) < 4 * standard_error(found) + 0.1 * law


def test_thousands_of_draws_reach_the_evidence():
  mean, cov, *_ = ROWS["shifted"]
  found = bounds(5000, mean, cov, 100, chunk=500)
  print(f"IWAE_5000 {found.mean():.5f} ± {standard_error(found):.5f}, log p {LOG_EVIDENCE:.5f}")
  assert abs(found.mean() - LOG_EVIDENCE) < 4 * standard_error(found) + 0.367160 / 1e4
  assert standard_error(found) < 2e-3


@jax.jit
def one_weight(law, keys, k):
  return log_weight(law)(rng.numbered(rng.stream(keys, Stream.IMPORTANCE), k))


CHUNKS = 1, 3, 7, 64


@functools.cache
def by_chunk(num_draws):
  """The compiled bound in each chunk: (q, keys) -> chunk -> bits/dim."""

  def run(law, keys):
    iwaes = {chunk: ImportanceWeighted(num_draws, chunk) for chunk in CHUNKS}
    return {c: iwae.estimate(log_weight(law), keys, 4).bits_per_dim for c, iwae in iwaes.items()}

  return jax.jit(run)


@pytest.mark.parametrize("num_draws", [1, 7, 20])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_chunk_changes_nothing_and_every_draw_counts_once(num_draws, chunk):
  """Against weights that are drawn one by one and added in float64."""
  mean, cov, *_ = ROWS["shifted"]
  law = gaussian(mean, cov)
  each = [np.float64(one_weight(law, keys(30), k)) for k in range(num_draws)]
  expected = logsumexp(each, axis=0) - math.log(num_draws)
  found = -4 * math.log(2) * np.float64(by_chunk(num_draws)(law, keys(30))[chunk])
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_an_example_depends_on_its_own_key_alone():
  run = functools.partial(program(7, 3), gaussian(np.zeros(2), np.eye(2)))
  whole, part = np.asarray(run(keys(6))), np.asarray(run(keys(6)[4:]))
  np.testing.assert_allclose(part, whole[4:], rtol=1e-6)
  assert len(np.unique(whole)) == 6


def test_weights_far_below_the_range_of_exp_survive():
  iwae = ImportanceWeighted(4, 3)
  tiny = lambda k: jnp.full(k.shape[0], -2e4)  # noqa: E731
  run = jax.jit(lambda keys: iwae.estimate(tiny, keys, 10).bits_per_dim)
  np.testing.assert_allclose(run(keys(2)), 2e4 / (10 * math.log(2)), rtol=1e-6)


def test_impossible_options_are_refused():
  for fields in ({"num_draws": 0}, {"chunk": 0}):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=0 must be at least 1"):
      ImportanceWeighted(**fields)


def test_the_figure_is_named_after_k():
  assert ImportanceWeighted(5000).figure_name == "iwae_5000"


def test_it_is_the_same_on_eight_devices():
  run = functools.partial(program(7, 3), gaussian(np.zeros(2), np.eye(2)))
  mesh = create_mesh(MeshShape(), jax.devices()[:8])
  spread = jax.device_put(keys(16), sharding.batch_sharding(mesh))
  np.testing.assert_allclose(run(spread), run(keys(16)), rtol=1e-6)
