"""Objectives of a training step: losses, the parameters they train, and their optimizers.

Normally there is one objective over all parameters, and its optimizer state, loss state and rates
are stored directly; with several objectives each of these is a dict by their names. All objectives
take their gradient at the same parameters and with the same key, so that a discriminator sees the
images that its generator is trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_jax.training.optimizers import Optimizer
from diffusion_jax.types import GenerativeModel, Objective, Params

Optimizers = Optimizer | Mapping[str, Optimizer]
"""One optimizer for all parameters, or a config's optimizer sections by name."""


class Trained(NamedTuple):
  """An objective with its optimizer."""

  objective: Objective
  optimizer: Optimizer

  @property
  def name(self) -> str:
    return self.objective.name

  def own(self, params: Params) -> Params:
    """Return the parameters that it trains."""
    group = self.objective.group
    return {name: params[name] for name in group} if group else params

  def merged(self, params: Params, group_params: Params) -> Params:
    """Return the parameters with those that it trains replaced."""
    return {**params, **group_params} if self.objective.group else group_params


def trained_objectives(model: GenerativeModel, optimizers: Optimizers) -> list[Trained]:
  """Return the model's objectives with their optimizers.

  Raises:
    ValueError: two objectives train the same parameters, or an optimizer is missing.
  """
  objectives = model.objectives
  _check_groups(objectives)
  by_name = optimizers if isinstance(optimizers, Mapping) else {"optimizer": optimizers}
  missing = [o.optimizer for o in objectives if o.optimizer not in by_name]
  if missing:
    raise ValueError(f"optimizers={list(by_name)} lacks {', '.join(missing)}")
  return [Trained(objective, by_name[objective.optimizer]) for objective in objectives]


def _check_groups(objectives: Sequence[Objective]) -> None:
  if len({o.name for o in objectives}) < len(objectives) or not objectives:
    raise ValueError(f"objectives={[o.name for o in objectives]} need different names")
  if len(objectives) == 1:
    return
  names = [name for objective in objectives for name in objective.group]
  if len(set(names)) < len(names) or not all(o.group for o in objectives):
    groups = {o.name: o.group for o in objectives}
    raise ValueError(f"groups={groups}: several objectives must train different parameters")


def pack_objectives(trained: Sequence[Trained], values: Sequence[Any]) -> Any:
  """Return the values as a dict by objective name; the value itself if there is only one."""
  if len(trained) == 1:
    return values[0]
  return {t.name: value for t, value in zip(trained, values, strict=True)}


def unpack_objectives(trained: Sequence[Trained], packed: Any) -> list[Any]:
  """Return the values from `pack_objectives`, in the order of the objectives."""
  return [packed] if len(trained) == 1 else [packed[t.name] for t in trained]


def named_scalars(trained: Sequence[Trained], scalars: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Return all objectives' scalars, with names as "name/scalar" for all but the first."""
  named = dict(scalars[0])
  for t, extra in zip(trained[1:], scalars[1:], strict=True):
    named |= {f"{t.name}/{name}": value for name, value in extra.items()}
  return named
