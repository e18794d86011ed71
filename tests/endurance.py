"""Kill a run and flip bits of its checkpoints, many times, and see whether it ends as it should.

  .venv/bin/python tests/endurance.py [--kills=42] [--flips=90] [--seed=0]

A run that nothing disturbs is trained first. Then runs of the same config are killed with SIGKILL
at random moments, each up to three times before it may finish; and copies of an unfinished run get
one random bit flipped in one random file of their checkpoints before they go on. All must end with
the same state, losses, held-out figures and samples, bit for bit. Exit code 1 if one does not.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import xla_flags
from tiny import TINY

ROOT = Path(__file__).parents[1]
NUM_STEPS, STOP = 120, 70
FLAGS = [
  *TINY, f"--config.training.num_steps={NUM_STEPS}", "--config.checkpoint.every_steps=20",
  "--config.logging.every_steps=1", "--config.logging.num_samples=4",
  "--config.logging.sample_every_steps=30", "--config.eval.every_steps=40",
  "--config.data.flip=true", "--config.model.dropout=0.1", "--config.optimizer.schedule=cosine",
  "--config.training.accumulation_steps=2", "--config.ema.profiles=0.05,0.1",
  "--config.ema.snapshot_every_steps=30",
]  # fmt: skip
TIMED = ("images_per_sec", "sec", "share", "mfu", "hfu", "goodput", "wait", "time", "memory")


def start(workdir: Path) -> subprocess.Popen:
  """Start the training program on one device."""
  command = [sys.executable, "-m", "diffusion_jax.train", *FLAGS, f"--workdir={workdir}"]
  return subprocess.Popen(
    command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    env={**os.environ, "XLA_FLAGS": xla_flags.FAST},
  )  # fmt: skip


def finish(workdir: Path) -> str:
  """Run to the end and return what was printed."""
  process = start(workdir)
  out, _ = process.communicate()
  if process.returncode:
    raise AssertionError(f"exit code {process.returncode}:\n{out}")
  return out


def end_of(workdir: Path) -> dict[str, Any]:
  """Return all that must be the same at the end of two runs."""
  checkpoints = workdir / "checkpoints"
  last = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
  snapshots = sorted(p.name for p in (workdir / "ema_snapshots").iterdir() if p.name.isdigit())
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  figures = [
    (row["step"], name, value)
    for row in rows
    for name, value in row.items()
    if name.startswith(("train/", "held_out/")) and not any(word in name for word in TIMED)
  ]
  return {
    "step": last,
    "state": _leaves(checkpoints / str(last)),
    "snapshots": {name: _leaves(workdir / "ema_snapshots" / name) for name in snapshots},
    "figures": sorted(figures),
    "held out": json.loads((workdir / "held_out.json").read_text()),
    "pictures": {p.name: p.read_bytes() for p in sorted((workdir / "samples").glob("*.png"))},
  }


def _leaves(folder: Path) -> Any:
  return json.loads((folder / "meta" / "metadata").read_text())["leaves"]


def different(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
  """Return the names of what differs, with the rows of figures that do."""
  names = [name for name in expected if found[name] != expected[name]]
  if "figures" in names:
    odd = set(map(str, found["figures"])) ^ set(map(str, expected["figures"]))
    twice = len(found["figures"]) - len(set(map(str, found["figures"])))
    names.append(f"{len(odd)} figures are in one of them only, {twice} stand twice")
  return names


def kill_at_random(workdir: Path, longest: float, times: int, rng: random.Random) -> int:
  """Kill a run up to so many times, each after a random time; return how often it was alive."""
  kills = 0
  for _ in range(times):
    process = start(workdir)
    time.sleep(rng.uniform(0.1, longest))
    alive = process.poll() is None
    process.kill()
    process.communicate()
    kills += alive
    if not alive:
      break
  return kills


def flip(workdir: Path, rng: random.Random) -> str:
  """Flip one bit in one file of the checkpoints; return which."""
  files = sorted(
    p for p in (workdir / "checkpoints").rglob("*") if p.is_file() and p.stat().st_size
  )
  newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
  mine = [p for p in files if p.relative_to(workdir / "checkpoints").parts[0] == str(newest)]
  file = rng.choice(mine if rng.random() < 0.8 else files)
  content = bytearray(file.read_bytes())
  place, bit = rng.randrange(len(content)), rng.randrange(8)
  content[place] ^= 1 << bit
  file.write_bytes(content)
  return f"bit {bit} of byte {place} in {file.relative_to(workdir)}"


def stopped(workdir: Path) -> None:
  """Train until a step in the middle and kill the run there."""
  process = start(workdir)
  for line in process.stdout or ():
    found = re.match(r"step +(\d+)/", line)
    if found and int(found[1]) >= STOP:
      break
  process.kill()
  process.communicate()


def main() -> int:
  """Run what the flags ask for and print one line a run."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  for name, default in (("kills", 42), ("flips", 90), ("seed", 0)):
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="endurance_"))
  finish(folder / "straight")
  begun = time.monotonic()
  finish(folder / "again")  # with its programs in the cache: how long a run takes
  longest, expected = time.monotonic() - begun, end_of(folder / "straight")
  failures, kills, number = [], 0, 0
  if gone := different(end_of(folder / "again"), expected):
    failures.append(f"two undisturbed runs differ: {gone}")
  while kills < args.kills:
    number += 1
    workdir = folder / f"killed_{number}"
    kills += (here := kill_at_random(workdir, longest, min(3, args.kills - kills), rng))
    failures += _judge(workdir, f"killed {here} times", expected)
  if args.flips:
    stopped(folder / "unfinished")
  for number in range(args.flips):
    workdir = shutil.copytree(folder / "unfinished", folder / f"flipped_{number}")
    failures += _judge(workdir, flip(workdir, rng), expected)
  print(f"{kills} kills, {args.flips} bit flips: {len(failures)} runs ended otherwise")
  shutil.rmtree(folder)
  return bool(failures)


def _judge(workdir: Path, what: str, expected: dict[str, Any]) -> list[str]:
  """Finish a run; return what is wrong with its end, and print it."""
  try:
    out = finish(workdir)
    found = different(end_of(workdir), expected)
    said = [line for line in out.splitlines() if "damaged" in line or "resuming" in line]
  except AssertionError as error:
    found, said = [str(error)], []
  print(f"{'ok' if not found else 'NOT THE SAME'}: {what} {said} {found or ''}", flush=True)
  shutil.rmtree(workdir)
  return [what] if found else []


if __name__ == "__main__":
  sys.exit(main())
