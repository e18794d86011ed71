"""Contenders in processes of their own, measured in alternating rounds, with their floors.

A contender is a program of `workers/`. It prints one JSON line when it is ready (compiled, warm),
and then, for each number n that it reads, does its work n times and prints one JSON line with the
seconds. So every contender keeps its own libraries and threads, none compiles twice, and a machine
whose speed drifts slows all of them alike.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import Rates

HERE = Path(__file__).parent
sys.path.append(str(HERE / "workers"))

import protocol  # noqa: E402

OURS = "diffusion_jax"
"""Our name in the tables."""


class Floor(NamedTuple):
  """What a piece of work needs at least, and the rates of the machine at hand.

  Attributes:
    flops: operations of the convolutions and matrix products, nothing computed twice.
    num_bytes: each input read once, each output written once.
    flop_rate, byte_rate: measured: of a large matrix product, of a large copy (read and written).
  """

  flops: float
  num_bytes: float
  flop_rate: float
  byte_rate: float

  @property
  def seconds(self) -> float:
    return max(self.flops / self.flop_rate, self.num_bytes / self.byte_rate)


class Contender:
  """A worker process.

  Args:
    name: in the table.
    program: file in `workers/`.
    options: what the worker is told, as JSON.
    python: interpreter; this one by default.

  Attributes:
    ready: what it said when it was ready: compile_sec, and what else it knows.
    rounds: what it said of each round, with the seconds of one repetition.
    failure: why it is out of the comparison; None while it is in it.
  """

  def __init__(
    self, name: str, program: str, options: Mapping[str, Any], python: str | None = None
  ):
    self._command = [
      python or sys.executable,
      str(HERE / "workers" / program),
      json.dumps(options),
    ]
    self._process: subprocess.Popen[str] | None = None
    self.name, self.rounds, self.ready = name, [], {}
    self.failure: str | None = None

  def start(self) -> None:
    begun = time.perf_counter()
    self._process = subprocess.Popen(
      self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    )
    self.ready = self._answer()
    self.ready["start_sec"] = time.perf_counter() - begun

  def run(self, repeats: int) -> dict[str, Any]:
    """Work so often; {} if it ended instead."""
    if self.failure is None:
      try:
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
      except BrokenPipeError:
        pass  # it has ended, which the answer tells
      if answer := self._answer():
        return answer | {"seconds": answer["seconds"] / repeats}
    return {}

  def close(self) -> None:
    if self._process is not None:
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
      self._process.wait()

  def _answer(self) -> dict[str, Any]:
    for line in self._process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    self.failure = f"ended with exit code {self._process.wait()}"
    print(f"'{self.name}' {self.failure}; see above", file=sys.stderr, flush=True)
    return {}


def _environment() -> dict[str, str]:
  """JAX takes what it needs of a GPU, which the contenders share: up to all, not three quarters."""
  return {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    **os.environ,
  }


def measure_contenders(
  contenders: Sequence[Contender],
  args: argparse.Namespace,
  check: Callable[[Sequence[Contender]], None] = lambda _: None,
) -> list[Contender]:
  """Starts the contenders, fills their `rounds`, ends them; returns those that went through.

  The first must go through: the program ends where it does not. Another one that fails is left out.

  Args:
    contenders: at work in turn; with --one_at_a_time, which memory may need, each by itself.
    args: of `parser`.
    check: called with those that are ready, whenever one more is.
  """
  alone = getattr(args, "one_at_a_time", False)
  ready: list[Contender] = []
  for group in [[c] for c in contenders] if alone else [contenders]:
    try:
      for contender in group:
        contender.start()
        ready += [] if contender.failure else [contender]
        if contenders[0].failure:
          sys.exit(1)
        check(ready)
      alternate([c for c in group if c in ready], args)
    finally:
      for contender in group:
        contender.close()
  if contenders[0].failure:
    sys.exit(1)
  return [contender for contender in ready if contender.failure is None]


def alternate(contenders: Sequence[Contender], args: argparse.Namespace) -> None:
  """Fills each contender's `rounds`; each round begins with another contender.

  Args:
    contenders: all are at work once in a round.
    args: of `parser`. The rounds of the warm-up come first and do not count: in its first steps a
      process still asks the kernel for memory that it keeps.
  """
  for i in range(-args.warmup, args.rounds):
    shift = i % max(len(contenders), 1)
    for contender in (*contenders[shift:], *contenders[:shift]):
      done = contender.run(args.repeats)
      if done:
        name = "warm-up" if i < 0 else f"round {i + 1}"
        print(f"  {name} {contender.name}: {done['seconds']:.4g} s", file=sys.stderr, flush=True)
      if i >= 0:
        contender.rounds.append(done)


def summarize(contenders: Sequence[Contender], amount: float, peer: str) -> list[dict[str, Any]]:
  """Of each contender: median and range of amount/s, and the ratio to the peer's median.

  The ratio's range is that of the ratios round by round, in which both ran one after the other.
  """
  rates = {c.name: [amount / r["seconds"] for r in c.rounds] for c in contenders}
  rows = []
  for contender in contenders:
    mine, theirs = rates[contender.name], rates[peer]
    pairs = [a / b for a, b in zip(mine, theirs, strict=True)]
    rows.append({
      "name": contender.name,
      "per_sec": statistics.median(mine),
      "per_sec_range": [min(mine), max(mine)],
      "ratio": statistics.median(pairs),
      "ratio_range": [min(pairs), max(pairs)],
      "ready": contender.ready,
      "rounds": contender.rounds,
    })  # fmt: skip
  return rows


def spread(values: Sequence[float]) -> dict[str, float]:
  return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def step_floor(ready: Mapping[str, Any], rates: Rates) -> Floor:
  """Of a training step: the state is read and written once; all between could stay on the chip."""
  return Floor(ready["flops"], 2 * ready["state_bytes"], rates.flops, rates.num_bytes)


def print_table(rows: Sequence[Mapping[str, Any]], unit: str, peer: str) -> None:
  print(f"\n| contender | {unit}/s | range | ratio to {peer} | range | compile, s | peak GB |")
  print("|---|---|---|---|---|---|---|")
  for row in rows:
    low, high = row["per_sec_range"]
    least, most = row["ratio_range"]
    peak = row["rounds"][-1].get("peak_bytes")
    print(
      f"| {row['name']} | {row['per_sec']:.4g} | {low:.4g} to {high:.4g} | {row['ratio']:.2f} | "
      f"{least:.2f} to {most:.2f} | {row['ready'].get('compile_sec', 0):.1f} | "
      f"{'' if peak is None else f'{peak / 1e9:.2f}'} |"
    )


def print_floor(floor: Floor, seconds: float, ready: Mapping[str, Any]) -> dict[str, float | None]:
  """The floor of one repetition that took `seconds`, and how far from it that is.

  MFU is of the floor's FLOPs; in HFU what rematerialisation computes again counts too.
  """
  peak_flops = ready["peak_flops"]
  compute, memory = floor.flops / floor.flop_rate, floor.num_bytes / floor.byte_rate
  mfu = None if peak_flops is None else floor.flops / seconds / peak_flops
  hfu = None if peak_flops is None else ready["executed_flops"] / seconds / peak_flops
  print(
    f"floor: {floor.flops / 1e9:,.1f} GFLOP at {floor.flop_rate / 1e9:,.0f} GFLOP/s = "
    f"{compute:.4g} s; {floor.num_bytes / 1e9:,.3f} GB at {floor.byte_rate / 1e9:,.1f} GB/s = "
    f"{memory:.4g} s\ntaken: {seconds:.4g} s, {seconds / floor.seconds:.2f} times the larger; "
    f"{floor.flops / seconds / 1e9:,.0f} GFLOP/s; "
    + ("unknown chip, so no MFU" if mfu is None else f"MFU {mfu:.1%}, HFU {hfu:.1%}")
  )
  gap = seconds / floor.seconds
  return {**floor._asdict(), "floor_sec": floor.seconds, "gap": gap, "mfu": mfu, "hfu": hfu}


def about(**more: Any) -> dict[str, Any]:
  """What a reader needs to know of the machine and the versions."""
  return {
    "python": platform.python_version(),
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "load": os.getloadavg()[0],
    "date": time.strftime("%Y-%m-%d"),
    **protocol.versions(),
    **more,
  }


def _processor() -> str:
  for line in Path("/proc/cpuinfo").read_text().splitlines():
    if line.startswith("model name"):
      return line.partition(":")[2].strip()
  return platform.machine()


def positive(text: str) -> int:
  """A flag's value."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
  return int(text)


def interpreter(text: str) -> str:
  """A flag's value."""
  if shutil.which(text) is None:
    raise argparse.ArgumentTypeError(f"{text} is no program; name a Python that has the peers")
  return text


def parser(description: str | None, rounds: int, repeats: int) -> argparse.ArgumentParser:
  """The flags that all benchmarks have."""
  flags = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--rounds", type=positive, default=rounds)
  flags.add_argument("--warmup", type=int, choices=range(10), default=2, help="rounds before those")
  flags.add_argument("--repeats", type=positive, default=repeats, help="of the work in one round")
  flags.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  return flags


def write(out: Path | None, figures: Mapping[str, Any]) -> None:
  if out:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written to {out}")
