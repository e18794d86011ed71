"""Time of an evaluation and of its parts."""

import contextlib
import time
from collections.abc import Iterator, Mapping, MutableMapping

from diffusion_jax.core import progress
from diffusion_jax.core.wording import duration


@contextlib.contextmanager
def clock(seconds: MutableMapping[str, float], name: str) -> Iterator[None]:
  """Show a part of the work under its name, and record its seconds."""
  begun = time.perf_counter()
  with progress.phase(name, last_line=False):
    yield
  seconds[name] = round(time.perf_counter() - begun, 2)


def describe_time(seconds: Mapping[str, float], wall_sec: float) -> str:
  """Return the whole time and its parts, such as "38m51s (samples 20m00s, other 18m51s)".

  Args:
    seconds: seconds of the parts.
    wall_sec: seconds from the start of the command, or of this checkpoint, to the end.
  """
  parts = {**seconds, "other": wall_sec - sum(seconds.values())}
  listed = [f"{name} {duration(sec)}" for name, sec in parts.items() if sec >= 1]
  return duration(wall_sec) + (f" ({', '.join(listed)})" if listed else "")
