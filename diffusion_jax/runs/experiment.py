"""A whole config: its sections, and the changes that a run may continue with."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.checkpoints.store import Checkpointing
from diffusion_jax.core.config import Override, resolve, to_dict
from diffusion_jax.core.field_types import field_types, stored_form
from diffusion_jax.core.own_code import own_code, own_refusal
from diffusion_jax.core.registry import Registry, Section
from diffusion_jax.core.settings import field_fact, section_fact
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.data import SOURCES
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS, VAE_LIKELIHOODS
from diffusion_jax.likelihood.outside import outside_entries, section_of
from diffusion_jax.parallel import Distributed
from diffusion_jax.parallel.sharding import MeshShape
from diffusion_jax.runs import own_parts
from diffusion_jax.runs.evaluating import Evaluating
from diffusion_jax.runs.storable import warn_of_main
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.logger import Logging
from diffusion_jax.training.optimizers import OPTIMIZERS, Optimizer
from diffusion_jax.training.step import Training
from diffusion_jax.types import GenerativeModel, ImageSpec, UserError

COMMON: Mapping[str, Section] = {
  "generative": GENERATIVES,
  "data": SOURCES,
  "optimizer": OPTIMIZERS,
  "ema": EMA,
  "training": Training,
  "eval": Evaluating,
  "checkpoint": Checkpointing,
  "logging": Logging,
  "mesh": MeshShape,
  "distributed": Distributed,
}

NETWORKS = ("model", "autoencoder")
"""Sections of networks, whose derived numbers can be written out."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A resolved config.

  Attributes:
    sections: name -> built dataclass, for the common sections and the model's own.
    layout: name -> registry or class from which each section was built.
  """

  sections: Mapping[str, Any]
  layout: Mapping[str, Section]

  @property
  def data(self) -> Any:
    return self.sections["data"]

  @property
  def optimizer(self) -> Optimizer:
    return self.sections["optimizer"]

  @property
  def optimizers(self) -> Mapping[str, Optimizer]:
    """The optimizer of each section that has one: "optimizer", and "..._optimizer" of a model."""
    return {n: self.sections[n] for n, section in self.layout.items() if section is OPTIMIZERS}

  @property
  def ema(self) -> EMA:
    return self.sections["ema"]

  @property
  def training(self) -> Training:
    return self.sections["training"]

  @property
  def eval(self) -> Evaluating:
    return self.sections["eval"]

  @property
  def checkpoint(self) -> Checkpointing:
    return self.sections["checkpoint"]

  @property
  def logging(self) -> Logging:
    return self.sections["logging"]

  @property
  def mesh(self) -> MeshShape:
    return self.sections["mesh"]

  @property
  def distributed(self) -> Distributed:
    return self.sections["distributed"]

  def create(self, spec: ImageSpec) -> GenerativeModel:
    """Build the model for a data set.

    Raises:
      UserError: parts do not fit each other or the data.
    """
    own_parts.check_process(self.sections)
    try:
      with own_code(self.sections, refusals=(ValueError,)):
        model = self.sections["generative"].create(self.sections, spec)
    except ValueError as error:
      line = own_refusal(self.sections, error) or f"config: {error}"
      raise UserError(line) from error
    own_parts.check_sampling(self.sections, model, spec)
    return model

  def replace(self, **sections: Any) -> "Experiment":
    """Return the experiment with other built sections, e.g. sampler=Heun(steps=18).

    Raises:
      UserError: there is no such section, its registry has no such entry, or a field has a value
        that its type does not allow.
    """
    for name, instance in sections.items():
      if name not in self.layout:
        raise UserError(f"this model has no {name}.{spelling_hint(name, self.layout)}")
      section, cls = self.layout[name], type(instance)
      fault = None
      if isinstance(instance, type):
        raise UserError(f"{name}={instance.__name__}: it is a class; give {instance.__name__}()")
      if not dataclasses.is_dataclass(instance):
        raise UserError(f"{name}={instance!r}: {_built_example(name, section)}")
      if isinstance(section, Registry):
        fault = section.fault(cls)
      elif not issubclass(cls, section):
        fault = f"it must be a {section.__name__}"
      if fault:
        raise UserError(f"{name}={cls.__name__}: {fault}")
    checked = {name: _checked(instance, name) for name, instance in sections.items()}
    return Experiment({**self.sections, **checked}, self.layout)

  def figure_names(self, likelihoods: Sequence[str]) -> list[str]:
    """Return the names of the figures of likelihoods, of which some are entries from outside."""
    outside = _outside_names(self.layout, {"likelihoods": likelihoods})
    sections = {name: section_of(name) for name in likelihoods}
    return [self.sections[s].figure_name if s in outside else n for n, s in sections.items()]

  def warnings(self) -> dict[str, str]:
    """Return {"warning": line} for a combination that works but is unlikely to be meant, or {}."""
    lines = [self.sections["generative"].warning(self.sections), warn_of_main(self.sections)]
    warning = "; ".join(line for line in lines if line)
    return {"warning": warning} if warning else {}

  def identity(self) -> dict[str, dict[str, Any]]:
    """Return `to_dict` with derived numbers of the parts filled in.

    Two configs of the same model have the same identity, even if one has a number and the other
    derives it by the same rule.
    """
    networks = {n: self.sections[n].settled() for n in NETWORKS if n in self.sections}
    sections = {**self.sections, **networks}
    return {n: to_dict(sections[n], section) for n, section in self.layout.items()}

  def to_dict(self) -> dict[str, dict[str, Any]]:
    """Return all sections with all fields, as in config.json."""
    return {n: to_dict(self.sections[n], section) for n, section in self.layout.items()}


def _checked(instance: Any, name: str) -> Any:
  """Return a built part with its numbers as a config stores them."""
  try:
    return stored_form(instance)
  except (TypeError, ValueError) as error:
    raise UserError(f"{name}: {error}") from error


def _built_example(name: str, section: Section) -> str:
  """Return a sentence with an example of a built part of a section."""
  if not isinstance(section, Registry):
    return f"it must be a built {section.__name__}, such as {section.__name__}()"
  entry = next(iter(section.values()))
  return f"it must be a built {section.kind}, such as {entry.__name__}()"


def build_experiment(raw: Mapping[str, Any], overrides: Sequence[Override] = ()) -> Experiment:
  """Build an experiment from the content of a config file or config.json, and overrides.

  Raises:
    UserError: see `config.resolve`.
  """
  raw, overrides = of_today(raw), [_override_of_today(o) for o in overrides]
  layout = layout_of(raw, overrides)
  _check_kind(layout, {*raw, *(o.section for o in overrides)})
  before, own = raw.get("eval", {}), [o for o in overrides if o.section == "eval"]
  now = resolve({"eval": before}, own, {"eval": Evaluating})["eval"]
  outside = _outside_likelihoods(layout, vars(now))
  if taken := sorted(outside.keys() & layout.keys()):
    raise UserError(f"config.eval.likelihoods: there is a section {taken[0]} already; rename yours")
  gone = _outside_names(layout, before) - outside.keys()  # of entries that are no longer named
  layout |= outside
  kept = {name: section for name, section in raw.items() if name not in gone}
  return Experiment(resolve(kept, overrides, layout), layout)


def layout_of(raw: Mapping[str, Any], overrides: Sequence[Override] = ()) -> dict[str, Section]:
  """Return section -> registry or class, for the kind of model of a config.

  Raises:
    UserError: there is no such kind, or none is named.
  """
  return {**COMMON, **_model_sections(raw, overrides)}


def _check_kind(layout: Mapping[str, Section], given: set[str]) -> None:
  """Raise an error for sections that another kind of model has, e.g. the sampler of a VAE."""
  kinds = {kind: set(cls.sections) for kind, cls in GENERATIVES.items()}
  foreign = sorted(given & set().union(*kinds.values()) - layout.keys())
  if not foreign:
    return
  own = next((kind for kind, names in kinds.items() if names <= layout.keys()), "this kind")
  others = [kind for kind, names in kinds.items() if names.intersection(foreign)]
  raise UserError(
    f"config.generative.name={own}: such a model has no section {', '.join(foreign)}, which "
    f"{'belongs' if len(foreign) == 1 else 'belong'} to {' and '.join(others)}; start from a "
    "shipped config of the kind that you want (diffusion-jax configs lists them)"
  )


def _likelihood_registry(layout: Mapping[str, Section]) -> Registry | None:
  """Return the registry of likelihoods of a kind of model, by the sections of its layout."""
  registries = (DIFFUSION_LIKELIHOODS, VAE_LIKELIHOODS)
  return next((r for r in registries if r.keys() <= layout.keys()), None)


def _outside_names(layout: Mapping[str, Section], evaluating: Mapping[str, Any]) -> set[str]:
  registry = _likelihood_registry(layout)
  return set() if registry is None else {*outside_entries(registry, evaluating)}


def _outside_likelihoods(
  layout: Mapping[str, Section], evaluating: Mapping[str, Any]
) -> dict[str, type]:
  """Return section -> class of the likelihoods of other packages that `eval` names.

  Raises:
    UserError: one cannot be imported, or breaks its contract.
  """
  registry = _likelihood_registry(layout)
  if registry is None:
    return {}
  entries = outside_entries(registry, evaluating)
  return {section: registry.find(e, "config.eval.likelihoods") for section, e in entries.items()}


def _model_sections(raw: Mapping[str, Any], overrides: Sequence[Override]) -> Mapping[str, Section]:
  """Return the sections of the chosen kind of model, before all sections are checked."""
  section = raw.get("generative", {})
  name = section.get("name") if hasattr(section, "get") else section
  for override in overrides:
    if (override.section, override.field) == ("generative", "name"):
      name = override.text
  for registry in (DIFFUSION_LIKELIHOODS, VAE_LIKELIHOODS):
    for likelihood in registry:
      registry.find(likelihood, registry.kind)
  if name is None:
    raise UserError(_without_a_model(raw))
  return GENERATIVES.find(str(name), "config.generative.name").sections


def section_names() -> set[str]:
  """Return the names of all sections, those of each kind of model included."""
  return {*COMMON, *(name for cls in GENERATIVES.values() for name in cls.sections)}


def _without_a_model(raw: Mapping[str, Any]) -> str:
  """Return the mistake of a config that names no kind of model: often a misspelt section."""
  known = section_names()
  for name, section in raw.items():
    if name not in known:
      return f"config has no section '{name}'.{spelling_hint(name, known)}"
    if not hasattr(section, "get"):
      return f"config.{name} is {section!r}; it must be a section with fields."
  return f"config.generative.name is missing. Allowed: {', '.join(GENERATIVES.allowed())}."


REMAT = {
  "False": "none",
  "True": "block",
  "'products'": "dots_with_no_batch_dims_saveable",
}
RESPELT = {
  ("model", "remat"): REMAT,
  ("autoencoder", "remat"): REMAT,
  ("eval", "likelihoods"): {"None": "all"},
}
"""(section, field) -> repr of a value that older versions had -> its value now."""


def of_today(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Return a config with the values of older versions replaced by today's."""
  config = {n: dict(s) if isinstance(s, Mapping) else s for n, s in stored.items()}
  for (section, field), values in RESPELT.items():
    fields = config.get(section)
    if isinstance(fields, dict) and field in fields:
      fields[field] = values.get(repr(fields[field]), fields[field])
  return config


