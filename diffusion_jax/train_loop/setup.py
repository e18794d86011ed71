"""Build and check a training run: its parts, and the state from which it continues."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import __version__, parallel
from diffusion_jax.checkpoints import step_folders, store
from diffusion_jax.core import progress, rng, wording
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.files import printable
from diffusion_jax.data import (
  About,
  Source,
  class_names,
  describe_classes,
  fingerprint,
  load_splits,
  source_identity,
  trained_classes,
)
from diffusion_jax.parallel import sharding, watchdog
from diffusion_jax.runs import own_parts
from diffusion_jax.runs.changes import of_another_run
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.storable import check_storable
from diffusion_jax.runs.stored import check_continues, check_same_data, write_config
from diffusion_jax.runs.workdir import is_finished
from diffusion_jax.train_loop.init_from import (
  Origin,
  check_record,
  find_origin,
  load_origin,
  write_record,
)
from diffusion_jax.training.objectives import trained_objectives
from diffusion_jax.training.step import make_init
from diffusion_jax.training.trackers import import_wandb
from diffusion_jax.training.train_state import (
  TrainState,
  count_parameters,
  from_averages,
  holds_averages,
  with_averages,
)
from diffusion_jax.types import GenerativeModel, UserError


class Job(NamedTuple):
  """The parts of a run.

  Attributes:
    experiment: the resolved config.
    generative: its model.
    train, test: the splits; a data set may lack the second.
    feed: source of the training batches: `train`, or its latents.
    mesh: device mesh.
    workdir: folder of the run.
    origin: another run's weights with which a new run begins; None: random ones.
  """

  experiment: Experiment
  generative: GenerativeModel
  train: Source
  test: Source | None
  feed: Source
  mesh: Mesh
  workdir: Path
  origin: Origin | None = None

  @property
  def checkpoints(self) -> step_folders.Place:
    return checkpoint_folder(self.workdir)

  @property
  def num_steps(self) -> int:
    return self.experiment.training.num_steps


def prepare_job(experiment: Experiment, workdir: Path) -> Job:
  """Check everything that can be checked before the run's folder is touched.

  Raises:
    UserError: data, model, mesh and batch do not fit each other, or a part cannot be stored.
  """
  training = experiment.training
  check_storable(experiment.sections, experiment.layout)
  _check_metrics(experiment)
  if project := experiment.logging.wandb_project:
    parallel.on_process_0(lambda: import_wandb(project))
  mesh = sharding.create_mesh(experiment.mesh)
  num_microbatches = training.accumulation_steps
  sharding.check_batch_size(training.batch_size, mesh, num_microbatches, "training.batch_size")
  with progress.phase("reading the data"):
    source, test = parallel.process_0_first(lambda: load_splits(experiment.data))
  check_same_everywhere(source)
  if test is not None and test.spec != source.spec:
    train_is, test_is = (wording.describe_data(s.name, len(s), s.spec) for s in (source, test))
    raise UserError(f"the splits do not fit each other: {train_is}; {test_is}")
  generative = experiment.create(source.spec)
  own_parts.check_training(
    experiment.sections, experiment.optimizers, training.num_steps, generative, source.spec
  )
  return Job(experiment, generative, source, test, _feed(experiment, source), mesh, workdir)


def _check_metrics(experiment: Experiment) -> None:
  """Raise an error for metrics that could not be measured after training."""
  if experiment.eval.metrics != "all":
    from diffusion_jax.metrics import create_metrics  # SciPy takes a second to import

    create_metrics(experiment.eval.metrics)


def with_origin(job: Job, text: str | None, is_partial: bool, is_fresh: bool) -> Job:
  """Return a job that begins with another run's weights, if it is new.

  Args:
    job: the job.
    text: the run, see `init_from.find_origin`; None: the job is returned as it is.
    is_partial: load the weights that fit, also if others do not.
    is_fresh: a run that is there is moved aside.

  Raises:
    UserError: the weights do not fit, or the run is there and began with others.
  """
  if text is None:
    return job
  if not is_fresh and parallel.broadcast_object(bool(store.saved_steps(job.checkpoints))):
    parallel.on_process_0(lambda: check_record(text, job.workdir))
    return job
  return job._replace(origin=find_origin(text, job.generative, is_partial))


def print_plan(job: Job, beginning: str) -> None:
  """Print the block that describes the run and the layout of its state."""
  mesh, batch_size = job.mesh, job.experiment.training.batch_size
  shards, state = sharding.num_batch_shards(mesh), state_shapes(job)
  groups = "per device" if shards == mesh.size else f"each for {mesh.shape['tensor']} devices"
  rows = [
    ("devices", f"{mesh.size} x {jax.devices()[0].device_kind}, {parallel.describe_hosts()}"),
    ("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())),
    *_slices_row(job, state),
    ("batch", f"{batch_size} images, {batch_size // shards} {groups}"),
    ("parameters", f"{count_parameters(state.params):,}"),
    *describe_splits(job),
    ("workdir", str(job.workdir)),
    ("start", beginning),
    *job.experiment.warnings().items(),
    *_network_warning(job),
  ]
  print(f"diffusion_jax {__version__}, jax {jax.__version__}")
  print("\n".join(f"  {name:<11}{text}" for name, text in rows))
  layout = [*sharding.describe_layout(mesh, state), sharding.describe_preview(mesh, state)]
  print("\n".join(f"  {line}" for line in layout), flush=True)


def _slices_row(job: Job, state: TrainState) -> list[tuple[str, str]]:
  """Return the row on what crosses the network between slices, if there are several."""
  experiment = job.experiment
  trained = trained_objectives(job.generative, experiment.optimizers)
  own = [t.own(state.params) for t in trained]
  parts = any(t.optimizer.clip_scope == "microbatch" for t in trained)
  times = experiment.training.accumulation_steps if parts else 1
  text = sharding.describe_slices(job.mesh, own, times)
  return [("slices", text)] if text else []


def _network_warning(job: Job) -> list[tuple[str, str]]:
  """Return the row on settings of the network without effect; others' networks may have none."""
  warn = getattr(job.experiment.sections.get("model"), "warning", None)
  text = warn(job.feed.spec) if warn else None
  return [("warning", text)] if text else []


