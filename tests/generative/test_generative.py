"""The models that a config's sections become."""

import itertools
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import moved
from scipy import stats

from diffusion_jax.core import rng
from diffusion_jax.core.registry import broken_contract
from diffusion_jax.generative import (
  CAPABILITIES,
  VAE,
  Diffusion,
  DiffusionModel,
  LatentDiffusionModel,
  ModelBase,
  VAEModel,
  require,
)
from diffusion_jax.generative.base import loss_keys
from diffusion_jax.likelihood import (
  DIFFUSION_LIKELIHOODS,
  VAE_LIKELIHOODS,
  ContinuousBound,
  ImportanceWeighted,
  ProbabilityFlow,
  Spectrum,
  VariationalBound,
)
from diffusion_jax.losses import ELBO, VDM, Simple
from diffusion_jax.models import (
  MLP,
  Bernoulli,
  ConvVAE,
  DiscretizedLogistic,
  Gaussian,
  Network,
  NetworkBase,
  UNet,
  VAENetworks,
)
from diffusion_jax.processes import LinearLogSNR, LinearVP
from diffusion_jax.runs.changes import differences
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.samplers import DDIM, Guidance
from diffusion_jax.types import Batch, Condition, FieldSpec, GenerativeModel, ImageSpec, UserError

SPEC = ImageSpec(4, 4, 1, 17, 3)
UNLABELLED = SPEC._replace(num_classes=0)
AUGMENTED = UNet(
  channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=(), augmentation_labels=9
)


def parts(**changes):
  return {
    "process": LinearVP(20, 1e-4, 0.02),
    "model": MLP(hidden=16, depth=1),
    "loss": Simple(),
    "sampler": DDIM(steps=3),
    "guidance": Guidance(),
    "spectrum": Spectrum(5),
    "vlb": VariationalBound(),
    "continuous_vlb": ContinuousBound(),
    "probability_flow": ProbabilityFlow(),
    **changes,
  }


def vae_parts(**changes):
  model = ConvVAE(latent_dim=3, channels=8, multipliers=(1,))
  own = {"model": model, "decoder": DiscretizedLogistic(), "loss": ELBO()}
  return {**own, "iwae": ImportanceWeighted(4, 3), **changes}


def batch(num=6):
  image = np.random.default_rng(0).integers(0, 17, (num, 4, 4, 1)).astype(np.uint8)
  return Batch(image, np.arange(num, dtype=np.int32) % 3, np.ones(num, np.float32),
               np.arange(num, dtype=np.uint32))  # fmt: skip


@pytest.mark.parametrize(
  ("config", "spec", "changes", "words"),
  [
    (Diffusion(conditional=True), UNLABELLED, {}, "has no labels"),
    (Diffusion(), SPEC, {"guidance": Guidance(2.0)}, "guidance.weight=2.0 needs"),
    (
      Diffusion(conditional=True, label_dropout=0.0),
      SPEC,
      {"guidance": Guidance(2.0)},
      "label_dropout=0",
    ),
    (Diffusion(), SPEC, {"sampler": DDIM(steps=21)}, "steps=21"),
    (
      Diffusion(augmentation=0.12),
      SPEC._replace(height=8, width=8),
      {"loss": VDM(), "process": LinearLogSNR(), "model": AUGMENTED},
      "needs exact pixel levels, which augmented images do not have",
    ),
  ],
)
def test_parts_that_do_not_fit_are_refused(config, spec, changes, words):
  with pytest.raises(ValueError, match=words):
    config.create(parts(**changes), spec)


def test_labels_are_hidden_as_often_as_asked_and_only_in_training():
  model = Diffusion(conditional=True, label_dropout=0.25).create(parts(), SPEC).conditioning
  index = np.arange(8000, dtype=np.uint32)
  keys, labels = rng.example_keys(jax.random.key(0), index), index.astype(np.int32) % 3
  given = Batch(np.zeros((8000, 1, 1, 1), np.uint8), labels, np.ones(8000, np.float32), index)
  hidden = np.asarray(jax.jit(model.in_training)(keys, given, jax.random.key(1)).label)
  share = np.mean(hidden == 3)
  assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8000)
  assert (hidden[hidden != 3] == labels[hidden != 3]).all()
  assert (model.in_training(keys, given, None).label == labels).all()


