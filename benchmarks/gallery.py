"""Seconds of the gallery's samples: python benchmarks/gallery.py --workdir=runs/ddpm_digits

Draws what a click on the page draws, after one answer that compiles, each time from another seed:
seconds of the wall clock, and of the processor, which other programs change less.
"""

import argparse
import statistics
import time
from pathlib import Path

from diffusion_jax.browsing.opened_run import OpenedRun
from diffusion_jax.browsing.shown_run import default_settings
from diffusion_jax.browsing.studio import Studio
from diffusion_jax.runs import command_line

STEPS = (10, 25, 50, 75)


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--workdir", type=Path, required=True)
  flags.add_argument("--num", type=int, default=16, help="images drawn at once")
  flags.add_argument("--rounds", type=int, default=5)
  args = flags.parse_args()
  command_line.enable_compilation_cache()
  studio = Studio(OpenedRun(args.workdir, [], None, args.num))
  settings = default_settings(studio.run)
  studio.answer("draw", settings)
  print("| steps | wall, s | processor, s |\n|---|---|---|")
  for steps in STEPS:
    rounds = [draw(studio, {**settings, "steps": steps, "seed": i + 1}) for i in range(args.rounds)]
    wall, processor = (described(times) for times in zip(*rounds, strict=True))
    print(f"| {steps} | {wall} | {processor} |", flush=True)


def draw(studio: Studio, settings: dict) -> tuple[float, float]:
  """Seconds of one answer, by the wall clock and of the processor."""
  begun = time.perf_counter(), time.process_time()
  studio.answer("draw", settings)
  return time.perf_counter() - begun[0], time.process_time() - begun[1]


def described(times: tuple[float, ...]) -> str:
  return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


if __name__ == "__main__":
  main()
