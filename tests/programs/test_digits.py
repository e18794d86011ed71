"""The embedded configs reach what the README says of them. Minutes long."""

import json
import os
import runpy
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.process]


def command(root, module, *flags):
  """Runs a program as a user does, on one device."""
  subprocess.run(
    [sys.executable, "-m", f"diffusion_jax.{module}", *flags],
    check=True, cwd=root, env={**os.environ, "XLA_FLAGS": ""},
  )  # fmt: skip


def test_a_classifier_reads_the_digits_that_were_asked_for(root, tmp_path):
  """At least 90% of 500 samples; the classifier has only ever seen real digits."""
  command(root, "train", "--config=configs/ddpm_digits.py", f"--workdir={tmp_path}/run")
  file = tmp_path / "samples.npz"
  command(root, "sample", f"--workdir={tmp_path}/run", "--num=500", f"--out={file}", "--seed=1")
  benchmark = runpy.run_path(str(root / "benchmarks" / "digits_agreement.py"))
  classifier, accuracy = benchmark["fit_classifier"]()
  share = benchmark["agreement"](classifier, file)
  print(f"classifier {accuracy:.1%} on held-out digits, agreement {share:.1%} of 500 samples")
  assert accuracy > 0.97
  assert share >= 0.90


def test_the_vae_beats_independent_pixels(root, tmp_path):
  command(root, "train", "--config=configs/vae_digits.py", f"--workdir={tmp_path}/run")
  figures = json.loads((tmp_path / "run" / "held_out.json").read_text())
  elbo, error = figures["elbo/bits_per_dim"], figures["elbo/bits_per_dim_standard_error"]
  baseline = figures["independent_pixels/bits_per_dim"]
  print(f"held-out ELBO {elbo:.4f} ± {error:.4f} bits/dim, independent pixels {baseline:.4f}")
  assert elbo + 5 * error < baseline
