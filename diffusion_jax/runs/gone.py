"""Stand-ins for parts of a run that cannot be loaded and that only training needs.

Only training needs a loss, an optimizer and a data set. If a user's own is deleted or renamed
afterwards, the run can still be sampled and measured; any use of the part raises an error.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp

from diffusion_jax.core.config import Override, build
from diffusion_jax.core.registry import Registry, Section
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.training.optimizers import OPTIMIZERS
from diffusion_jax.types import UserError

Sections = Mapping[str, Mapping[str, Any]]


class GonePart:
  """A part with the fields that were stored; its use raises the error of loading it."""

  error = ""

  def refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise the error of loading the part."""
    raise UserError(self.error)


class GoneDataSet(GonePart):
  """A data set that fits any model: a model only checks that latents exist if it needs them."""

  flip = False
  has_latents = True
  load = has_split = known_spec = load_latents = autoencoder = GonePart.refuse


class GoneOptimizer(GonePart):
  """An optimizer, which only training and the state of a training use."""

  clip_scope = "global"
  rates = rate = create = GonePart.refuse


class GoneLoss(GonePart):
  """A loss that fits any model; `needs_variance` and `gives_end_time` follow the network."""

  needs_derivative = False
  needs_levels = False
  needs_average = False
  needs_mean_kl = False
  trains_schedule = True
  minimised_by_mean = False
  needs_variance = False
  gives_end_time = False
  params: Mapping[str, Any] = {}
  __call__ = GonePart.refuse

  def init(self, key: Any) -> Mapping[str, Any]:
    """Return parameters of the stored shapes."""
    del key
    return self.params

  def initial_state(self, process: Any) -> Mapping[str, Any]:
    """Return no state."""
    del process
    return {}


def unusable_parts(
  config: Sections, layout: Mapping[str, Section], overrides: Sequence[Override]
) -> dict[str, UserError]:
  """Return section -> error for parts that only training needs and that cannot be loaded.

  Args:
    config: sections of a stored run.
    layout: name -> registry or class of each section.
    overrides: overrides of the config; a section that they change must be loadable.
  """
  changed = {o.section for o in overrides}
  found = {}
  for name, section in layout.items():
    serves_training = name in ("data", "loss") or section is OPTIMIZERS
    if isinstance(section, Registry) and serves_training and name not in changed:
      fields = config.get(name, {})
      entry = str(fields.get("name"))
      try:
        section.find(entry, f"config.{name}.name")
        if entry not in section:  # a class of the user's own may have other fields by now
          build(section, fields, name)
      except UserError as error:
        found[name] = error
  return found


def with_stand_ins(
  experiment: Experiment,
  config: Sections,
  errors: Mapping[str, UserError],
  leaves: Mapping[str, Any],
) -> Experiment:
  """Return the experiment with stand-ins for parts that cannot be loaded.

  Args:
    experiment: the experiment with any other parts in their place.
    config: stored sections.
    errors: section -> why its part cannot be loaded.
    leaves: description of the stored state's leaves by name, for parameters of the loss.
  """
  parts = {}
  for name, error in errors.items():
    say_put_off(f"{error} These weights are used without it.")
    more: dict[str, Any] = {"error": str(error), "stored_name": str(config[name]["name"])}
    base: type = GoneDataSet if name == "data" else GoneOptimizer
    if name == "loss":
      base, network = GoneLoss, experiment.sections["model"]
      more["params"] = loss_params(leaves)
      more["needs_variance"] = getattr(network, "learned_variance", False)
      more["gives_end_time"] = "end_time" in getattr(network, "takes", ())
    parts[name] = _stand_in(base, config[name], more)
  return Experiment({**experiment.sections, **parts}, experiment.layout)


@functools.cache
def say_put_off(line: str) -> None:
  """Print a line the first time: a program reads the config more than once."""
  print(f"warning: {line}")


def _stand_in(base: type, stored: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
  fields = []
  for name, value in stored.items():
    if name != "name":
      held = _hashable(value)
      fields.append((name, type(held), dataclasses.field(default_factory=lambda held=held: held)))
  return dataclasses.make_dataclass(
    base.__name__, fields, bases=(base,), namespace=dict(more), frozen=True
  )()


def _hashable(value: Any) -> Any:
  return tuple(map(_hashable, value)) if isinstance(value, list) else value


def loss_params(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Return zeros in the shapes of a loss's stored parameters, {} if it had none.

  Args:
    leaves: shape and type of each leaf of the stored state, by its path.
  """
  params: dict[str, Any] = {}
  for name, leaf in leaves.items():
    first, *path = name.split("/")
    if first == "params" and "loss" in path[:2] and "network" not in path[:2]:
      *groups, last = path[path.index("loss") + 1 :]
      inner = params
      for group in groups:
        inner = inner.setdefault(group, {})
      inner[last] = jnp.zeros(leaf["shape"], leaf["dtype"])
  return params
