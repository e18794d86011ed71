"""An estimator of one's own: a section of the config, measured by the model and by the audit."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plug_ins import declared

from diffusion_jax.auditing import estimator_rows
from diffusion_jax.core import rng
from diffusion_jax.core.config import Override
from diffusion_jax.core.registry import broken_contract
from diffusion_jax.likelihood import (
  DIFFUSION_LIKELIHOODS,
  VAE_LIKELIHOODS,
  ContinuousBound,
  DescribedBase,
  Likelihood,
  LikelihoodBase,
  ProbabilityFlow,
  VAELikelihood,
)
from diffusion_jax.likelihood.outside import RESERVED
from diffusion_jax.processes import Denoiser, EDMProcess, Flow, LinearVP
from diffusion_jax.runs.changes import differences
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import Estimate, Examples, ImageSpec, UserError

POINTS = np.float32([[1.0, 0.5], [-0.3, 0.2], [0.0, -2.0]])


@dataclasses.dataclass(frozen=True)
class Loose(LikelihoodBase):
  """The bound in continuous time and some bits more, which are a bound too."""

  more: float = 0.5

  description = "a loose bound"

  @property
  def figure_name(self):
    return "loose"

  def serves(self, process):
    return process.num_timesteps is None

  def estimate(self, model, examples, keys):
    found = ContinuousBound(8).estimate(model, examples, keys)
    return Estimate(found.bits_per_dim + self.more, {})


@dataclasses.dataclass(frozen=True)
class Nameless(LikelihoodBase):
  """Forgets the name of its figure and the way that estimators are called."""

  def estimate(self, network, process, params, keys, x0, labels, num_levels):
    return Estimate(jnp.zeros(len(x0)), {})


CONFIG = {
  "generative": {"name": "diffusion", "prediction": "velocity"},
  "process": {"name": "flow"}, "model": {"name": "mlp"}, "loss": {"name": "flow_matching"},
  "sampler": {"name": "euler"}, "data": {"name": "digits"}, "optimizer": {"name": "adam"},
}  # fmt: skip
VAE_CONFIG = {
  "generative": {"name": "vae"}, "model": {"name": "conv_vae", "multipliers": (1,)},
  "decoder": {"name": "gaussian"}, "loss": {"name": "elbo"}, "iwae": {"num_draws": 7},
  "data": {"name": "digits"}, "optimizer": {"name": "adam"},
}  # fmt: skip


def test_one_that_is_added_is_a_section_and_a_figure_of_the_model(monkeypatch):
  monkeypatch.setitem(DIFFUSION_LIKELIHOODS, "loose", Loose)
  experiment = build_experiment({**CONFIG, "loose": {"more": 0.25}})
  assert experiment.sections["loose"] == Loose(0.25)
  assert "loose" in experiment.create(ImageSpec(4, 4, 1, 17, 3)).likelihoods


def test_every_likelihood_declares_its_words():
  declared = {**DIFFUSION_LIKELIHOODS, **VAE_LIKELIHOODS}
  assert all(cls.description and cls.card for cls in declared.values())


def test_the_models_give_what_their_likelihoods_declare(monkeypatch):
  monkeypatch.setitem(DIFFUSION_LIKELIHOODS, "loose", Loose)
  model = build_experiment({**CONFIG, "loose": {}}).create(ImageSpec(4, 4, 1, 17, 3))
  assert {*model.described_likelihoods} == {*model.likelihoods}
  assert model.described_likelihoods["loose"].description == "a loose bound"
  vae = build_experiment(VAE_CONFIG).create(ImageSpec(4, 4, 1, 17, 3))
  assert {*vae.described_likelihoods} == {*vae.likelihoods} == {"elbo", "iwae_7"}
  assert vae.described_likelihoods["elbo"].description == "evidence lower bound"


def test_what_one_lacks_is_said_when_the_config_is_read(monkeypatch):
  monkeypatch.setitem(DIFFUSION_LIKELIHOODS, "nameless", Nameless)
  with pytest.raises(
    UserError, match=r"likelihood=nameless: figure_name is missing .*; estimate m"
  ):
    build_experiment(CONFIG)


@pytest.mark.parametrize("cls", [*DIFFUSION_LIKELIHOODS.values(), *VAE_LIKELIHOODS.values()])
def test_every_name_of_this_package_is_reserved(cls):
  owners = [owner for name, owner in RESERVED.items() if re.fullmatch(name, cls().figure_name)]
  assert owners == [cls]


@pytest.mark.parametrize("cls", [*DIFFUSION_LIKELIHOODS.values(), Loose])
def test_estimators_keep_the_contract(cls):
  assert broken_contract(cls, Likelihood) is None


@pytest.mark.parametrize("cls", VAE_LIKELIHOODS.values())
def test_estimators_of_vaes_keep_theirs(cls):
  assert broken_contract(cls, VAELikelihood) is None


def test_the_audit_measures_it_and_fails_what_declares_nothing(monkeypatch):
  monkeypatch.setattr(estimator_rows, "PLACES", ("linear_vp", "edm"))
  (row,) = estimator_rows.audit_likelihoods({"loose": Loose})
  assert row.entry == "loose on edm"
  assert row.passed
  too_low = dataclasses.make_dataclass("Low", [("more", float, -2.0)], bases=(Loose,), frozen=True)
  (row,) = estimator_rows.audit_likelihoods({"low": too_low})
  assert not row.passed
  wrong = type("Wrong", (Loose,), {"estimates": "sometimes"})
  for cls, words in ((Nameless, "figure_name is missing"), (wrong, "estimates='sometimes' must")):
    (row,) = estimator_rows.audit_likelihoods({"own": cls})
    assert words in row.quantity
    assert not row.passed


@pytest.mark.costly
@pytest.mark.parametrize("estimator", [ContinuousBound(16), ProbabilityFlow(trace="exact")])
@pytest.mark.parametrize("process", [Flow(), EDMProcess()])
def test_points_in_the_plane_have_likelihoods(estimator, process):
  """As images of one pixel and two channels with the same numbers have."""

  @jax.jit
  def bits(x, keys):
    model = Denoiser(lambda x, *_: 0.5 * x, process, "edm")
    return estimator.estimate(model, Examples(x), keys).bits_per_dim

  keys = rng.example_keys(jax.random.key(0), jnp.arange(3))
  found = np.asarray(bits(POINTS, keys))
  assert np.isfinite(found).all()
  np.testing.assert_allclose(bits(POINTS.reshape(3, 1, 1, 2), keys), found, rtol=1e-4)


def test_steps_have_the_discrete_bound_of_points_too():
  model = Denoiser(lambda x, *_: 0.5 * x, LinearVP(20), "x0")
  keys = rng.example_keys(jax.random.key(0), jnp.arange(3))
  bound = DIFFUSION_LIKELIHOODS["vlb"](clip=False)
  run = jax.jit(lambda x: bound.estimate(model, Examples(x), keys).bits_per_dim)
  np.testing.assert_allclose(run(POINTS), run(POINTS.reshape(3, 1, 1, 2)), rtol=1e-5)


class TestFromOutside:
  """Classes of another package, named in `eval.likelihoods` as metrics are."""

  ENTRY = "test_own_likelihoods:Loose"

  def build(self, text, *more, raw=CONFIG):
    return build_experiment(raw, [Override("eval", "likelihoods", text), *more])

  def test_one_is_a_section_and_a_figure(self):
    experiment = self.build(f"vlb,{self.ENTRY}", Override("Loose", "more", "0.25"))
    assert experiment.sections["Loose"] == Loose(0.25)
    assert experiment.figure_names(experiment.eval.likelihoods) == ["vlb", "loose"]
    model = experiment.create(ImageSpec(4, 4, 1, 17, 3))
    assert model.described_likelihoods["loose"] is experiment.sections["Loose"]
    stored = json.loads(json.dumps(experiment.to_dict()))
    assert build_experiment(stored).sections["Loose"] == Loose(0.25)
    assert "Loose" not in self.build("all", raw=stored).sections

  def test_a_run_may_be_measured_by_another(self):
    before, after = build_experiment(CONFIG).to_dict(), self.build(self.ENTRY).to_dict()
    fatal, harmless = differences(before, after)
    assert not fatal
    assert {line.partition(":")[0] for line in harmless} == {"eval.likelihoods", "Loose.more"}

  def test_one_that_is_installed_has_its_own_name(self):
    with declared(theirs={"likelihood.mine": self.ENTRY}):
      experiment = self.build("mine", Override("mine", "more", "1"))
      names = experiment.figure_names(("mine",))
    assert names == ["loose"]
    assert experiment.sections["mine"] == Loose(1.0)
    assert "mine" not in build_experiment(CONFIG).sections

  @pytest.mark.parametrize(
    ("text", "words"),
    [
      (
        "test_own_likelihoods:Nameless",
        "likelihoods=test_own_likelihoods:Nameless: figure_name is",
      ),
      ("no_package:Bound", "config.eval.likelihoods=no_package:Bound: no such module"),
      ("test_own_likelihoods:Absent", "test_own_likelihoods has no class 'Absent'"),
      ("test_own_likelihoods:vlb", "there is a section vlb already|has no class 'vlb'"),
    ],
  )
  def test_what_is_wrong_is_one_line(self, text, words):
    with pytest.raises(UserError, match=words) as raised:
      self.build(text)
    assert "\n" not in str(raised.value)

  def test_two_of_one_name_are_refused(self):
    experiment = self.build("test_own_likelihoods:Loose,test_own_likelihoods:Again")
    with pytest.raises(UserError, match="Again has the name loose, as Loose does"):
      experiment.create(ImageSpec(4, 4, 1, 17, 3))

  @pytest.mark.parametrize("name", ["vlb", "probability_flow", "iwae_50", "elbo", "My bound", None])
  def test_a_name_of_this_package_is_refused(self, name, monkeypatch):
    """Also one that this kind of model does not have: its reports are compared with others."""
    monkeypatch.setattr(Loose, "figure_name", name)
    experiment = self.build(self.ENTRY)
    with pytest.raises(UserError, match=rf"Loose: figure_name is {name!r}"):
      experiment.create(ImageSpec(4, 4, 1, 17, 3))

  def test_an_elbo_from_outside_does_not_replace_that_of_a_vae(self, monkeypatch):
    monkeypatch.setitem(VAE_LIKELIHOODS, "own", OwnElbo)
    with pytest.raises(UserError, match="OwnElbo: figure_name is 'elbo', which is a likelihood of"):
      build_experiment(VAE_CONFIG).create(ImageSpec(4, 4, 1, 17, 3))


@dataclasses.dataclass(frozen=True)
class OwnElbo(DescribedBase):
  """An estimator for VAEs that is called as the model's own."""

  figure_name = "elbo"

  def estimate(self, log_weight, keys, num_dims):
    return Estimate(log_weight(keys), {})


@dataclasses.dataclass(frozen=True)
class Again(Loose):
  """Another with the same name."""
