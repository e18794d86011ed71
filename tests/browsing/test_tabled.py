"""A filled-up tableau takes the same path: checked by a plain loop over its rows."""

import jax
import numpy as np
import pytest

from diffusion_jax.browsing.tabled import NUM_FRAMES, ROWS, filled_up, make_setting
from diffusion_jax.processes import PROCESSES
from diffusion_jax.samplers import SAMPLERS, Ancestral, Heun, LinearSampler

LINEAR = [name for name, cls in SAMPLERS.items() if issubclass(cls, LinearSampler)]


def end_of_path(tableau, draws):
  """The last state of a path from 1.3 with the estimates cos(3 x + t), by the definition."""
  x, base, past = np.float64(1.3), 0.0, [0.0] * tableau.state.x0.shape[1]
  if tableau.start_churn is not None:
    scale, spread = tableau.start_churn
    x = scale * x + spread * 0.7
  for i, t in enumerate(tableau.t):
    if t < tableau.end:
      estimate = np.nan if tableau.state.x0[i].any() else 0.0  # skipped, so it must not count
    else:
      estimate = np.cos(3 * x + t)
    past = [estimate, *past[:-1]]

    def next_of(weights, i=i, x=x, base=base, past=past):
      own = lambda values: 0.0 if values is None else values[i]  # noqa: E731
      noise = own(weights.noise) * draws[i] if weights.noise is not None else 0.0
      return weights.x0[i] @ past + weights.xt[i] * x + own(weights.base) * base + noise

    x, base = next_of(tableau.state), 0.0 if tableau.base is None else next_of(tableau.base)
  return x


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("process", ["cosine_vp", "vp", "edm"])
def test_a_filled_up_tableau_ends_where_the_tableau_does(name, process):
  process, draws = PROCESSES[process](), np.random.default_rng(0).normal(size=4 * ROWS)
  tableau = SAMPLERS[name](steps=7).tableau(process)
  rounded = lambda value: np.asarray(value, np.float32).astype(np.float64)  # noqa: E731
  tableau = jax.tree.map(rounded, tableau)  # the program's coefficients are float32
  filled = jax.tree.map(rounded, filled_up(tableau))
  assert filled.num_rows == ROWS > tableau.num_rows
  assert end_of_path(filled, draws) == pytest.approx(end_of_path(tableau, draws), rel=1e-9)


def test_the_structure_depends_on_no_sampler():
  def structure(sampler, process):
    setting = make_setting(sampler, process, 2.0)
    return [(np.shape(v), np.asarray(v).dtype) for v in (*setting.table.state, *setting[1:])]

  process = PROCESSES["vp"]()
  assert structure(Heun(5), process) == structure(Ancestral(100), process)
  assert filled_up(Heun(100).tableau(process)).num_rows == 2 * ROWS


def test_few_steps_repeat_frames_and_clipping_is_a_number():
  setting = make_setting(Ancestral(3), PROCESSES["cosine_vp"](), 1.0)
  assert len(setting.frames) == NUM_FRAMES
  assert (setting.frames.min(), setting.frames.max(), setting.bound) == (0, 2, 1.0)
  assert make_setting(Heun(3), PROCESSES["vp"](), 1.0).bound == np.inf
