"""Record an xprof trace of some training steps: --profile=START:STEPS."""

import re
from pathlib import Path
from typing import NamedTuple

import jax

from diffusion_jax.types import UserError


class Span(NamedTuple):
  """Steps to trace.

  Attributes:
    first: first step of the run to trace, from 1.
    num: number of steps.
  """

  first: int
  num: int


def parse_span(text: str) -> Span:
  """Parse START:STEPS.

  Raises:
    UserError: the text is not two numbers of at least 1.
  """
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if match is None or min(span := Span(int(match[1]), int(match[2]))) < 1:
    raise UserError(f"--profile={text}: must be START:STEPS, both at least 1, e.g. --profile=10:5")
  return span


class Trace:
  """Trace the steps of a span into workdir/profile; None traces nothing.

  A run resumed after the first of these steps traces from its own first step.
  """

  def __init__(self, workdir: Path, span: Span | None, first_step: int):
    self._folder, self._running, self._span = workdir / "profile", False, None
    if span is not None:
      self._span = span._replace(first=max(span.first, first_step + 1))

  def is_due(self, step: int) -> bool:
    """Return whether tracing starts at this step or ended with the previous one.

    At these steps the loop must wait for every step in flight.
    """
    return self._span is not None and step in (self._span.first, sum(self._span))

  def before(self, step: int) -> None:
    """Start or end the trace if due."""
    if self._span is not None and step == self._span.first:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif self._span is not None and step == sum(self._span):
      self.close()

  def close(self) -> None:
    """End a running trace, and print its place."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      print(f"trace in {self._folder}: pip install xprof && xprof --logdir={self._folder}")
