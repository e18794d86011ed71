"""Bars on terminals of any width and through a resize, lines elsewhere, and no errors."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
import threading
import time

import pyte
import pytest

from diffusion_jax.core import bars, phases, progress
from diffusion_jax.core.phases import Phase

ROWS = 12


class Terminal:
  """A terminal of some width, and what it shows; as an emulator reads it."""

  def __init__(self, columns: int):
    self.shown, written = pty.openpty()
    self.stream = open(written, "w")  # noqa: SIM115
    self.screen = pyte.Screen(columns, ROWS)
    self.emulator = pyte.ByteStream(self.screen)
    self.resize(columns)

  def resize(self, columns: int) -> None:
    size = struct.pack("HHHH", ROWS, columns, 0, 0)
    fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, size)

  def read(self) -> bytes:
    self.stream.flush()
    os.set_blocking(self.shown, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
      while part := os.read(self.shown, 1 << 16):
        found += part
    self.emulator.feed(found)
    return found

  def lines(self) -> list[str]:
    self.read()
    return [line.rstrip() for line in self.screen.display if line.strip()]


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until a test moves it."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

  def move(seconds: float) -> float:
    now[0] += seconds
    return now[0]

  return move


@pytest.fixture
def display(monkeypatch):
  """A display without a thread, drawn by the test."""
  made = progress.Display()
  monkeypatch.setattr(progress, "_display", made)
  monkeypatch.setattr(progress.threading, "Thread", lambda **_: threading.Timer(0, lambda: None))
  return made


@pytest.fixture
def terminal(monkeypatch):
  """A maker of a terminal that takes the place of stdout and stderr."""

  def make(columns: int, stdout: bool = True) -> Terminal:
    made = Terminal(columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", made.stream)
    if stdout:
      monkeypatch.setattr(sys, "stdout", made.stream)
    return made

  return make


def advanced(clock, **options):
  """A phase halfway: 50 of 100 images in ten seconds."""
  shown = Phase("reading", total=100, unit="images", **options)
  for _ in range(10):
    clock(1.0)
    shown.advance(5)
  return shown


def test_a_line_has_the_count_the_time_and_the_time_left(clock):
  shown = advanced(clock)
  shown.note("loss 0.2500")
  assert shown.line(110.0) == "reading: 50 of 100 images, 10s, ETA 10s, loss 0.2500"
  assert shown.last_line(110.0) == "reading: 50 of 100 images in 10s"
  shown.set(100)
  assert shown.last_line(170.0) == "reading: 100 images in 1m10s"
  compiling = Phase("compiling")
  assert compiling.line(clock(65.0)) == "compiling: 1m05s"
  assert compiling.last_line(clock(0.0)) == "compiling: done in 1m05s"


def test_the_time_left_counts_down_and_grows_when_nothing_comes(clock):
  shown = advanced(clock)
  assert shown.seconds_left(clock(1.0)) == pytest.approx(9.0)
  assert shown.seconds_left(clock(100.0)) > 50.0


def test_a_steady_phase_does_not_count_what_is_inside_it(clock, display):
  with progress.phase("training", total=100, is_steady=True) as shown:
    for _ in range(10):
      clock(1.0)
      shown.advance(5)
    with progress.phase("drawing samples"):
      assert shown.seconds_left(clock(600.0)) == pytest.approx(10.0)
    assert shown.seconds_left(clock(1.0)) == pytest.approx(9.0)


def test_the_time_left_is_of_this_start_and_of_the_last_minute(clock):
  shown = Phase("sampling", total=1000, done=500)
  for seconds in [0.01] * 20 + [2.0] * 60:  # restored pieces, then new ones
    clock(seconds)
    shown.advance(1)
  assert shown.seconds_left(clock(0.0)) == pytest.approx(2.0 * 420, rel=0.05)


def test_items_of_an_earlier_start_say_nothing_about_the_time_left(clock):
  shown = Phase("likelihood", total=594)
  clock(0.1)
  shown.advance(297, is_new=False)
  assert shown.seconds_left(clock(60.0)) is None  # not 297 in 0.1 s
  shown.advance(256)
  assert shown.count() == "553 of 594"
  assert shown.last_line(clock(0.0)) == "likelihood: 256 of 594 in 1m00s"


def test_the_first_items_compilation_does_not_count(clock):
  shown = Phase("sampling", total=100)
  clock(60.0)
  shown.advance(1)
  for _ in range(9):
    clock(1.0)
    shown.advance(1)
  assert shown.seconds_left(clock(0.0)) == pytest.approx(90.0)


def test_lines_come_after_five_seconds_and_then_every_thirty(clock, display, capsys):
  with progress.phase("reading", total=100, unit="images") as shown:
    for second in range(1, 70):
      clock(1.0)
      shown.advance(1)
      display.show(progress.time.monotonic())
      if second == 4:
        assert capsys.readouterr().out == ""
  assert capsys.readouterr().out.splitlines() == [
    "reading: 5 of 100 images, 5s, ETA 1m35s",
    "reading: 35 of 100 images, 35s, ETA 1m05s",
    "reading: 65 of 100 images, 1m05s, ETA 35s",
    "reading: 69 of 100 images in 1m09s",
  ]


def test_a_line_that_was_said_takes_the_place_of_the_next_one(clock, display, capsys):
  with progress.phase("training", total=100, unit="steps", last_line=False) as shown:
    clock(20.0)
    shown.say("step 7")
    display.show(clock(20.0))
  assert capsys.readouterr().out == "step 7\n"


def test_the_innermost_phase_has_the_lines(clock, display, capsys):
  with progress.phase("evaluating", last_line=False):
    clock(0.1)
    with progress.phase("sampling", total=100, last_line=False):
      for _ in range(36):
        display.show(clock(1.0))
  assert capsys.readouterr().out.splitlines() == [
    "sampling: 0 of 100, 5s",
    "sampling: 0 of 100, 35s",
  ]


def test_many_short_phases_leave_the_lines_to_the_outer_one(clock, display, capsys):
  with progress.phase("evaluating", last_line=False):
    for _ in range(12):
      with progress.phase("a piece"):
        display.show(clock(1.0))
        display.show(clock(1.0))
  assert capsys.readouterr().out.splitlines() == ["evaluating: 10s"]


def test_short_work_is_silent(display, clock, terminal, capsys):
  with progress.phase("reading"):
    clock(0.9)
    display.show(progress.time.monotonic())
  with progress.phase("reading"):
    clock(4.9)
    display.show(progress.time.monotonic())
  assert capsys.readouterr() == ("", "")


def test_an_error_in_the_block_has_no_last_line(display, clock, capsys):
  with pytest.raises(KeyboardInterrupt), progress.phase("reading"):  # noqa: PT012
    clock(20.0)
    raise KeyboardInterrupt
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_a_bar_fills_the_terminals_width(columns, clock, display, terminal):
  screen = terminal(columns)
  with progress.phase("training", total=100_000, unit="steps") as shown:
    for _ in range(10):
      clock(1.0)
      shown.advance(100)
    shown.note("loss 0.2500", "1,234 images/s", "data wait 0.1%", "MFU 40.1%")
    display.show(progress.time.monotonic())
    (line,) = screen.lines()
    assert len(line) <= columns - 1
    assert line.startswith("training")
    if columns >= 60:
      assert len(line) == columns - 1
      assert "1,000/100,000" in line
      assert "ETA 16m30s" in line
      assert "loss 0.2500" in line
      assert line.count("━") + line.count("╸") >= 6
    if columns == 200:
      assert "1,000/100,000 steps  10s  ETA 16m30s  loss 0.2500  1,234 images/s" in line
      assert line.endswith("MFU 40.1%")
      assert line.count("━") > 80
  assert "".join(screen.lines()) == "training: 1,000 of 100,000 steps in 10s"


def test_a_long_name_leaves_room_for_the_numbers(clock, display, terminal):
  screen = terminal(60)
  with progress.phase("features of the held-out images of a data set", total=100):
    display.show(clock(2.0))
    (line,) = screen.lines()
  assert line.startswith("features of the held-out ima…  ")
  assert "0/100" in line


def reflow(screen: Terminal, columns: int) -> None:
  """Break the lines of a terminal that has become narrower, as tmux does; the cursor stays."""
  lines, row = screen.lines(), screen.screen.cursor.y
  broken = [[line[i : i + columns] for i in range(0, len(line), columns)] for line in lines]
  at = sum(len(parts) for parts in broken[:row])
  screen.screen = pyte.Screen(columns, ROWS)
  screen.emulator = pyte.ByteStream(screen.screen)
  text = "\r\n".join(part for parts in broken for part in parts)
  screen.emulator.feed(text.encode() + f"\x1b[{at + 1};1H".encode())
  screen.resize(columns)


def test_bars_stay_one_line_each_through_resizes(clock, display, terminal):
  screen = terminal(100)
  with (
    progress.phase("evaluating", total=7, unit="measures"),
    progress.phase("sampling", total=1000, unit="images") as inner,
  ):
    print("before")
    for columns in (100, 60, 80, 200, 60):
      for _ in range(5):
        clock(1.0)
        inner.advance(10)
        display.show(progress.time.monotonic())
      reflow(screen, columns)
      display.show(progress.time.monotonic())
      before, outer, drawn = screen.lines()
      assert before == "before"
      assert outer.startswith("evaluating")
      assert drawn.startswith("sampling")
      assert len(drawn) == columns - 1
  assert screen.lines()[0] == "before"
  assert len(screen.lines()) == 3  # and two last lines


def test_what_is_printed_is_whole_and_above_the_bar(clock, display, terminal):
  screen = terminal(60)
  with progress.phase("reading", total=10):
    display.show(clock(2.0))
    print("a line", "that is", "longer than the terminal is wide" * 2)
    sys.stderr.write("a war")
    display.show(clock(0.3))
    assert not any("reading" in line for line in screen.lines())  # it would break the line
    sys.stderr.write("ning\n")
    display.show(clock(0.3))
    *above, bar = screen.lines()
    assert "".join(above) == f"a line that is {'longer than the terminal is wide' * 2}a warning"
    assert bar.startswith("reading")
  assert sys.stdout is sys.stderr is screen.stream


def test_a_file_gets_lines_though_the_terminal_has_a_bar(clock, display, terminal, capsys):
  screen = terminal(80, stdout=False)
  with progress.phase("reading", total=10, unit="images"):
    display.show(clock(6.0))
    display.show(clock(0.3))
    assert screen.lines()[0].startswith("reading")
    assert capsys.readouterr().out == "reading: 0 of 10 images, 6s\n"


def test_colours_are_left_out_where_they_are_not_wanted(clock, display, terminal, monkeypatch):
  screen = terminal(80)
  monkeypatch.setenv("NO_COLOR", "1")
  with progress.phase("reading", total=10):
    display.show(clock(2.0))
    assert b"\x1b[3" not in screen.read()
  monkeypatch.delenv("NO_COLOR")
  with progress.phase("reading", total=10):
    display.show(clock(2.0))
    assert b"\x1b[3" in screen.read()


@pytest.mark.parametrize("kind", ["dumb", "narrow", "unknown"])
def test_a_terminal_that_cannot_show_a_bar_gets_lines(kind, display, clock, terminal, monkeypatch):
  screen = terminal({"narrow": 19, "unknown": 0}.get(kind, 80) or 80)
  if kind == "unknown":
    screen.resize(0)
  if kind == "dumb":
    monkeypatch.setenv("TERM", "dumb")
  with progress.phase("r", total=10):
    display.show(clock(6.0))
    assert screen.lines() == ["r: 0 of 10, 6s"]


class Broken(io.StringIO):
  """A terminal that is gone."""

  def isatty(self):
    return True

  def fileno(self):
    return 0

  def write(self, text):
    raise OSError(5, "Input/output error")


def test_a_broken_display_ends_nothing(monkeypatch):
  monkeypatch.setattr(progress, "BAR_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "REDRAW_SEC", 0.01)
  monkeypatch.setattr(phases, "LINE_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "LINE_AFTER_SEC", 0.0)
  monkeypatch.setattr(bars, "_columns", lambda stream: 80)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setattr(sys, "stderr", Broken())
  monkeypatch.setattr(sys, "stdout", Broken())
  with progress.phase("reading", total=3) as shown:
    time.sleep(0.1)
    shown.advance()
  assert shown.done == 1


def test_a_thread_shows_what_the_program_is_busy_with_and_ends_with_it(monkeypatch, capsys):
  monkeypatch.setattr(progress, "BAR_AFTER_SEC", 0.0)
  monkeypatch.setattr(phases, "LINE_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "LINE_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "REDRAW_SEC", 0.01)
  before = threading.active_count()
  with progress.phase("compiling"):
    time.sleep(0.2)
  assert capsys.readouterr().out.splitlines() == ["compiling: 0s", "compiling: done in 0s"]
  assert threading.active_count() == before
