"""Which steps are traced, and that a run leaves their trace."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax import train
from diffusion_jax.train_loop.profiling import Trace, parse_span
from diffusion_jax.types import UserError


@pytest.mark.parametrize("text", ["5", "0:3", "3:0", "a:b", "-1:2", "3:2:1", ""])
def test_a_span_that_is_none_is_refused_in_one_line(text, call, root):
  with pytest.raises(UserError, match="must be START:STEPS, both at least 1"):
    parse_span(text)
  flags = [f"--config={root}/configs/smoke.py", f"--profile={text}"]
  code, _, err = call(train.main, *flags)
  assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(("first_step", "traced"), [(0, [4, 5]), (4, [5, 6]), (9, [10, 11])])
def test_the_steps_of_the_span_or_the_first_ones_of_a_resumed_run(tmp_path, first_step, traced):
  trace, running = Trace(tmp_path, parse_span("4:2"), first_step), []
  for step in range(first_step + 1, first_step + 9):
    trace.before(step)
    if trace._running:
      running.append(step)
  assert running == traced


def test_a_trace_is_written_once_it_ends_or_the_run_does(tmp_path, capsys):
  trace = Trace(tmp_path, parse_span("1:9"), 0)
  trace.before(1)
  jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
  assert not list(tmp_path.rglob("*.xplane.pb"))
  trace.close()
  assert list(tmp_path.rglob("*.xplane.pb"))
  assert f"xprof --logdir={tmp_path}/profile" in capsys.readouterr().out


def test_without_a_span_nothing_happens(tmp_path):
  trace = Trace(tmp_path, None, 0)
  trace.before(1)
  assert not trace.is_due(1)
  trace.close()
  assert not list(tmp_path.iterdir())
