"""A piece of work with a name, and the texts that describe its progress."""

import threading
import time
from collections import deque

from diffusion_jax.core.wording import duration

LINE_AFTER_SEC = 5.0
"""Seconds after which a phase prints its first line (without a bar) and a line at its end."""
LINE_EVERY_SEC = 30.0
WINDOW_SEC = 60.0
"""Seconds of the past that count for the remaining time."""


class Phase:
  """A piece of work with a name; its methods may be called from any thread.

  Args:
    name: the work, as in "reading pictures".
    total: number of items; None: unknown, and only the time is shown.
    unit: noun for the items, in the plural.
    done: number of items done before this start.
    is_steady: the remaining time is that of the items alone, without phases inside this one.
  """

  def __init__(
    self,
    name: str,
    total: int | None = None,
    unit: str = "",
    done: int = 0,
    is_steady: bool = False,
  ):
    self.name, self.total, self.unit = name, total, unit
    self.start = self.done = done
    self.begun = time.monotonic()
    self.notes: tuple[str, ...] = ()
    self.line_due = self.begun + LINE_AFTER_SEC
    self.is_drawn, self.is_steady, self._paused_at = False, is_steady, None
    self._lock = threading.Lock()
    self._past = deque([(self.begun, done)], maxlen=100)
    self._is_past_first, self._is_from_start = False, True

  def advance(self, num: int = 1, is_new: bool = True) -> None:
    """Count `num` more items as done; only new ones count for the time left."""
    with self._lock:
      if is_new:
        return self._set(self.done + num)
      self.start, self.done = self.start + num, self.done + num
      self._past = deque([(at, done + num) for at, done in self._past], maxlen=100)

  def set(self, done: int) -> None:
    """Count `done` items as done."""
    with self._lock:
      self._set(done)

  def _set(self, done: int) -> None:
    now, self.done = time.monotonic(), done
    if not self._is_past_first:  # the first item may include a compilation
      self._is_past_first = True
      self._past.append((now, done))
      return
    if self._is_from_start and len(self._past) > 1:
      self._past.popleft()
      self._is_from_start = False
    if now - self._past[-1][0] >= 0.1 or len(self._past) == 1:
      self._past.append((now, done))
    while len(self._past) > 2 and now - self._past[0][0] > WINDOW_SEC:
      self._past.popleft()

  def pause(self) -> None:
    """Stop the clock of the remaining time if a phase inside this one does not count."""
    if self.is_steady and self._paused_at is None:
      self._paused_at = time.monotonic()

  def resume(self) -> None:
    """Let the clock of the remaining time run again."""
    with self._lock:
      if self._paused_at is not None:
        pause, self._paused_at = time.monotonic() - self._paused_at, None
        self._past = deque([(at + pause, done) for at, done in self._past], maxlen=100)

  def note(self, *parts: str) -> None:
    """Show texts after the numbers, as far as the line has room; the first matters most."""
    self.notes = parts

  def say(self, text: str) -> None:
    """Print a line on the progress of this phase, in place of its own next line."""
    now = time.monotonic()
    self.line_due = now + max(LINE_EVERY_SEC, (now - self.begun) / 10)
    print(text, flush=True)

  def give_way(self) -> None:
    """Delay the first line, because a phase inside this one will print its own."""
    if self.line_due == self.begun + LINE_AFTER_SEC:
      self.line_due += LINE_AFTER_SEC

  def seconds_left(self, now: float) -> float | None:
    """Return the remaining time in seconds; None if it is unknown."""
    now = now if self._paused_at is None else self._paused_at
    with self._lock:
      (since, before), (at, done) = self._past[0], self._past[-1]
    if self.total is None or done <= before:
      return None
    is_late = now - at > at - since  # items that came in one burst say little about the rate
    sec_per_item = ((now if is_late else at) - since) / (done - before)
    left = (self.total - self.done) * sec_per_item
    return left if is_late else max(left - (now - at), 0.0)

  def count(self) -> str:
    """Return "1,200 of 5,000 images", "1,200 images" without a total, or ""."""
    if self.total is None and not self.done:
      return ""
    total = "" if self.total is None else f" of {self.total:,}"
    return f"{self.done:,}{total} {self.unit}".rstrip()

  def line(self, now: float) -> str:
    """Return the line for a file, such as "reading: 1,200 of 5,000 images, 12s, ETA 38s"."""
    parts = [self.count(), duration(now - self.begun), eta(self.seconds_left(now)), *self.notes]
    return f"{self.name}: {', '.join(p for p in parts if p)}"

  def last_line(self, now: float) -> str:
    """Return the line at the end, such as "reading pictures: 5,000 images in 52s"."""
    num, total = self.done - self.start, "" if self.total is None else f" of {self.total:,}"
    if self.total is None and not num:
      count = "done"
    else:
      count = f"{num:,}{'' if num == self.total else total} {self.unit}".rstrip()
    return f"{self.name}: {count} in {duration(now - self.begun)}"


def eta(seconds: float | None) -> str:
  """Return "ETA 38s", or "" for an unknown time."""
  return "" if seconds is None else f"ETA {duration(seconds)}"
