"""How long a checkpoint holds up training: python benchmarks/checkpoint_stall.py

The state of configs/ddpm_cifar.py (parameters, Adam's moments, an average of the weights: 572 MB)
is saved as the trainer does it, after the steps in flight have ended, while a loop of small steps
that write over the state goes on. The save copies the state to the host and returns; what is left
is written behind the steps. The first save, which compiles the checksums, is shown by itself.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np

from diffusion_jax.checkpoints.store import Checkpointing, Checkpoints, saved_steps
from diffusion_jax.core import config
from diffusion_jax.planning import compiled
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.step import make_init
from diffusion_jax.types import ImageSpec

EVERY_SEC = 300.0
"""Between two saves, for the share of the wall time that they take."""

NUM_IDLE = 5
"""Steps before each save, while nothing is written."""


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--rounds", type=harness.positive, default=5, help="saves after the first")
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "ddpm_cifar.py"))
  flags.add_argument("--folder", type=Path, help="where to save; a temporary folder by default")
  flags.add_argument("--out", type=Path, help="also write the figures there, as JSON")
  flags.add_argument("overrides", nargs="*", help="of the config, after --")
  args = flags.parse_args()
  command_line.enable_compilation_cache()
  overrides = [config.parse_override(text) for text in args.overrides]
  experiment = load_experiment(args.config, overrides)
  state = make_state(experiment)
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    first, *saves = measure(state, Path(folder), experiment.to_dict(), args.rounds + 1)
  rows = {name: harness.spread([save[name] for save in saves]) for name in saves[0]}
  print_table(rows, first, num_bytes)
  share = {name: seconds / EVERY_SEC for name, seconds in rows["blocked"].items()}
  print(
    f"one save every {EVERY_SEC:.0f} s: held up {share['median']:.3%} of the wall time "
    f"({share['min']:.3%} to {share['max']:.3%})"
  )
  about = harness.about(device=jax.devices()[0].device_kind, options=_options(args))
  figures = {"state_bytes": num_bytes, "rows": rows, "share": share, "first": first, "saves": saves}
  harness.write(args.out, {"about": about, **figures})


def make_state(experiment: Any) -> Any:
  """The state of step 0 for CIFAR-10's images."""
  program = compiled.build_program(experiment, ImageSpec(32, 32, 3, 256, 0), jax.devices()[:1])
  parts = program.experiment
  init = make_init(program.generative, parts.optimizers, parts.training, parts.ema.names())
  return jax.block_until_ready(jax.jit(init)(np.uint32(0)))


def measure(state: Any, folder: Path, meta: Any, num: int) -> list[dict[str, float]]:
  """Saves `num` times; seconds of each."""
  step = make_step()
  state = jax.block_until_ready(step(state))  # compiles
  saver, saves = Checkpoints(folder, Checkpointing(keep_last=1)), []
  try:
    for number in range(1, num + 1):
      state, idle = timed_steps(step, state, lambda done: done >= NUM_IDLE)
      begun = time.perf_counter()
      saver.save(number, state, {"config": meta})
      blocked = time.perf_counter() - begun
      state, busy = timed_steps(step, state, lambda _, n=number: n in saved_steps(folder))
      on_disk = time.perf_counter() - begun
      saver.wait()
      saves.append({
        "blocked": blocked, "on_disk": on_disk, "idle_step": statistics.median(idle),
        "busy_step": statistics.median(busy),
      })  # fmt: skip
      print(f"  save {number}: blocked {blocked:.4g} s", file=sys.stderr, flush=True)
  finally:
    saver.close()
  return saves


def make_step() -> Callable[[Any], Any]:
  """A small step that writes over the state, as a training step does."""

  def step(state: Any) -> Any:
    params = jax.tree.map(lambda x: 0.9999 * x, state.params)
    return state._replace(step=state.step + 1, params=params)

  return jax.jit(step, donate_argnums=0)


def timed_steps(
  step: Callable[[Any], Any], state: Any, is_over: Callable[[int], bool]
) -> tuple[Any, list[float]]:
  """Steps, at least one, until it is over; seconds of each."""
  seconds: list[float] = []
  while not seconds or not is_over(len(seconds)):
    begun = time.perf_counter()
    state = jax.block_until_ready(step(state))
    seconds.append(time.perf_counter() - begun)
  return state, seconds


TITLES = {
  "blocked": "the loop is held up",
  "on_disk": "until it is on disk",
  "idle_step": "a small step, nothing being written",
  "busy_step": "a small step while a save is written",
}


def print_table(rows: dict[str, Any], first: dict[str, float], num_bytes: int) -> None:
  print(f"\nstate of {num_bytes / 1e6:,.1f} MB")
  print("| what | seconds | range | ratio to held up | first save |\n|---|---|---|---|---|")
  for name, s in rows.items():
    print(
      f"| {TITLES[name]} | {s['median']:.4g} | {s['min']:.4g} to {s['max']:.4g} | "
      f"{s['median'] / rows['blocked']['median']:.3g} | {first[name]:.4g} |"
    )


def _options(args: argparse.Namespace) -> dict[str, Any]:
  return vars(args) | {"out": None, "folder": None}


if __name__ == "__main__":
  main()
