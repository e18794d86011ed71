"""A training run, put together and checked: its parts, and the state that it goes on from."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from diffusion_jax import checkpoint, log, runs, sharding
from diffusion_jax.data import Source, fingerprint
from diffusion_jax.experiment import Experiment
from diffusion_jax.state import TrainState
from diffusion_jax.step import make_init
from diffusion_jax.types import Generative, ImageSpec, UserError


class Job(NamedTuple):
  """What a run is made of.

  Attributes:
    experiment: the resolved config.
    generative: its model.
    train, test: the splits; a data set may lack the second.
    mesh: the devices.
    workdir: the run's folder.
  """

  experiment: Experiment
  generative: Generative
  train: Source
  test: Source | None
  mesh: Mesh
  workdir: Path

  @property
  def checkpoints(self) -> Path:
    return self.workdir / "checkpoints"

  @property
  def num_steps(self) -> int:
    return self.experiment.training.num_steps


def prepare(experiment: Experiment, workdir: Path) -> Job:
  """Checks all that can be checked before the run's folder is touched.

  Raises:
    UserError: data, model, mesh and batch do not fit.
  """
  data, training = experiment.data, experiment.training
  mesh = sharding.create_mesh(experiment.mesh)
  parts = training.accumulation_steps
  sharding.check_batch_size(training.batch_size, mesh, parts, "training.batch_size")
  source = data.load("train")
  test = data.load("test") if data.has_split("test") else None
  if test is not None and test.spec != source.spec:
    train_is, test_is = (log.describe_data(s.name, len(s), s.spec) for s in (source, test))
    raise UserError(f"the splits do not fit each other: {train_is}; {test_is}")
  return Job(experiment, experiment.create(source.spec), source, test, mesh, workdir)


def start(job: Job) -> tuple[TrainState, bool]:
  """The state to go on from, and whether it comes from a checkpoint.

  Damaged checkpoints newer than the one that is restored are moved aside.

  Raises:
    UserError: the folder holds a run that this one cannot continue.
  """
  experiment = job.experiment
  init = make_init(job.generative, experiment.optimizer, experiment.training)
  shapes = jax.eval_shape(init)
  layout = sharding.state_shardings(job.mesh, shapes)
  if not checkpoint.saved_steps(job.checkpoints):
    runs.write_config(job.workdir, experiment.to_dict())
    return jax.jit(init, out_shardings=layout)(), False
  harmless = runs.check_continues(job.workdir, experiment)
  restored = checkpoint.restore(job.checkpoints, sharding.as_target(shapes, layout))
  _check_same_data(job, restored.meta)
  if harmless:
    print(f"changed since the run began: {'; '.join(harmless)}")
  places = checkpoint.quarantine(job.checkpoints, restored.damaged)
  for damage, place in zip(restored.damaged, places, strict=True):
    print(f"checkpoint {damage.step} is damaged ({damage.reason}): moved to {place}")
  runs.write_config(job.workdir, experiment.to_dict())
  return restored.state, True


def describe(job: Job) -> dict[str, Any]:
  """What is saved beside a state."""
  data = {
    "name": job.train.name,
    "num": len(job.train),
    "fingerprint": fingerprint(job.train),
    "spec": job.train.spec._asdict(),
  }
  return {"config": job.experiment.to_dict(), "data": data}


def stored_spec(checkpoints: Path, step: int | None) -> ImageSpec:
  """What a run's images are, from its checkpoints: to sample, the data need not be there."""
  return ImageSpec(**checkpoint.read_meta(checkpoints, step)["data"]["spec"])


def _check_same_data(job: Job, meta) -> None:
  runs.check_same_data(job.workdir, meta["data"], describe(job)["data"])