def _override_of_today(override: Override) -> Override:
  values = RESPELT.get((override.section, override.field), {})
  return override._replace(text=values.get(repr(override.text), override.text))


class SettingFacts:
  """Facts about the fields of whole configs; see `core.settings`.

  Args:
    configs: section name -> fields, as in config.json. The first that has a section and a field
      decides. Sections and classes that no longer exist have the strict defaults.
  """

  def __init__(self, *configs: Mapping[str, Mapping[str, Any]]):
    self._built = [_built_from(config) for config in configs]

  def of_section(self, fact: str, section: str) -> bool:
    """Return a fact about all fields of a section."""
    found = next((built[section] for built in self._built if section in built), None)
    return section_fact(fact, *(found or (None, None)))

  def of_field(self, fact: str, section: str, field: str) -> bool:
    """Return a fact about one field, or about the choice of the entry: "name"."""
    found = [built[section] for built in self._built if section in built]
    found.sort(key=lambda entry: entry[1] is None or field not in field_types(entry[1]))
    return field_fact(fact, *(found or [(None, None)])[0], field)


def _built_from(config: Mapping[str, Any]) -> dict[str, tuple[Section, type | None]]:
  """Return section name -> its registry or class, and the chosen class; None if that is gone."""
  layout = dict(COMMON)
  with contextlib.suppress(UserError):
    layout |= GENERATIVES.find(str(config.get("generative", {}).get("name")), "").sections
  likelihoods = (DIFFUSION_LIKELIHOODS, VAE_LIKELIHOODS)
  built = {}
  for name, section in layout.items():
    cls = section if isinstance(section, type) else None
    if isinstance(section, Registry):
      with contextlib.suppress(UserError):
        cls = section.find(str(config.get(name, {}).get("name")), "")
    built[name] = next((r for r in likelihoods if name in r), section), cls
  with contextlib.suppress(UserError):
    for name, cls in _outside_likelihoods(layout, config.get("eval", {})).items():
      built[name] = _likelihood_registry(layout), cls
  return built