def describe_splits(job: Job) -> list[tuple[str, str]]:
  """Return name and text of the lines on training, held-out and ignored data."""
  train, test, classes = job.train, job.test, job.train.spec.num_classes
  rows = [("data", wording.describe_data(train.name, len(train), train.spec))]
  if classes:
    rows.append(("classes", describe_classes(_counted(job), classes)))
  if files := train.about.files:
    rows.append(("files", printable(files.plus(test.about.files if test else None).text())))
  rows += [("note", printable(note)) for note in train.about.notes]
  if test is None:
    return [*rows, ("held out", "none")]
  origin = f", {printable(test.about.origin)}" if test.about.origin else ""
  rows.append(("held out", f"{len(test):,} images{origin}"))
  rows += [("note", printable(note)) for note in test.about.notes if note not in train.about.notes]
  if strange := sorted(set(trained_classes(test)) - set(sampled_classes(job))):
    names = [printable(train.about.classes[i]) if train.about.classes else str(i) for i in strange]
    rows.append(("note", f"held-out classes without a training image: {', '.join(names[:10])}"))
  return rows


def _feed(experiment: Experiment, source: Source) -> Source:
  """Return the training split, or its latents for a model that trains on latents."""
  if not experiment.sections["generative"].trains_on_latents:
    return source
  feed = parallel.process_0_first(
    lambda: experiment.data.load_latents("train", experiment.to_dict())
  )
  check_same_everywhere(feed)
  return feed


def check_same_everywhere(source: Source) -> None:
  """Raise an error if the processes read different data.

  Raises:
    UserError: some processes differ from process 0; the message names them.
  """
  if jax.process_count() == 1:
    return
  prints = parallel.all_gather_objects(fingerprint(source))
  other = [str(process) for process, own in enumerate(prints) if own != prints[0]]
  if other:
    raise UserError(
      f"{source.name}: process {', '.join(other)} reads other data than process 0; copy the "
      "same data to all hosts"
    )


