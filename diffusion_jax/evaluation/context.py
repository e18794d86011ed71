"""Load and check everything that an evaluation of a run needs, before any work starts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import progress, rng
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.config import Override, parse_override
from diffusion_jax.core.files import bucket_path
from diffusion_jax.data import (
  Source,
  fetch_data,
  load_splits,
  make_batch,
  source_identity,
  trained_classes,
)
from diffusion_jax.evaluation import (
  bits_per_dim,
  foreign_statistics,
  noise_levels,
  presets,
  reference,
)
from diffusion_jax.evaluation.foreign_statistics import ForeignStatistics
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.sweep_grid import sweep_points
from diffusion_jax.extractors import (
  VISION,
  Extract,
  Extractor,
  load_domain,
  load_inception,
  make_extract,
  optional_inception,
  optional_vision,
  train_domain,
)
from diffusion_jax.extractors.domain import Recipe, default_features_path
from diffusion_jax.extractors.inception_extractor import is_inception
from diffusion_jax.inference.condition_fields import fields_in_turn
from diffusion_jax.inference.draw import Draw, make_draw
from diffusion_jax.metrics import Metric, create_metrics
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.experiment import Experiment, SettingFacts
from diffusion_jax.runs.stored import check_same_data, stored_experiment, trained_experiment
from diffusion_jax.types import Condition, GenerativeModel, UserError

EXTRACT_BATCH = 64


class FeatureSpace(NamedTuple):
  """A feature network with the reference features that samples are compared with."""

  extractor: Extractor
  extract: Extract
  reference: Reference


class SamplerSetting(NamedTuple):
  """One setting of the sampler.

  Attributes:
    overrides: differences from the run's own settings, "sampler.steps" -> value as typed.
    generative: model built with them.
    draw: its compiled sampler.
    facts: everything that its samples depend on except weights and seed, as JSON values.
  """

  overrides: Mapping[str, str]
  generative: GenerativeModel
  draw: Draw
  facts: Mapping[str, Any]


class EvaluationContext(NamedTuple):
  """A run's model, data and feature spaces.

  Attributes:
    workdir: folder of the run.
    folder: folder of the outcomes of its steps.
    experiment, generative: the run's config with overrides, and its model.
    mesh: device mesh.
    train, test: the splits; a data set may lack the second.
    extractors: available feature networks.
    feature_spaces: feature networks with their references, which `equip` computes.
    is_equipped: true after `equip`.
    missing: descriptions of unavailable measurements, one line each.
    splits: features of each split in the first feature space, for nearest neighbours.
    setting: the run's sampler setting; `sweep`: other settings.
    estimates: compiled likelihoods by name; `errors`: the compiled spectrum, if the model has one.
    seed: seed of samples and draws.
    classes: labels of samples, those of the training images; empty for an unconditional model.
    metrics: sample metrics.
    foreign: statistics of another program, with which the samples are compared too.
  """

  workdir: Path
  folder: Path
  experiment: Experiment
  generative: GenerativeModel
  mesh: Mesh
  train: Source
  test: Source | None
  extractors: Sequence[Extractor]
  missing: Sequence[str]
  setting: SamplerSetting
  sweep: Sequence[SamplerSetting]
  estimates: Mapping[str, Callable]
  errors: Callable | None
  seed: int
  classes: Sequence[int]
  feature_spaces: Sequence[FeatureSpace] = ()
  splits: Mapping[str, Reference] = {}
  is_equipped: bool = False
  metrics: Sequence[Metric] = ()
  foreign: ForeignStatistics | None = None

  @property
  def num_samples(self) -> int:
    """Return the number of samples per seed."""
    asked = self.experiment.eval.num_samples
    return asked or min(len(split_of(self, self.experiment.eval.reference_split)), 50_000)

  @property
  def checkpoints(self) -> store.Place:
    return checkpoint_folder(self.workdir)


class Request(NamedTuple):
  """The measurements requested on the command line.

  Attributes:
    workdir: folder of the run.
    overrides: overrides of its config.
    seed: seed of samples and draws.
    sweep: texts "section.field=value,value,...", each an axis of the grid.
    features, inception: files of weights; None: the usual places; "none": omit this network.
    any_inception: also accept unpublished weights of the Inception network.
    out: folder of the outcomes; None: eval/ in the run's folder.
    vision: files of weights of DINOv2 and CLIP by their names, as for `inception`.
    reference: file of statistics of another program, for further figures; None: none.
  """

  workdir: Path
  overrides: Sequence[Override]
  seed: int = 0
  sweep: Sequence[str] = ()
  features: str | None = None
  inception: str | None = None
  any_inception: bool = False
  out: Path | None = None
  vision: Mapping[str, str | None] = MappingProxyType(dict.fromkeys(VISION, "none"))
  reference: Path | None = None

  @property
  def folder(self) -> Path:
    """Return the folder of the outcomes of all steps."""
    return self.out or self.workdir / "eval"

  @property
  def has_features(self) -> bool:
    """Return whether the flags allow sample metrics."""
    files = (self.features, self.inception, *self.vision.values())
    return any(file != "none" for file in files)


def prepare_evaluation(request: Request) -> EvaluationContext:
  """Load config, data and available extractors, and make all checks that they allow.

  Nothing is trained, drawn or measured here: see `equip`.

  Raises:
    UserError: one of them is missing or does not fit.
  """
  experiment = trained_experiment(request.workdir, request.overrides)
  points, metrics = sweep_points(request.sweep), create_metrics(experiment.eval.metrics)
  with progress.phase("reading the data"):
    parallel.fetch_at_once(lambda: fetch_data(experiment.data))
    train, test = parallel.process_0_first(lambda: load_splits(experiment.data))
  saved = _check_data(request.workdir, train, test)
  experiment, line = presets.fill_in(experiment, request.overrides)
  parallel.on_process_0(lambda: print(line, flush=True) if line else None)
  generative = experiment.create(train.spec)
  mesh = sharding.create_mesh(experiment.mesh)
  estimates = _estimates(experiment, generative, mesh)
  sweep = [_setting(request, overrides, train, mesh) for overrides in points]
  extractors, missing = find_extractors(request, train)
  foreign = parallel.agree(
    lambda: foreign_statistics.load_beside(request.reference, extractors, missing, train.spec.shape)
  )
  context = EvaluationContext(
    request.workdir, request.folder, experiment, generative, mesh, train, test, extractors, missing,
    _setting(request, {}, train, mesh), sweep, estimates,
    noise_levels.make_spectrum(generative, mesh) if experiment.eval.spectrum_images else None,
    request.seed,
    saved.get("trained_classes", trained_classes(train)) if generative.num_classes else (),
    metrics=metrics,
    foreign=foreign,
  )  # fmt: skip
  _check_splits(context, request.has_features)
  with progress.phase("checking the sampler and the likelihoods", 1 + len(sweep)) as phase:
    check_traces(generative, list(estimates), train)
    for setting in context.sweep:
      phase.advance()
      check_traces(setting.generative, [], train)
  return context


def equip(context: EvaluationContext, request: Request) -> EvaluationContext:
  """Add the data's own features, trained once, and the references of all extractors.

  Raises:
    UserError: a file cannot be written, or the weights differ between hosts.
  """
  extractors = list(context.extractors)
  if request.features is None:
    extractors.insert(0, _domain(None, context.train, context.test))
  return _with_references(context, extractors)._replace(is_equipped=True)


def _check_data(workdir: Path, train: Source, test: Source | None) -> Mapping[str, Any]:
  """Return facts on the newest checkpoint's training data, which must be these data."""
  saved = store.read_meta(checkpoint_folder(workdir))["data"]
  check_same_data(workdir, saved, {**source_identity(train), "spec": train.spec.to_json()})
  if test is not None and test.spec != train.spec:
    raise UserError(f"the splits do not fit each other: {train.spec} and {test.spec}")
  return saved