FIELDS = {"code": FieldSpec((3,), "float32"), "other": FieldSpec((2,), "float32")}
NAMED = SPEC._replace(fields=FIELDS)


def test_named_arrays_are_hidden_together_with_the_label_if_they_are_named():
  config = Diffusion(
    conditional=True, label_dropout=0.5, fields=("code", "other"), dropped=("label", "code")
  )
  model = config.create(parts(), NAMED).conditioning
  given = batch(200)._replace(fields={"code": np.ones((200, 3)), "other": np.ones((200, 2))})
  keys = rng.example_keys(jax.random.key(0), given.index)
  found = model.in_training(keys, given, jax.random.key(1))
  gone = np.asarray(found.label) == 3
  assert 60 < gone.sum() < 140
  np.testing.assert_array_equal(found.fields["code"], np.tile(~gone[:, None], (1, 3)))
  np.testing.assert_array_equal(found.fields["other"], 1)


@pytest.mark.costly
def test_a_model_is_trained_measured_and_sampled_with_a_named_array():
  """Each figure depends on the array, and guidance moves away from the array of zeros."""
  config = Diffusion(fields=("code",), dropped=("code",), label_dropout=0.1)
  model = config.create(parts(guidance=Guidance(2.0)), NAMED)
  assert model.fields == ("code",)
  params = moved(jax.jit(model.init)(jax.random.key(0))[0])
  code = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  own = batch()._replace(fields={"code": code, "other": np.zeros((6, 2), np.float32)})
  other = own._replace(fields={**own.fields, "code": code + 1})
  key, keys = jax.random.key(1), example_keys(6)
  loss = jax.jit(lambda b, train: model.loss(params, {}, key, b, train=train).values,
                 static_argnums=1)  # fmt: skip
  bound = jax.jit(lambda b: model.likelihoods["vlb"](params, keys, b).bits_per_dim)
  spectrum = jax.jit(lambda b: model.loss_by_log_snr(params, keys, b).eps_mse)
  sample = jax.jit(
    lambda b: model.sample(params, keys, Condition(fields={"code": b.fields["code"]})).images
  )
  for function in (lambda b: loss(b, True), lambda b: loss(b, False), bound, spectrum, sample):
    assert np.abs(np.asarray(function(own)) - function(other)).max() > 1e-4
  zeros = own._replace(fields={"code": 0 * code})
  np.testing.assert_allclose(jax.jit(model.sample)(params, keys).images, sample(zeros), atol=1e-5)


def test_named_arrays_that_are_not_there_are_refused():
  with pytest.raises(
    ValueError, match="fields=text: the data set has the named arrays: code, other"
  ):
    Diffusion(fields=("text",)).create(parts(), NAMED)
  with pytest.raises(ValueError, match="dropped=code is not given to the network; allowed: label"):
    Diffusion(dropped=("code",)).create(parts(), NAMED)
  always = Diffusion(fields=("code",)).create(parts(), NAMED)
  with pytest.raises(UserError, match=r"lacks 'code', which this model was never trained without"):
    always.sample({}, example_keys(2))
  with pytest.raises(ValueError, match=r"guidance\.weight=2\.0 needs"):
    Diffusion(fields=("code",)).create(parts(guidance=Guidance(2.0)), NAMED)


def test_a_diffusion_model_has_what_it_claims():
  generative = Diffusion(conditional=True).create(parts(guidance=Guidance(2.0)), SPEC)
  assert set(generative.likelihoods) == {"vlb"}
  assert generative.capabilities == {"denoise", "guide", "trajectory", "loss_by_log_snr", "edit"}
  with pytest.raises(UserError, match=r"this model \(diffusion\) cannot reconstruct: it has no"):
    generative.encode({}, jax.random.key(0), batch())
  assert generative.num_classes == 3
  params, aux = jax.jit(generative.init)(jax.random.key(0))
  assert aux == {}
  samples = jax.jit(generative.sample)(params, example_keys(2), Condition(np.asarray([0, 2])))
  assert samples.images.shape == (2, 4, 4, 1)
  assert samples.num_evaluations == 6


