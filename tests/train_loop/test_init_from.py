"""A run that begins with another run's averaged weights: what is loaded, listed and refused."""

import dataclasses

import jax
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.inference.restore import stored_spec
from diffusion_jax.models import DiT
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.stored import trained_experiment
from diffusion_jax.train_loop import init_from
from diffusion_jax.train_loop.init_from import (
  Origin,
  check_record,
  find_origin,
  load_origin,
  write_record,
)
from diffusion_jax.types import UserError


@pytest.fixture(scope="module")
def create(smoke_run):
  """A function from changed fields of the network to the smoke run's model with them."""
  experiment = trained_experiment(smoke_run, ())
  spec = stored_spec(checkpoint_folder(smoke_run), 60)

  def model(num_classes=spec.num_classes, **fields):
    network = dataclasses.replace(experiment.sections["model"], **fields)
    return experiment.replace(model=network).create(spec._replace(num_classes=num_classes))

  return model


def random_parameters(model, seed):
  """Parameters of a model, drawn without compiling it."""
  draws = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
  return jax.tree.map(lambda x: draws.standard_normal(x.shape).astype(x.dtype), shapes)


def loaded(origin, model):
  """Names and arrays after the averages were loaded, and those drawn before."""
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  first = jax.device_put(random_parameters(model, 7), jax.devices()[0])
  return named_leaves(load_origin(origin, mesh, first)), named_leaves(first)


def test_the_same_model_begins_with_the_averages_of_the_step(smoke_run, create):
  for text, step in ((str(smoke_run), 60), (f"{smoke_run}@30", 30)):
    origin = find_origin(text, create(), False)
    assert (origin.step, origin.random, origin.left) == (step, (), ())
    assert origin.text == f"a new run with the averaged weights of step {step} of {smoke_run}"
    found, _ = loaded(origin, create())
    wanted = named_leaves(dj.load_run(smoke_run, step=step).params)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_other_classes_are_refused_by_name_and_taken_in_part(smoke_run, create):
  model = create(num_classes=9)
  with pytest.raises(UserError, match=r"`: 1 of \d+ arrays do not fit: label.* there and 10x"):
    find_origin(str(smoke_run), model, False)
  origin = find_origin(str(smoke_run), model, True)
  (other,) = origin.random
  assert origin.left == (other,)
  assert f"arrays; random {other}; not used {other}" in origin.text
  found, first = loaded(origin, model)
  wanted = named_leaves(dj.load_run(smoke_run).params)
  for name, leaf in found.items():
    assert np.array_equal(leaf, first[name] if name == other else wanted[name]), name


def test_a_model_with_fewer_layers_lists_what_it_has_no_place_for(smoke_run, create):
  with pytest.raises(UserError, match=r"arrays do not fit: it has no .*init_partial=True"):
    find_origin(str(smoke_run), create(depth=2), False)
  origin = find_origin(str(smoke_run), create(depth=2), True)
  assert origin.random
  assert not set(origin.random) & set(origin.loaded)


def test_stacked_layers_are_matched_one_by_one(smoke_run, monkeypatch):
  """A transformer of three blocks begins one of two, in either form."""
  experiment = trained_experiment(smoke_run, ())
  spec = stored_spec(checkpoint_folder(smoke_run), 60)

  def model(depth, scan):
    return experiment.replace(model=DiT(depth, 8, 2, 2, scan_blocks=scan)).create(spec)

  params = random_parameters(model(3, True), 1)
  weights = init_from.restore.Weights(params, 5, {}, {}, None)
  monkeypatch.setattr(init_from.restore, "restore_weights", lambda *_: weights)
  for scan in (True, False):
    here = model(2, scan)
    names = tuple(init_from._shapes(here))
    found, _ = loaded(Origin(smoke_run, 5, model(3, True), names, (), ()), here)
    kernel = params["stacked_block"]["mlp_in"]["kernel"]
    stem = "stacked_block" if scan else "block1"
    assert np.array_equal(found[f"{stem}/mlp_in/kernel"], kernel[:2] if scan else kernel[1])


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("{run}@latest", "the step after @ must be a number"),
    ("{run}@31", "no checkpoint of step 31; there are 30, 60"),
    ("{run}_other", "`init_from=.*_other`: no such folder; give the folder of a run"),
  ],
)
def test_a_run_or_step_that_is_not_there_is_refused(smoke_run, create, text, said):
  with pytest.raises(UserError, match=said):
    find_origin(text.format(run=smoke_run), create(), True)


def test_nothing_that_fits_is_refused_even_in_part(smoke_run):
  experiment = trained_experiment(smoke_run, ()).replace(model=DiT(1, 8, 2, 2))
  model = experiment.create(stored_spec(checkpoint_folder(smoke_run), 60))
  with pytest.raises(UserError, match="none of its"):
    find_origin(str(smoke_run), model, True)


def test_a_run_continues_with_the_weights_that_it_began_with(smoke_run, create, tmp_path):
  with pytest.raises(UserError, match="began with random weights and has checkpoints"):
    check_record(str(smoke_run), tmp_path)
  write_record(find_origin(f"{smoke_run}@30", create(), False), tmp_path)
  check_record(str(smoke_run), tmp_path)
  check_record(f"{smoke_run}@30", tmp_path)
  for other in (f"{smoke_run}@60", str(tmp_path)):
    with pytest.raises(UserError, match=f"began with the weights of {smoke_run}@30"):
      check_record(other, tmp_path)
