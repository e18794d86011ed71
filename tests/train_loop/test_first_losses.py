"""The first 50 losses of four configs stay what they were, to float rounding."""

import json

import golden
import numpy as np
import pytest

RECORD = json.loads(golden.RECORD.read_text())


FEW = {"ddpm_digits": 12, "flow_digits": 12}
"""Steps that the gate compares of the dearer configs; the slow tests compare all."""


def compare(name, num_steps):
  """Two versions of JAX differ by 7e-7 of a loss at most; other processors may by more."""
  losses = golden.first_losses(name, num_steps)
  np.testing.assert_allclose(losses, RECORD[name][:num_steps], rtol=2e-4)


@pytest.mark.costly
@pytest.mark.parametrize("name", golden.CONFIGS)
def test_the_first_losses_are_those_on_record(name):
  compare(name, FEW.get(name, golden.NUM_STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_all_of_the_first_losses_are_those_on_record(name):
  compare(name, golden.NUM_STEPS)


@pytest.mark.parametrize("name", golden.CONFIGS)
def test_the_record_is_of_training_that_learns(name):
  losses = RECORD[name]
  assert len(losses) == golden.NUM_STEPS
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