@pytest.mark.parametrize("model", [DiffusionModel, LatentDiffusionModel, VAEModel, ModelBase])
def test_models_keep_the_contract_and_name_what_they_lack(model):
  assert broken_contract(model, GenerativeModel) is None
  for capability in CAPABILITIES:
    with pytest.raises(UserError, match=f"cannot {re.escape(CAPABILITIES[capability][:20])}"):
      require(ModelBase(), capability)


def test_an_untrained_eps_model_loses_the_variance_of_the_noise():
  """The output starts at 0, so the loss of an example is the mean of eps^2: 1 on average."""
  generative = Diffusion().create(parts(), SPEC)
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  loss, metrics, _ = jax.jit(generative.loss, static_argnames="train")(
    params, {}, jax.random.key(1), batch(300), train=True
  )
  assert metrics == {}
  assert abs(np.mean(np.asarray(loss)) - 1.0) < 5 * np.sqrt(2 / (300 * 16))


def test_a_vaes_likelihood_is_its_loss_in_bits():
  generative = VAE().create(vae_parts(), SPEC)
  assert generative.capabilities == {"encode"}
  assert generative.num_levels == 17
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  elbo = jax.jit(generative.likelihoods["elbo"])
  estimate = jax.device_get(elbo(params, example_keys(6), batch()))
  np.testing.assert_allclose(
    estimate.bits_per_dim, estimate.terms["reconstruction"] + estimate.terms["kl"], rtol=1e-5
  )
  # The loss draws its z from its examples' keys.
  loss_key = jax.random.key(7)
  keys = loss_keys(loss_key, batch(), train=False).examples
  estimate = elbo(params, keys, batch())
  loss, metrics, _ = jax.device_get(
    jax.jit(generative.loss, static_argnames="train")(params, {}, loss_key, batch(), train=False)
  )
  np.testing.assert_allclose(loss / (16 * np.log(2)), estimate.bits_per_dim, rtol=1e-5)
  np.testing.assert_allclose(metrics["reconstruction_nats"] + metrics["kl_nats"], loss, rtol=1e-5)


def test_a_bernoulli_vae_counts_two_levels():
  assert VAE().create(vae_parts(decoder=Bernoulli()), SPEC).num_levels == 2


def test_encode_then_decode_has_the_images_shape():
  generative = VAE().create(vae_parts(), SPEC)

  def images(key):
    params, _ = generative.init(key)
    return generative.decode(params, generative.encode(params, key, batch()))

  found = np.asarray(jax.jit(images)(jax.random.key(0)))
  assert found.shape == (6, 4, 4, 1)
  assert np.isfinite(found).all()


# ---- Likelihoods, spectrum, trajectory ----------------------------------------------------------


def example_keys(num):
  return rng.example_keys(jax.random.key(4), np.arange(num, dtype=np.uint32))


def seen_labels(asked):
  """A network config whose output is a tenth of the label, and that notes the labels it gets."""

  class Model(NetworkBase):
    def create(self, spec, num_labels):
      def apply(params, xt, time, condition, dropout_key):
        labels = condition.label
        asked.append(None if labels is None else labels.shape)
        value = 0.0 if labels is None else 0.1 * labels[:, None, None, None]
        return 0 * xt + value

      return Network(lambda key: {}, apply)

  return Model()


@pytest.mark.parametrize("name", ["vlb", "spectrum"])
def test_figures_of_a_conditional_model_are_given_the_label(name):
  """x0 is a tenth of the label: with its own label every estimate is exact."""
  config = Diffusion(prediction="x0", conditional=True)
  spec = SPEC._replace(num_levels=None)
  generative = config.create(parts(model=seen_labels([])), spec)
  labels = np.asarray([0, 1, 2, 1, 0, 2], np.int32)
  image = np.float32(0.1) * np.ones((6, 4, 4, 1), np.float32) * labels[:, None, None, None]
  own = Batch(image, labels, np.ones(6, np.float32), np.arange(6, dtype=np.uint32))
  other = own._replace(label=(labels + 1) % 3)
  if name == "spectrum":
    run = jax.jit(generative.loss_by_log_snr)
    right, wrong = (run({}, example_keys(6), b).eps_mse for b in (own, other))
    np.testing.assert_allclose(right, 0, atol=1e-9)
    assert (np.asarray(wrong) > 1e-6).all()
  else:
    run = jax.jit(generative.likelihoods["vlb"])
    right, wrong = (run({}, example_keys(6), b) for b in (own, other))
    assert (np.asarray(wrong.bits_per_dim) > np.asarray(right.bits_per_dim) + 0.1).all()


