"""What a step shows is shown once, whenever the run is ended there, and as by one that went on."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from tiny import TINY

from diffusion_jax import train
from diffusion_jax.checkpoints import store
from diffusion_jax.runs import signals
from diffusion_jax.train_loop import loop, previews
from diffusion_jax.training.logger import Logger, Logging

pytestmark = pytest.mark.costly
FLAGS = [
  *TINY, "--config.training.num_steps=6", "--config.checkpoint.every_steps=2",
  "--config.logging.every_steps=1", "--config.logging.sample_every_steps=2",
  "--config.logging.num_samples=4", "--config.logging.tensorboard=false",
  "--config.eval.every_steps=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(Path(__file__).parents[2])
    train.main([*FLAGS, f"--workdir={workdir}"])
  return workdir


def held_out_names(row):
  return [name for name in row if name.startswith("held_out/")]


def whole_rows(workdir):
  """(step, row) of each line that is JSON."""
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    with contextlib.suppress(ValueError):
      row = json.loads(line)
      yield row["step"] if held_out_names(row) else None, row


def held_out(workdir):
  """(step, figures) of every held-out row, in the order of the file."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found = [r for r in rows if held_out_names(r)]
  return [(r.pop("step"), {n: v for n, v in r.items() if n != "time"}) for r in found]


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r]


def pictures(workdir):
  return {p.name: p.read_bytes() for p in (workdir / "samples").iterdir()}


def assert_shown_as_by(workdir, straight):
  assert [step for step, _ in held_out(workdir)] == [2, 4, 6]
  assert held_out(workdir) == held_out(straight)
  assert losses(workdir) == losses(straight)
  assert pictures(workdir) == pictures(straight)
  assert (workdir / "held_out.json").read_bytes() == (straight / "held_out.json").read_bytes()


def train_on(workdir):
  train.main([*FLAGS, f"--workdir={workdir}"])


class Killed(BaseException):
  """The end of the process, which nothing handles."""


def test_a_run_that_is_stopped_at_a_step_shows_it_when_it_goes_on(straight, tmp_path, monkeypatch):
  step = 4
  steps = iter(range(1, 7))
  with monkeypatch.context() as patch:
    patch.setattr(loop, "agreed_signal", lambda *_: "SIGTERM" if next(steps) == step else None)
    with pytest.raises(signals.StoppedEarly, match=f"saved step {step}"):
      train_on(tmp_path)
  assert store.saved_steps(tmp_path / "checkpoints")[-1] == step
  assert step not in dict(held_out(tmp_path))
  train_on(tmp_path)
  assert_shown_as_by(tmp_path, straight)


@pytest.mark.parametrize(
  ("step", "moment"),
  [(4, "before"), (4, "between"), (4, "in the row"), (4, "after the row"), (6, "after the row")],
)
def test_a_run_that_is_killed_while_it_shows_a_step_shows_it_once(
  step, moment, straight, tmp_path, monkeypatch
):
  """Its checkpoint is whole; of the grid and the figures nothing, one or both are on disk."""
  whole = Logger.scalars

  def scalars(self, now, values):
    is_it = now == step and any(name.startswith("held_out/") for name in values)
    if is_it and moment == "between":
      raise Killed
    whole(self, now, values)
    if is_it:
      raise Killed

  def samples(job, logger, now, *more):
    if now == step and moment == "before":
      raise Killed
    shows(job, logger, now, *more)

  shows = previews.show_samples
  with monkeypatch.context() as patch:
    patch.setattr(Logger, "scalars", scalars)
    patch.setattr(previews, "show_samples", samples)
    with pytest.raises(Killed):
      train_on(tmp_path)
  rows = tmp_path / "metrics.jsonl"
  if moment == "in the row":  # the last one is cut off in the middle
    rows.write_text(rows.read_text()[:-40])
  has_row, has_grid = (
    step in dict(whole_rows(tmp_path)),
    f"step_{step:08d}.png" in pictures(tmp_path),
  )
  assert (has_grid, has_row) == (moment != "before", moment == "after the row")
  assert store.saved_steps(tmp_path / "checkpoints")[-1] == step
  train_on(tmp_path)
  assert_shown_as_by(tmp_path, straight)


def test_what_has_been_shown_is_not_shown_again(straight, tmp_path, capsys):
  run = shutil.copytree(straight, tmp_path / "run")
  grid = run / "samples" / "step_00000006.png"
  before = grid.stat().st_mtime_ns
  train.main([*FLAGS, "--config.training.num_steps=7", f"--workdir={run}"])
  assert grid.stat().st_mtime_ns == before
  assert "step 6: " not in capsys.readouterr().out
  assert [step for step, _ in held_out(run)] == [2, 4, 6, 7]


def test_pictures_of_steps_that_are_taken_again_are_dropped_as_their_rows_are(tmp_path):
  for name in ("step_00000002.png", "step_00000004.png", "reconstructions_00000004.png", "own.png"):
    (tmp_path / "samples").mkdir(exist_ok=True)
    (tmp_path / "samples" / name).touch()
  Logger(tmp_path, Logging(tensorboard=False), 2, 6).close()
  left = {p.name for p in (tmp_path / "samples").iterdir()}
  assert left == {"step_00000002.png", "own.png"}
