"""The goals for one GPU, measured in one command: python benchmarks/gpu.py --out=FOLDER

Runs the other benchmarks one after the other, the most important first, until --minutes are over,
and prints the table of goals from what they have written; what there was no time for is named. A
part that FOLDER already has is not measured again, so that a second run goes on. --tiny runs all of
it with a small network, to see that it works; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import harness

Figures = dict[str, Any]


class Part(NamedTuple):
  """One benchmark.

  Attributes:
    name: of its file in the folder.
    arguments: the program and its flags.
    result: a cell of the table from what it wrote.
    goal: the other cell.
  """

  name: str
  arguments: list[str]
  result: Callable[[Figures], str]
  goal: str


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--out", type=Path, required=True, help="folder for the figures")
  flags.add_argument("--minutes", type=float, default=9.5)
  flags.add_argument("--batch_sizes", default="128,512,256,1024", help="of the training step")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
  flags.add_argument("--peer_python", type=harness.interpreter, default=sys.executable,
                     help="interpreter that has the peers")  # fmt: skip
  flags.add_argument("--tiny", action="store_true")
  args = flags.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  deadline = time.monotonic() + 60 * args.minutes
  parts, missing = make_parts(args), {}
  for part in parts:
    if reason := run(part, args.out, deadline):
      missing[part.name] = reason
  print_goals(parts, args.out, missing)


def make_parts(args: argparse.Namespace) -> list[Part]:
  """In the order of their importance."""
  small = ["--rounds=2", "--channels=32"] if args.tiny else ["--rounds=5", "--warmup=1"]
  peers = [f"--dtype={args.dtype}", f"--peer_python={args.peer_python}", "--channels_last"]
  peers += [] if args.tiny else ["--compile"]
  sizes = [4, 8] if args.tiny else [int(size) for size in args.batch_sizes.split(",")]
  repeats = 1 if args.tiny else 20
  steps = [
    Part(
      f"train_step_{size}",
      ["train_step.py", f"--batch_size={size}", f"--repeats={repeats}", *small, *peers],
      step_cell,
      "at least 1.5 times diffusers; 45% MFU at the best batch",
    )
    for size in sizes
  ]
  images, evaluations = (4, 2) if args.tiny else (128, 50)
  sampling = ["sampling.py", f"--batch_size={images}", f"--steps={evaluations}", *small, *peers]
  sampling += [] if args.tiny else ["--repeats=2"]
  narrow = ["--", "--config.model.channels=32"] if args.tiny else []
  few = "--rounds=2" if args.tiny else "--rounds=3"
  return [
    steps[0],
    Part("sampling", sampling, sampling_cell, "at least 1.3 times diffusers"),
    *steps[1:2],
    Part("stall", ["checkpoint_stall.py", few, *narrow], stall_cell, "below 2% of the wall time"),
    Part("start", ["startup.py", few], start_cell, "import below 2 s, warm start below 10 s"),
    *steps[2:],
    Part("vae_step", ["vae_step.py", small[0], f"--repeats={repeats}"], vae_cell, ""),
  ]


def run(part: Part, folder: Path, deadline: float) -> str | None:
  """Measures a part that is not there yet; why it is still not there, or None."""
  out, left = folder / f"{part.name}.json", deadline - time.monotonic()
  if out.exists():
    return None
  if left < 30:
    return "no time was left"
  program, *rest = part.arguments
  command = [sys.executable, str(harness.HERE / program), f"--out={out}", *rest]
  print(f"\n== {part.name}: {left:.0f} s left", flush=True)
  try:
    code = subprocess.run(command, timeout=left).returncode
  except subprocess.TimeoutExpired:
    return "no time was left"
  return f"exit code {code}" if code else None


def print_goals(parts: Sequence[Part], folder: Path, missing: dict[str, str]) -> None:
  print("\n| what | measured | goal |\n|---|---|---|")
  for part in parts:
    cell = f"not measured: {missing[part.name]}" if part.name in missing else None
    if cell is None:
      cell = part.result(json.loads((folder / f"{part.name}.json").read_text()))
    print(f"| {part.name} | {cell} | {part.goal} |")


def step_cell(figures: Figures) -> str:
  ours, floor = figures["rows"][0], figures["floor"]
  use = "MFU unknown"
  if floor["mfu"] is not None:
    use = f"MFU {floor['mfu']:.1%}, HFU {floor['hfu']:.1%}"
  return f"{rate_cell(ours)}; {use}"


def rate_cell(ours: Figures) -> str:
  low, high = ours["ratio_range"]
  times = f"{ours['ratio']:.2f} times the peer ({low:.2f} to {high:.2f})"
  return f"{ours['per_sec']:,.4g} images/s, {times}"


def sampling_cell(figures: Figures) -> str:
  return rate_cell(figures["rows"][0])


def stall_cell(figures: Figures) -> str:
  share = figures["share"]
  return f"{share['median']:.3%} ({share['min']:.3%} to {share['max']:.3%})"


def start_cell(figures: Figures) -> str:
  rows = figures["rows"]
  return f"{rows['import']['wall']['median']:.2f} s, {rows['warm']['wall']['median']:.2f} s"


def vae_cell(figures: Figures) -> str:
  return f"{figures['rows'][0]['per_sec']:,.4g} images/s"


if __name__ == "__main__":
  main()
