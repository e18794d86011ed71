"""Seconds until a run is under way: python benchmarks/startup.py

The import of the trainer, and the time from the start of `python -m diffusion_jax.train` to the
line of its first finished step, with an empty cache of compiled programs and again with what that
run has left there, in turn. A run is ended once its line has come. Files that a process reads may
lie in memory already, as they do where a program starts for the second time.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

FIRST_STEP = re.compile(r"step\s+1/")
COMPILED = re.compile(r"compiled in ([\d.]+) s")


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--rounds", type=harness.positive, default=5)
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "ddpm_digits.py"))
  flags.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  flags.add_argument("overrides", nargs="*", help="of the config, after --")
  args = flags.parse_args()
  found: dict[str, list[dict[str, float]]] = {"import": [], "cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as folder:
    for i in range(args.rounds):
      found["import"].append(import_trainer())
      cache = Path(folder) / f"cache{i}"
      for kind in ("cold", "warm"):
        workdir = Path(folder) / f"{kind}{i}"
        found[kind].append(first_step(args.config, workdir, cache, args.overrides))
      seconds = ", ".join(f"{name} {rounds[-1]['wall']:.2f} s" for name, rounds in found.items())
      print(f"  round {i + 1}: {seconds}", file=sys.stderr, flush=True)
  figures = summarize(found)
  print_table(figures)
  about = harness.about(options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, **figures})


def import_trainer() -> dict[str, float]:
  """Seconds of the wall clock and of the processor."""
  begun = time.perf_counter()
  process = subprocess.Popen([sys.executable, "-c", "import diffusion_jax.train"])
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError("the trainer cannot be imported; see above")
  wall = time.perf_counter() - begun
  return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}


def first_step(
  config: str, workdir: Path, cache: Path, overrides: Sequence[str]
) -> dict[str, float]:
  """Seconds from the start of the process to the line of the first step, and of the compiler."""
  command = [sys.executable, "-m", "diffusion_jax.train", f"--config={config}",
             f"--workdir={workdir}", "--config.logging.every_steps=1", *overrides]  # fmt: skip
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
  lines, seconds = [], {}
  begun = time.perf_counter()
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
  )
  try:
    for line in process.stdout:
      lines.append(line)
      if match := COMPILED.match(line):
        seconds["compile"] = float(match[1])
      if FIRST_STEP.match(line):
        return {"wall": time.perf_counter() - begun, **seconds}
  finally:
    process.kill()
    process.wait()
    process.stdout.close()
  raise RuntimeError(f"no step was finished:\n{''.join(lines[-20:])}")


def summarize(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
  """Median and range of each clock; how much longer a cold start takes, round by round."""
  rows = {
    name: {clock: harness.spread([one[clock] for one in rounds]) for clock in rounds[0]}
    for name, rounds in found.items()
  }
  pairs = zip(found["cold"], found["warm"], strict=True)
  return {
    "rows": rows,
    "cold_over_warm": harness.spread([cold["wall"] / warm["wall"] for cold, warm in pairs]),
    "rounds": found,
  }


NAMES = {
  "import": "import of the trainer",
  "cold": "first step, empty cache",
  "warm": "first step, filled cache",
}


def print_table(figures: dict[str, Any]) -> None:
  print("\n| what | clock | seconds | range | ratio to the filled cache |\n|---|---|---|---|---|")
  for name, clocks in figures["rows"].items():
    for clock, s in clocks.items():
      ratio = figures["cold_over_warm"] if (name, clock) == ("cold", "wall") else None
      cell = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
      title = {"wall": "wall", "cpu": "processor", "compile": "of it, the step's compilation"}
      print(
        f"| {NAMES[name]} | {title[clock]} | {s['median']:.2f} | {s['min']:.2f} to {s['max']:.2f} "
        f"| {cell} |"
      )


if __name__ == "__main__":
  main()
