"""Contenders in processes of their own, measured in alternating rounds, with their floors.

A contender is a program of `workers/`. It prints one JSON line when it is ready (compiled, warm),
and then, for each number n that it reads, does its work n times and prints one JSON line with the
seconds. So every contender keeps its own libraries and threads, none compiles twice, and a machine
whose speed drifts slows all of them alike.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from machine import Rates

HERE = Path(__file__).parent
PACKAGES = ("jax", "jaxlib", "flax", "torch", "diffusers", "denoising-diffusion-pytorch")


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
  """

  def __init__(
    self, name: str, program: str, options: Mapping[str, Any], python: str | None = None
  ):
    command = [python or sys.executable, str(HERE / "workers" / program), json.dumps(options)]
    self.name, self.rounds = name, []
    begun = time.perf_counter()
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    )
    self.ready = self._answer()
    self.ready["start_sec"] = time.perf_counter() - begun

  def run(self, repeats: int) -> dict[str, Any]:
    self._process.stdin.write(f"{repeats}\n")
    self._process.stdin.flush()
    answer = self._answer()
    return answer | {"seconds": answer["seconds"] / repeats}

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict[str, Any]:
    for line in self._process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    code = self._process.wait()
    print(f"'{self.name}' ended with exit code {code}; see above", file=sys.stderr)
    sys.exit(code or 1)


def _environment() -> dict[str, str]:
  """JAX must not take a GPU's whole memory, which the contenders share."""
  return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}


def alternate(contenders: Sequence[Contender], args: argparse.Namespace) -> None:
  """Fills each contender's `rounds`; each round begins with another contender.

  Args:
    contenders: all are at work once in a round.
    args: of `parser`. The rounds of the warm-up come first and do not count: in its first steps a
      process still asks the kernel for memory that it keeps.
  """
  for i in range(-args.warmup, args.rounds):
    shift = i % len(contenders)
    for contender in (*contenders[shift:], *contenders[:shift]):
      done = contender.run(args.repeats)
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
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return {
    "python": platform.python_version(),
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "load": os.getloadavg()[0],
    "date": time.strftime("%Y-%m-%d"),
    **versions,
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
  flags.add_argument(
    "--peer_python", type=interpreter, help="interpreter that has the peers; this one by default"
  )
  flags.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  return flags


def network_parser(description: str | None) -> argparse.ArgumentParser:
  """The flags of those that measure DDPM's network beside its peers."""
  flags = parser(description, rounds=5, repeats=1)
  flags.add_argument("--batch_size", type=positive, default=16)
  flags.add_argument("--channels", type=positive, default=128, help="of the networks' first level")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--channels_last", action="store_true", help="of the peers")
  flags.add_argument("--compile", action="store_true", help="the peers, with torch.compile")
  flags.add_argument("--config", default=str(HERE.parent / "configs" / "ddpm_cifar.py"))
  flags.add_argument("overrides", nargs="*", help="of ours, after --")
  return flags


def contend(
  args: argparse.Namespace, work: str, override: str, peers: Sequence[str], **theirs: Any
) -> list[Contender]:
  """Starts ours and the peers on the same work.

  Args:
    args: of `network_parser`.
    work: "train" or "sample".
    override: of our config, beside those of the flags.
    peers: their names.
    theirs: what the peers are told besides.
  """
  kind = {"batch_size": args.batch_size, "channels": args.channels, "dtype": args.dtype,
          "work": work}  # fmt: skip
  overrides = [f"--config.model.dtype={args.dtype}", f"--config.model.channels={args.channels}",
               override, *args.overrides]  # fmt: skip
  ours = {"config": args.config, "overrides": overrides, "image": [32, 32, 3], **kind}
  theirs |= {"channels_last": args.channels_last, "compile": args.compile, **kind}
  return [Contender("diffusion_jax", "ours.py", ours)] + [
    Contender(peer, "torch_peers.py", {"peer": peer, **theirs}, args.peer_python) for peer in peers
  ]


def report(
  args: argparse.Namespace,
  contenders: Sequence[Contender],
  floor: Callable[[Mapping[str, Any], Rates], Floor],
  rates: Rates,
) -> None:
  """Measures the contenders of `contend`, ends them, prints and writes what was found."""
  try:
    alternate(contenders, args)
  finally:
    for contender in contenders:
      contender.close()
  peer = contenders[1].name
  rows = summarize(contenders, args.batch_size, peer)
  print_table(rows, "images", peer)
  ready, seconds = rows[0]["ready"], args.batch_size / rows[0]["per_sec"]
  gap = print_floor(floor(ready, rates), seconds, ready)
  what = about(device=ready["device"], options=vars(args) | {"out": None})
  write(args.out, {"about": what, "rows": rows, "floor": gap})


def write(out: Path | None, figures: Mapping[str, Any]) -> None:
  if out:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written to {out}")
