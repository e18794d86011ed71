"""Small networks of published recipes against stored outputs of diffusers' networks.

`tests/reference/make_network_fixture.py` made them.
"""

import jax
import numpy as np
import pytest
from network_cases import CASES, FIXTURE

from diffusion_jax.models import UNet
from diffusion_jax.types import Condition

COSTLY = {name: [pytest.mark.costly] for name, c in CASES.items() if isinstance(c.config, UNet)}


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=COSTLY.get(name, [])) for name in CASES]
)  # fmt: skip
def test_the_output_is_that_of_the_original(name):
  case, expected = CASES[name], np.load(FIXTURE)[name]
  found = jax.jit(case.create().apply)(
    case.own_params(), case.images(), case.time, Condition(case.labels)
  )
  error = np.abs(np.asarray(found) - expected).max() / expected.std()
  assert error < 1e-4, f"{error:.1e} of the output's deviation"
