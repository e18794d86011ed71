"""An xprof trace of some training steps: --profile=START:STEPS."""

import re
from pathlib import Path
from typing import NamedTuple

import jax

from diffusion_jax.types import UserError


class Span(NamedTuple):
  """Steps to trace.

  Attributes:
    first: counted from 1, of the run.
    num: how many.
  """

  first: int
  num: int


def parse_span(text: str) -> Span:
  """Reads START:STEPS.

  Raises:
    UserError: it is not two numbers of at least 1.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if match is None or min(span := Span(int(match[1]), int(match[2]))) < 1:
    raise UserError(f"--profile={text}: must be START:STEPS, both at least 1, e.g. --profile=10:5")
  return span


class Trace:
  """Traces the steps of a span into workdir/profile; None traces nothing.

  A run that is resumed beyond the first of them traces from where it begins.
  """

  def __init__(self, workdir: Path, span: Span | None, first_step: int):
    self._folder, self._running, self._span = workdir / "profile", False, None
    if span is not None:
      self._span = span._replace(first=max(span.first, first_step + 1))

  def is_due(self, step: int) -> bool:
    """Whether tracing begins with this step or has ended with the one before: the time to wait for
    every step in flight."""
    return self._span is not None and step in (self._span.first, sum(self._span))

  def before(self, step: int) -> None:
    """Begins or ends the trace where it is due."""
    if self._span is not None and step == self._span.first:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif self._span is not None and step == sum(self._span):
      self.close()

  def close(self) -> None:
    """Ends a trace that is running, and says where it is."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      print(f"trace in {self._folder}: pip install xprof && xprof --logdir={self._folder}")