def _check_splits(context: EvaluationContext, has_features: bool) -> None:
  """Raise an error if a requested split is missing or too small."""
  options = context.experiment.eval
  if context.estimates:
    split_of(context, options.likelihood_split)
  split_of(context, options.reference_split)
  for source in (context.train, context.test):
    if has_features and source is not None:
      reference.check_num(source)


def sampled_fields(context: EvaluationContext, first: int, num: int) -> dict[str, np.ndarray]:
  """Return the named arrays that samples are given: those of the reference split, in turn."""
  source = split_of(context, context.experiment.eval.reference_split)
  return fields_in_turn(context.generative, source, first, num)


def check_traces(generative: GenerativeModel, names: Sequence[str], train: Source) -> None:
  """Trace a model's sampler and likelihoods without running them, so that their errors show.

  Raises:
    UserError: parts do not fit each other.
  """
  one = make_batch(train, np.arange(1), np.arange(1))

  def trace(batch: Any) -> Any:
    params, keys = generative.init(jax.random.key(0))[0], rng.sample_keys(0, one.index)
    fields = {name: batch.fields[name] for name in generative.fields}
    condition = Condition(batch.label if generative.num_classes else None, fields=fields)
    drawn = generative.sample(params, keys, condition)
    estimates = [generative.likelihoods[name](params, keys, batch) for name in names]
    return drawn.images, [estimate.bits_per_dim for estimate in estimates]

  try:
    jax.eval_shape(trace, one)
  except ValueError as error:
    raise UserError(f"config: {error}") from error


