"""A run from Python: trained, restored, drawn from and asked, and errors that name arguments."""

import inspect
import re

import jax
import numpy as np
import pytest

import diffusion_jax as dj

TINY = {
  "model": {"name": "mlp", "hidden": 16, "depth": 1},
  "training": {"num_steps": 4},
  "logging": {"tensorboard": False, "num_samples": 4},
}
pytestmark = pytest.mark.costly
XT, T = np.ones((2, 8, 8, 1), np.float32), np.float32([0.1, 0.9])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return dj.train("configs/smoke.py", workdir=tmp_path_factory.mktemp("run") / "a", **TINY)


def test_a_run_has_its_weights_state_and_metrics(run):
  assert run.step == int(run.state.step) == 4
  assert {"train/loss", "held_out/loss"} <= set(run.metrics)
  assert run.config["training"]["num_steps"] == 4


def test_it_is_shown_in_one_line(run):
  assert re.fullmatch(r"Run\('.*/a', Diffusion of [\d,]+ parameters, step 4\)", repr(run))


def test_a_half_written_row_of_metrics_is_left_out(run):
  path = run.workdir / "metrics.jsonl"
  whole = path.read_text()
  try:
    path.write_text(whole + '{"step": 4, "train/lo')
    assert dj.load_run(run.workdir).metrics == run.metrics
  finally:
    path.write_text(whole)


def test_a_users_float64_does_not_reach_a_run(run):
  before = run.sample(2)
  with jax.enable_x64(True):
    other = dj.load_run(run.workdir)
    np.testing.assert_array_equal(other.sample(2), before)
    assert other.denoise(XT, T).dtype == np.float32
    assert jax.config.jax_enable_x64
  assert not jax.config.jax_enable_x64


def test_the_same_call_continues_and_a_restored_run_is_the_same(run):
  longer = dj.train(
    "configs/smoke.py", workdir=run.workdir, **TINY | {"training": {"num_steps": 4}}
  )
  again = dj.load_run(str(run.workdir), step=4)
  for other in (longer, again):
    np.testing.assert_array_equal(other.sample(3, seed=5), run.sample(3, seed=5))


def test_images_depend_on_seed_and_position_alone(run):
  images = run.sample(5, labels=[1, 2], seed=3)
  assert run.class_names == []
  np.testing.assert_array_equal(run.sample(5, labels=["1", 2], seed=3), images)
  assert images.shape == (5, 8, 8, 1)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(run.sample(5, labels=[1, 2], seed=3, batch_size=2), images)
  assert (run.sample(5, labels=[1, 2], seed=4) != images).any()


def test_another_sampler_and_guidance_take_the_place_of_the_runs_own(run):
  own = run.sample(4)
  assert (run.sample(4, sampler=dj.samplers.Heun(steps=3)) != own).any()
  assert (run.sample(4, guidance=dj.samplers.Guidance(weight=0.0)) != own).any()


def test_the_denoiser_takes_a_condition(run):
  xt, t = np.ones((2, 8, 8, 1), np.float32), np.array([0.1, 0.9], np.float32)
  found = run.denoise(xt, t, dj.Condition(label=np.array([0, 1])))
  assert found.shape == xt.shape


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda run: run.sample(0), "^num=0: must be at least 1$"),
    (lambda run: run.sample(2, labels=[10]), r"^labels=\[10\]: must be between 0 and 9$"),
    (lambda run: run.sample(2, labels=[]), r"^labels=\[\]: must be a list of integers"),
    (lambda run: run.sample(2, labels="3"), r"^labels='3': must be a list, e.g. \['3'\]"),
    (
      lambda run: run.sample(2, labels=["cat"]),
      "is no number, and these classes have no names",
    ),
    (
      lambda run: run.sample(2, sampler=3),
      "^sampler=3: it must be a built sampler, such as Ancestral\\(\\)$",
    ),
    (
      lambda run: run.sample(2, sampler=dj.samplers.Heun),
      r"^sampler=Heun: it is a class; give Heun\(\)$",
    ),
    (
      lambda run: run.sample(2, guidance=3.0),
      r"^guidance=3.0: it must be a built Guidance, such as Guidance\(\)$",
    ),
    (lambda run: run.sample(2, guidance={"weight": 3}), r"^guidance=.*such as Guidance"),
    (lambda run: run.sample(2, seed=-1), r"^seed=-1: must be at least 0"),
    (lambda run: run.sample(2, seed=2**31), r"^seed=2147483648: must be at most 2147483647"),
    (
      lambda run: run.denoise(XT, T, dj.Condition(label=np.array([99, 99]))),
      r"^condition.label=.*or be 10 for",
    ),
    (lambda run: run.denoise(XT, T, dj.Condition(label=np.array([1]))), "one integer per example"),
    (lambda run: run.denoise(XT[:, :7], T), r"^xt of shape .*: must be .B, 8, 8, 1.$"),
    (lambda run: dj.load_run(run.workdir, ema=0.9), r"^`ema=0.9`: must be a relative width"),
    (lambda run: dj.load_run(""), "^workdir= is empty"),
    (lambda run: dj.train("configs/smoke.py", workdir=""), "^workdir= is empty"),
    (lambda run: run.sample(2, sampler=dj.samplers.Heun(steps=101)), r"sampler: steps=101 must"),
    (lambda run: dj.load_run(run.workdir / "no"), "^`workdir=.*`: no run there"),
    (lambda run: dj.load_run(run.workdir, step=3), "3"),
    (
      lambda run: dj.train("configs/smoke.py", training={"num_stepz": 1}),
      "no field 'num_stepz'. Did you mean 'num_steps'",
    ),
    (lambda run: dj.train("configs/smoke.py", training=3), "^training=3: must be a mapping"),
    (lambda run: dj.train("configs/smoke.py", trainin={}), "no section 'trainin'"),
    (lambda run: dj.train({}), r"config.generative.name is 'None'|workdir is missing"),
    (lambda run: dj.train("configs/smoke.py", workdir=run.workdir, training={"seed": 1}), "seed"),
  ],
)
def test_errors_name_arguments_in_one_line(run, call, message):
  with pytest.raises(dj.UserError, match=message) as caught:
    call(run)
  assert "--config" not in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda run: inspect.unwrap(dj.Run.sample)(run, 2.5), r"^num=2.5: must be an integer"),
    (
      lambda run: inspect.unwrap(dj.Run.sample)(run, 2, labels=5),
      "^labels=5: must be a list",
    ),
    (
      lambda run: inspect.unwrap(dj.Run.sample)(run, 2, labels=[[0, 1]]),
      r"^labels=.*: must be a list of integers",
    ),
    (
      lambda run: inspect.unwrap(dj.Run.denoise)(run, XT, T[0]),
      "^t of shape .*one time per",
    ),
    (
      lambda run: inspect.unwrap(dj.load_run)(run.workdir, step="4"),
      "^step=.4.: must be an int",
    ),
    (
      lambda run: inspect.unwrap(dj.load_run)(run.workdir, step=4.0),
      "^step=4.0: must be an int",
    ),
  ],
)
def test_wrong_types_are_named_where_no_type_checker_is(run, call, message):
  """Unwrapped, since the tests' own type checker would refuse them first."""
  with pytest.raises(dj.UserError, match=message):
    call(run)
