"""The audit: it passes on what is registered, and fails what is wrong or says nothing of itself."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from diffusion_jax import audit
from diffusion_jax.auditing import AUDITS, audit_processes, choose_entries, linear_vae, oracles
from diffusion_jax.auditing.estimator_rows import audit_likelihoods, ddpm_bound_bits
from diffusion_jax.auditing.loss_rows import audit_losses
from diffusion_jax.auditing.rows import Row, as_table
from diffusion_jax.auditing.sampler_rows import audit_samplers
from diffusion_jax.likelihood import ProbabilityFlow
from diffusion_jax.losses import MinSNR, Simple
from diffusion_jax.processes import PROCESSES, ContinuousProcess, LinearVP
from diffusion_jax.samplers import DDIM, Heun

pytestmark = pytest.mark.costly


def test_the_audit_of_processes_and_the_linear_vae_passes_from_the_command_line(call):
  code, out, err = call(audit.main, "--only=processes,linear_vae")
  assert (code, err) == (0, "")
  assert re.search(r"\n([0-9]+) of \1 rows pass\n$", out)
  assert "FAIL" not in out


def test_a_wrong_loss_fails():
  @dataclasses.dataclass(frozen=True)
  class Stretches(MinSNR):
    """Takes the network's estimate for a twentieth more than it is."""

    def error(self, model, noised, predicted):
      return super().error(model, noised, predicted._replace(x0=1.05 * predicted.x0))

  assert all(row.passed for row in audit_losses({"min_snr": MinSNR}))
  assert not any(row.passed for row in audit_losses({"stretches": Stretches}))


def test_a_wrong_estimator_fails():
  """Hutchinson's with directions of the wrong length: right only for a drift that is a constant."""

  @dataclasses.dataclass(frozen=True)
  class Long(ProbabilityFlow):
    def _probes(self, key, shape):
      probes = super()._probes(key, shape)
      return None if probes is None else 1.1 * probes

  rows = list(audit_likelihoods({"long": Long}))
  ours = [row for row in rows if row.entry.startswith("long")]
  assert len(ours) == 6
  assert not any(row.passed for row in ours)


def test_a_wrong_process_fails():
  @dataclasses.dataclass(frozen=True)
  class Wrong(ContinuousProcess):
    def alpha_sigma(self, t):
      return 1 - t, t

    def time_of(self, log_snr):
      return 1 / (1 + np.exp(log_snr))

  failed = {row.quantity for row in audit_processes({"wrong": Wrong}) if not row.passed}
  assert failed == {"time_of(log_snr(t)) = t"}


def test_a_sampler_that_claims_too_much_fails():
  """DDIM with the order of Heun, and Heun that counts one evaluation a step."""

  class Second(DDIM):
    order = 2

  class Cheap(Heun):
    def num_evaluations(self, process):
      return self.steps

  failed = [row for row in audit_samplers({"second": Second, "cheap": Cheap}) if not row.passed]
  assert [row.quantity for row in failed] == [
    "order of the error", "network evaluations", "network evaluations",
  ]  # fmt: skip


@pytest.mark.parametrize("audited", [audit_losses, audit_likelihoods, audit_samplers])
def test_an_entry_that_declares_nothing_fails(audited):
  @dataclasses.dataclass(frozen=True)
  class Silent:
    pass

  row = next(iter(audited({"silent": Silent})))
  assert row.entry == "silent"
  assert "does not declare" in row.quantity
  assert not row.passed


def test_a_row_decides_by_its_errors_its_tolerance_and_its_relation():
  assert Row("a", "b", 1.0, 1.3, 0.1).passed
  assert not Row("a", "b", 1.0, 1.5, 0.1).passed
  assert Row("a", "b", 1.0, 1.1, None, 0.2).passed
  assert not Row("a", "b", 1.0, 1.3, None, 0.2).passed
  assert Row("a", "b", 1.0, 9.0, 0.1, 0.0, "at_least").passed
  assert not Row("a", "b", 1.0, 0.5, 0.1, 0.0, "at_least").passed
  assert not Row("a", "b", 1.0, float("nan"), 0.1).passed
  table = as_table([Row("a", "b", 1.0, 1.3, 0.1), Row("c", "d", 0.0, 1.0)])
  assert re.search(r"a +b +1 +1.3 +\+3.0 s.e. +pass\n", table)
  assert table.endswith("FAIL")


def test_the_oracles_are_the_published_figures():
  """Tables of the closed forms: DDPM's bound, the linear VAE's evidence and gap."""
  process = LinearVP()
  found = [ddpm_bound_bits(process, 0.5, large) for large in (False, True)]
  np.testing.assert_allclose(found, [1.869325, 1.212529], atol=2e-6)
  np.testing.assert_allclose(linear_vae.evidence(), -3.8007885297, atol=1e-9)
  np.testing.assert_allclose(linear_vae.gap(), 0.288482, atol=1e-6)


def test_the_oracles_denoiser_is_the_posterior_mean():
  """Orthogonality: what is left of x0 is uncorrelated with x_t, for correlated data."""
  process, num = LinearVP(), 20_000
  x0 = np.asarray(oracles.gaussian_images(num))
  eps = np.random.default_rng(0).normal(size=x0.shape).astype(np.float32)
  t = np.full(num, 0.3, np.float32)
  alpha, sigma = (float(c[0]) for c in process.alpha_sigma(t))
  xt = alpha * x0 + sigma * eps
  denoise = jax.jit(oracles.gaussian_denoiser(process).denoise)
  left = x0 - np.asarray(denoise(np.float32(xt), t))
  correlation = np.corrcoef(left.reshape(num, 16).T, xt.reshape(num, 16).T)[:16, 16:]
  assert np.abs(correlation).max() < 5 / np.sqrt(num)
  bits = oracles.exact_bits(x0)
  mean, error = oracles.mean_and_error(bits)
  assert abs(mean - oracles.entropy_bits()) < 4 * error


def test_only_the_chosen_entries_are_audited():
  chosen = choose_entries(list(AUDITS), ["vp", "simple"])
  assert chosen == {"processes": {"vp": PROCESSES["vp"]}, "losses": {"simple": Simple}}
  path = f"{Simple.__module__}:Simple"
  assert choose_entries(["losses"], [path]) == {"losses": {path: Simple}}


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--only="], "--only=: no such audit."),
    (["--entries=simpel"], "--entries=simpel: no such part. Did you mean 'simple'?"),
    (["--entries=a.b:C"], "--entries=a.b:C: name its kind too, e.g. --only=losses"),
    (["--only=losses", "--entries=json:C"], "--entries=json:C: json has no class 'C'"),
    (["--only=loses"], "--only=loses: no such audit. Did you mean 'losses'?"),
    (["--config.loss.name=p2"], "--config.loss.name=p2: audit takes no config"),
  ],
)
def test_wrong_flags(flags, words, call):
  code, _, err = call(audit.main, *flags)
  assert code == 2
  assert words in err