def split_of(context: EvaluationContext, name: str) -> Source:
  """Return the named split.

  Raises:
    UserError: the data set has no test split.
  """
  if name == "train":
    return context.train
  if context.test is None:
    raise UserError(
      f"{context.train.name}: the data set has no test split; measure the training split with "
      "`eval.reference_split=train` `eval.likelihood_split=train`, or no likelihood "
      "with `eval.likelihoods=None`"
    )
  return context.test


def _estimates(
  experiment: Experiment, generative: GenerativeModel, mesh: Mesh
) -> dict[str, Callable]:
  """Return the requested likelihoods; none if their split is missing."""
  asked, there = experiment.eval.likelihoods, list(generative.likelihoods)
  names = there if asked == "all" else experiment.figure_names(asked)
  for name in names:
    if name not in there:
      has = ", ".join(there) or "none"
      raise UserError(f"`eval.likelihoods={name}`: this model has {has}; or all, or none")
  return {name: bits_per_dim.make_estimate(generative, name, mesh) for name in names}


def _setting(
  request: Request, point: Mapping[str, str], train: Source, mesh: Mesh
) -> SamplerSetting:
  added = [parse_override(f"--config.{name}={value}") for name, value in point.items()]
  experiment = stored_experiment(request.workdir, [*request.overrides, *added])
  generative = experiment.create(train.spec)
  sections = experiment.to_dict()
  declared = SettingFacts(sections)
  facts = {n: sections[n] for n in sections if declared.of_section("affects_samples", n)}
  size = experiment.eval.batch_size
  return SamplerSetting(point, generative, make_draw(generative, mesh, size), facts)


def find_extractors(request: Request, train: Source) -> tuple[list[Extractor], list[str]]:
  """Return the named or available feature networks, and a line for each unavailable one.

  The data set's own network may still have to be trained if no file is named: `equip` adds it.

  Raises:
    UserError: a named file is missing or invalid.
  """
  extractors, missing = [], []
  if request.features not in (None, "none"):
    extractors.append(_domain(request.features, train, None))
  networks, reasons = optional_inception(request.inception, lambda: _inception(request))
  vision, lacking = optional_vision(request.vision, parallel.agree)
  for extractor in vision:
    _check_same_weights(extractor)
  return extractors + networks + vision, missing + reasons + lacking


def _inception(request: Request) -> Extractor:
  path = None if request.inception is None else bucket_path(request.inception)
  extractor = parallel.agree(lambda: load_inception(path, request.any_inception))
  _check_same_weights(extractor)
  return extractor


def _check_same_weights(extractor: Extractor) -> None:
  """Raise an error if the weights differ between hosts."""
  hashes = parallel.all_gather_objects(extractor.stamp["sha256"])
  if len(set(hashes)) > 1:
    raise UserError(
      f"the weights of {extractor.name} differ between the hosts ({', '.join(hashes)}); copy the "
      "same file to all"
    )


def _train_domain(train: Source, test: Source | None, path: Path) -> None:
  what = "training the" if train.spec.num_classes else "no labels: standardising random"
  print(f"{what} features of {train.name}, once: {path}", flush=True)
  train_domain(train, test, path, Recipe())


def _domain(path: str | None, train: Source, test: Source | None) -> Extractor:
  place = default_features_path(train) if path is None else bucket_path(path)
  if path is None:
    parallel.on_process_0(lambda: None if place.is_file() else _train_domain(train, test, place))
    parallel.share_file(place)
  extractor = parallel.agree(lambda: load_domain(place))
  _check_same_weights(extractor)
  if extractor.resolution != train.spec.shape:
    raise UserError(
      f"--features={place} takes images of {extractor.resolution}, {train.name} has "
      f"{train.spec.shape}; leave --features out"
    )
  return extractor


def _with_references(
  context: EvaluationContext, extractors: Sequence[Extractor]
) -> EvaluationContext:
  """Add the feature spaces, and for the first of them the features of both splits."""
  feature_spaces, splits = [], {}
  for extractor in extractors:
    extract = make_extract(extractor, context.mesh, EXTRACT_BATCH)
    names = [context.experiment.eval.reference_split]
    if not feature_spaces:
      names = ["train"] + ["test"] * (context.test is not None)
    folder = reference.statistics_folder()
    references = {
      n: reference.cached(split_of(context, n), n, extractor, extract, folder) for n in names
    }
    splits = splits or references
    feature_spaces.append(
      FeatureSpace(extractor, extract, references[context.experiment.eval.reference_split])
    )
    if context.foreign is not None and is_inception(extractor):
      stamp = foreign_statistics.foreign_stamp(context.foreign, extractor, context.train.spec.shape)
      theirs = foreign_statistics.as_reference(context.foreign, stamp, extractor, extract)
      feature_spaces.append(FeatureSpace(extractor, extract, theirs))
  return context._replace(feature_spaces=feature_spaces, splits=splits)