def test_an_unconditional_model_gets_no_labels():
  asked = []
  generative = Diffusion(prediction="x0").create(parts(model=seen_labels(asked)), SPEC)
  for function in (generative.loss_by_log_snr, generative.likelihoods["vlb"]):
    before = len(asked)
    jax.eval_shape(function, {}, example_keys(6), batch())
    assert len(asked) > before
  assert set(asked) == {None}


def test_an_untrained_eps_models_spectrum_is_one():
  """It predicts no noise at all: the error is the mean of eps^2 at every level."""
  generative = Diffusion().create(parts(), SPEC)
  params, _ = jax.jit(generative.init)(jax.random.key(0))
  found = jax.jit(generative.loss_by_log_snr)(params, example_keys(300), batch(300))
  assert found.log_snr.shape == (5,)
  assert (np.diff(found.log_snr) > 0).all()
  assert found.eps_mse.shape == (300, 5)
  away = np.mean(np.asarray(found.eps_mse), axis=0) - 1.0
  assert np.abs(away).max() < 5 * np.sqrt(2 / (300 * 16))


@pytest.mark.parametrize("num_levels", [17, None])
def test_the_bound_of_a_constant_estimate_at_its_levels(num_levels):
  """x0 = the estimate of 0: the KLs are the variances' part alone, and the pixel is certain."""
  generative = Diffusion(prediction="x0").create(
    parts(model=seen_labels([]), vlb=VariationalBound("fixed_small")),
    SPEC._replace(num_levels=num_levels),
  )
  image = np.full((2, 4, 4, 1), 8 if num_levels else 0, np.uint8 if num_levels else np.float32)
  certain = Batch(
    image, np.zeros(2, np.int32), np.ones(2, np.float32), np.arange(2, dtype=np.uint32)
  )
  estimate = jax.jit(generative.likelihoods["vlb"])({}, example_keys(2), certain)
  np.testing.assert_allclose(estimate.terms["denoising"], 0, atol=1e-12)
  variance = VariationalBound("fixed_small").variances(LinearVP(20, 1e-4, 0.02))[0]
  nats = 0.5 * np.log(2 * np.pi * variance) if num_levels is None else 0.0
  np.testing.assert_allclose(estimate.terms["reconstruction"], nats / np.log(2), atol=1e-5)


def test_the_trajectory_ends_at_the_samples_images():
  generative = Diffusion(conditional=True).create(parts(guidance=Guidance(3.0)), SPEC)
  params = moved(jax.jit(generative.init)(jax.random.key(0))[0])
  keys, labels = example_keys(3), Condition(np.asarray([0, 2, 1]))
  trajectory = jax.jit(generative.trajectory)
  states = np.asarray(trajectory(params, keys, labels))
  samples = jax.jit(generative.sample)(params, keys, labels)
  assert samples.estimates is None
  assert states.shape == (3, 3, 4, 4, 1)
  np.testing.assert_allclose(states[-1], samples.images, atol=1e-5)
  unlabelled = np.asarray(trajectory(params, keys))
  assert np.abs(unlabelled - states).max() > 1e-3


def test_the_trajectory_is_of_the_guided_estimate():
  """Label / 10 with guidance 2 from the null class 3 is 0.3 + 2 (label / 10 - 0.3)."""
  config = Diffusion(prediction="x0", conditional=True)
  generative = config.create(parts(model=seen_labels([]), guidance=Guidance(2.0)), SPEC)
  states = np.asarray(jax.jit(generative.trajectory)({}, example_keys(3), Condition(np.arange(3))))
  expected = 0.3 + 2 * (np.arange(3) / 10 - 0.3)
  np.testing.assert_allclose(states[:, :, 0, 0, 0], np.tile(expected, (3, 1)), atol=1e-6)


# x = W z + b + 0.5 noise, z ~ N(0, I): W's columns are orthogonal, so the posterior is diagonal.
W = np.asarray([[1.0, 0.5], [-1.0, 0.5], [0.4, 0.0], [0.0, -0.8]])
B = np.asarray([0.1, -0.2, 0.0, 0.3])
PRECISION = np.diag(W.T @ W) / 0.25 + 1


