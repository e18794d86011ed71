"""The base of every part that a config can name: its fields are checked when it is built."""

import functools
from collections.abc import Callable
from typing import Any

from diffusion_jax.core.field_types import check_values

MARK = "checks_fields"
"""Attribute of a `__post_init__` that checks the fields first."""


class Part:
  """A frozen dataclass whose fields must have the values that their types allow.

  `Heun(steps="5")` and `FlowMatching(times="nope")` raise a ValueError; NumPy's numbers become
  Python's. A subclass with a `__post_init__` of its own needs to do nothing for this.
  """

  def __init_subclass__(cls, **options: Any) -> None:
    super().__init_subclass__(**options)
    own = cls.__post_init__
    if own is not Part.__post_init__ and not hasattr(own, MARK):
      cls.__post_init__ = _after_the_check(own)

  def __post_init__(self) -> None:
    if type(self).__post_init__ is Part.__post_init__:
      check_values(self)


def _after_the_check(own: Callable[..., None]) -> Callable[..., None]:
  """Return a `__post_init__` that checks the fields first, once also where it calls another."""

  @functools.wraps(own)
  def checked_first(self: Any, *initial: Any) -> None:
    if type(self).__post_init__ is checked_first:
      check_values(self)
    own(self, *initial)

  setattr(checked_first, MARK, True)
  return checked_first
