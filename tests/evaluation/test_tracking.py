"""Evaluations in the run's trackers: once each, whenever the tracker can take them."""

import fcntl
import json
import sys
import types

import numpy as np
import pytest
from tensorboard_events import events

from diffusion_jax.core.files import write_png
from diffusion_jax.evaluation.tracking import send_evaluations
from diffusion_jax.training.logger import Logging


def write_evaluation(workdir, folder, fid, identity="a"):
  figures = {
    "fid": {"value": fid, "standard_deviation": 0.5}, "is": {"value": 2.0, "standard_error": None},
  }  # fmt: skip
  bound = {"bits_per_dim": 2.5, "standard_error": 0.25}
  metrics = {"identity": identity, "figures": figures, "likelihoods": {"vlb": bound}}
  write_png(workdir / "eval" / folder / "samples.png", np.zeros((6, 4, 1), np.uint8))
  (workdir / "eval" / folder / "metrics.json").write_text(json.dumps(metrics))


class WandbRun:
  """A run that records its calls."""

  def __init__(self):
    self.calls = []

  def define_metric(self, name, step_metric=None):
    self.calls.append(("axis", name, step_metric))

  def log(self, values, step=None):
    self.calls.append(("log", dict(values), step))

  def finish(self, exit_code=None):
    self.calls.append("finished")


@pytest.fixture
def wandb(monkeypatch):
  """Stands for the package; `begun` has the arguments of each start, `run` the last one."""
  fake = types.SimpleNamespace(begun=[], run=None, Image=lambda grid: grid.shape)

  def init(**options):
    fake.begun.append(options)
    fake.run = WandbRun()
    return fake.run

  fake.init = init
  monkeypatch.setitem(sys.modules, "wandb", fake)
  return fake


def send(workdir, **fields):
  config = {"training": {"seed": 3, "betas": (1, 2)}, "logging": {}}
  send_evaluations(workdir, Logging(**fields), config)


def test_tensorboard_gets_figures_errors_and_grids_of_each_step_once(tmp_path):
  write_evaluation(tmp_path, "5", 30.0)
  write_evaluation(tmp_path, "10", 20.0)
  for _ in range(2):
    send(tmp_path)
  found = list(events(tmp_path))
  values = [(e.step, v) for e in found for v in e.summary.value]
  scalars = {(step, v.tag): v.simple_value for step, v in values if v.tag != "eval/samples"}
  assert scalars[5, "eval/fid"] == 30.0
  assert scalars[10, "eval/fid"] == 20.0
  assert scalars[10, "eval/fid_error"] == 0.5
  assert (10, "eval/is_error") not in scalars
  assert scalars[10, "eval/vlb/bits_per_dim_error"] == 0.25
  assert [(step, v.image.height) for step, v in values if v.tag == "eval/samples"] == [
    (5, 6), (10, 6),
  ]  # fmt: skip
  assert len(values) == len(scalars) + 2
  assert not any(e.session_log.status for e in found)  # which would discard training's later steps


def test_weights_and_biases_continues_the_run_with_its_own_axis(tmp_path, wandb):
  (tmp_path / "wandb_id").write_text("abc\n")
  write_evaluation(tmp_path, "5", 30.0)
  write_evaluation(tmp_path, "10-ema-profile-0.1", 20.0)
  fields = {"wandb_project": "p", "wandb_tags": ("x",), "wandb_group": "g", "wandb_job_type": "j"}
  send(tmp_path, tensorboard=False, **fields)
  [begun] = wandb.begun
  assert begun["config"] == {"training": {"seed": 3, "betas": [1, 2]}, "logging": {}}
  expected = {"id": "abc", "resume": "allow", "tags": ["x"], "group": "g", "job_type": "j"}
  assert expected.items() <= begun.items()
  logged = [call for call in wandb.run.calls if call[0] == "log"]
  assert [step for _, _, step in logged] == [None, None]  # the run's own step only rises
  assert logged[0][1]["eval/step"] == 5
  assert logged[0][1]["eval/fid"] == 30.0
  assert logged[0][1]["eval/samples"] == (6, 4, 1)
  assert logged[1][1]["eval-ema-profile-0.1/fid"] == 20.0
  assert ("axis", "eval/*", "eval/step") in wandb.run.calls
  assert wandb.run.calls[-1] == "finished"
  send(tmp_path, tensorboard=False, **fields)
  assert len(wandb.begun) == 1


def test_while_the_run_trains_its_evaluations_wait(tmp_path, wandb, capsys):
  """A second writer of the same run would overwrite what the first one sends."""
  write_evaluation(tmp_path, "5", 30.0)
  with (tmp_path / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    send(tmp_path, wandb_project="p")
    assert not wandb.begun
    assert "the run is still training" in capsys.readouterr().out
    assert list(events(tmp_path))
  write_evaluation(tmp_path, "10", 20.0)
  send(tmp_path, wandb_project="p")
  assert [call[1]["eval/step"] for call in wandb.run.calls if call[0] == "log"] == [5, 10]


def test_a_new_measurement_of_a_step_is_sent_and_a_failure_ends_nothing(tmp_path, wandb, capsys):
  write_evaluation(tmp_path, "5", 30.0)
  (tmp_path / "eval" / "strange").mkdir()
  (tmp_path / "eval" / "7").mkdir()
  fine, wandb.init = wandb.init, None
  send(tmp_path, wandb_project="p", tensorboard=False)
  assert "Weights & Biases has not got the evaluation (" in capsys.readouterr().out
  wandb.init = fine
  send(tmp_path, wandb_project="p", tensorboard=False)
  write_evaluation(tmp_path, "5", 31.0, identity="b")
  send(tmp_path, wandb_project="p", tensorboard=False)
  assert len(wandb.begun) == 2
  assert wandb.run.calls[-2][1]["eval/fid"] == 31.0