class LinearVAE:
  """The linear model as a VAE's networks; its encoder is the exact posterior, or a wider one."""

  def __init__(self, widening=1.0):
    self.widening = widening

  def create(self, spec, num_outputs):
    def encode(params, x, dropout_key=None):
      mean = (x.reshape(-1, 4) - B) @ (W / 0.25 / PRECISION)
      return mean.astype(jnp.float32), 0 * mean - np.log(PRECISION) + np.log(self.widening)

    def decode(params, z, dropout_key=None):
      return (z @ W.T + B).reshape(-1, 4, 1, 1)

    return VAENetworks(lambda key: {}, encode, decode, 2)


def linear_vae(widening=1.0, num_draws=5):
  spec = ImageSpec(4, 1, 1, None, 0)
  own = vae_parts(
    model=LinearVAE(widening), decoder=Gaussian(0.5), iwae=ImportanceWeighted(num_draws, 2)
  )
  return VAE().create(own, spec)


def evidence_bits(num):
  """Observations of the model, as a batch, and their exact -log2 p(x) a dimension."""
  law = stats.multivariate_normal(B, W @ W.T + 0.25 * np.eye(4))
  x = law.rvs(num, random_state=0)
  zeros = np.zeros(num, np.int32)
  image = x.astype(np.float32).reshape(num, 4, 1, 1)
  made = Batch(image, zeros, np.ones(num, np.float32), np.arange(num, dtype=np.uint32))
  return made, -law.logpdf(x) / (4 * np.log(2))


@pytest.mark.parametrize("num_draws", [1, 2, 5])
def test_a_vae_with_the_exact_posterior_gives_the_evidence_of_each_example(num_draws):
  observed, exact = evidence_bits(50)
  generative = linear_vae(num_draws=num_draws)
  assert set(generative.likelihoods) == {"elbo", f"iwae_{num_draws}"}
  found = jax.jit(generative.likelihoods[f"iwae_{num_draws}"])({}, example_keys(50), observed)
  np.testing.assert_allclose(found.bits_per_dim, exact, atol=2e-5)


def test_a_vaes_bounds_are_ordered():
  """ELBO >= IWAE_K >= -log p in bits, within 3 standard errors of the differences."""
  num, draws = 4000, (1, 5, 50)
  observed, exact = evidence_bits(num)
  figures = [linear_vae(2.0, k).likelihoods[f"iwae_{k}"] for k in draws]
  found = [jax.jit(f)({}, example_keys(num), observed).bits_per_dim for f in figures]
  elbo = jax.jit(linear_vae(2.0).likelihoods["elbo"])({}, example_keys(num), observed).bits_per_dim
  chain = [np.float64(v) for v in (elbo, *found, exact)]
  # KL(q || posterior) of a variance twice too large: (1 - log 2) / 2 nats each of 2 dimensions.
  same = chain[0] - chain[1]
  assert abs(same.mean()) < 4 * same.std() / np.sqrt(num)
  gap = chain[0] - chain[-1]
  assert abs(gap.mean() - (1 - np.log(2)) / (4 * np.log(2))) < 4 * gap.std() / np.sqrt(num)
  for larger, smaller in itertools.pairwise(chain[1:]):
    difference = larger - smaller
    assert difference.mean() > -3 * difference.std() / np.sqrt(num)


def test_every_registered_likelihood_is_a_section_and_is_wired():
  assert set(DIFFUSION_LIKELIHOODS) < set(Diffusion.sections)
  assert set(VAE_LIKELIHOODS) < set(VAE.sections)
  assert len(linear_vae().likelihoods) == 1 + len(VAE_LIKELIHOODS)


@pytest.mark.parametrize("kind", ["ddpm_digits", "vae_digits"])
def test_a_run_from_before_these_sections_continues(kind, root):
  """They say how a model is measured: an old config.json lacks them."""
  raw = runpy.run_path(str(root / "configs" / f"{kind}.py"))["get_config"]().to_dict()
  now = build_experiment(raw).to_dict()
  new = {"spectrum", *DIFFUSION_LIKELIHOODS, *VAE_LIKELIHOODS} & set(now)
  assert new
  before = {n: v for n, v in now.items() if n not in new}
  fatal, harmless = differences(before, now)
  assert fatal == []
  assert {text.split(".")[0] for text in harmless} == new