def first_state(job: Job) -> tuple[TrainState, bool]:
  """Return the state from which to continue, and whether it comes from a checkpoint.

  Damaged checkpoints newer than the restored one are moved away.

  Raises:
    UserError: the folder has a run that this one cannot continue.
  """
  experiment = job.experiment
  names = experiment.ema.names()
  init = make_init(job.generative, experiment.optimizers, experiment.training, names)
  shapes = state_shapes(job)
  layout = sharding.state_shardings(job.mesh, shapes)
  if not parallel.broadcast_object(bool(store.saved_steps(job.checkpoints))):
    write_config(job.workdir, experiment.to_dict())
    return _new_state(job, init, layout), False
  harmless = check_continues(job.workdir, experiment)
  data = describe_run_data(job)["data"]

  def foreign(meta: Mapping[str, Any]) -> str | None:
    reason = of_another_run(experiment.to_dict(), meta)
    if reason is None:  # before the weights: other classes need a network of another size
      check_same_data(job.workdir, meta["data"], data)
    return reason

  target = stored_target(shapes, layout)
  restored = store.restore_checkpoint(job.checkpoints, target, foreign=foreign)
  _check_draws(job, restored)
  if harmless:
    print(f"changed since the run began: {'; '.join(harmless)}")
  parallel.on_process_0(lambda: _put_aside(job, restored.damaged))
  write_config(job.workdir, experiment.to_dict())
  state = restored.state
  return state if isinstance(state, TrainState) else from_averages(state), True


def _new_state(job: Job, init: Callable[..., TrainState], layout: TrainState) -> TrainState:
  """Return the state before the first step, with random weights or those of another run."""
  seed, origin = np.uint32(job.experiment.training.seed), job.origin
  with watchdog.allow(watchdog.COMPILE_SEC), progress.phase("creating the state"):
    state = jax.block_until_ready(jax.jit(init, out_shardings=layout)(seed))
    if origin is None:
      return state
    params = load_origin(origin, job.mesh, state.params)
    state = jax.jit(init, out_shardings=layout)(seed, params)
  parallel.on_process_0(lambda: write_record(origin, job.workdir))
  return jax.block_until_ready(state)


def _check_draws(job: Job, restored: store.Restored) -> None:
  """Refuse to train on from a checkpoint of a version with other random streams.

  Raises:
    UserError: it is one, and has steps left.
  """
  draws = restored.meta.get("draws", 1)
  if draws != rng.DRAWS and not is_finished(job.workdir, restored.step, job.num_steps):
    raise UserError(
      f"{job.workdir} was trained with the random streams of "
      f"{'an older' if draws < rng.DRAWS else 'a newer'} version (draws {draws}, now {rng.DRAWS}) "
      "and cannot be trained on; sample and evaluate it as it is, or start a new run with "
      "another `workdir`, or `fresh=True` to move this one aside"
    )


def stored_target(shapes: TrainState, layout: TrainState) -> Callable[[Mapping[str, Any]], Any]:
  """Return the function from a checkpoint's leaves to a restore target, for all versions.

  Args:
    shapes: state as ShapeDtypeStructs.
    layout: shardings of the state.
  """

  def target(leaves: Mapping[str, Any]) -> Any:
    if holds_averages(leaves):
      return sharding.as_target(with_averages(shapes), with_averages(layout))
    return sharding.as_target(shapes, layout)

  return target


def _put_aside(job: Job, damaged: tuple[store.Damage, ...]) -> None:
  for damage, target in zip(
    damaged, step_folders.quarantine(job.checkpoints, damaged), strict=True
  ):
    print(f"checkpoint {damage.step} is damaged ({damage.reason}): moved to {target}")


def state_shapes(job: Job) -> TrainState:
  """Return the run's state as ShapeDtypeStructs."""
  experiment = job.experiment
  names = experiment.ema.names()
  init = make_init(job.generative, experiment.optimizers, experiment.training, names)
  return jax.eval_shape(init, np.uint32(0))


def describe_run_data(job: Job) -> dict[str, Any]:
  """Return the metadata saved with a state."""
  data = {**source_identity(job.train), "spec": job.train.spec.to_json()}
  if len(trained := sampled_classes(job)) < job.train.spec.num_classes:
    data["trained_classes"] = trained
  if len(names := class_names(job.train.about)) == job.train.spec.num_classes and names:
    data["classes"] = names
  if job.feed is not job.train:
    data["latents"] = source_identity(job.feed)
  return {"config": job.experiment.to_dict(), "data": data, "draws": rng.DRAWS}


def _counted(job: Job) -> About:
  """Return facts about the training images; latents know the labels of unread images too."""
  about = job.train.about
  return about if about.counts is not None else about._replace(counts=job.feed.about.counts)


def sampled_classes(job: Job) -> list[int]:
  """Return the labels of the training images, which are the classes to sample."""
  known = job.train if job.train.about.counts is not None else job.feed
  return trained_classes(known)
