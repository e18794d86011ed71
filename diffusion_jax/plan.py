"""Predict memory, time and communication of a training step, also for absent devices.

  python -m diffusion_jax.plan --config=ddpm_cifar --topology=v5e:4x4

Compiles the real step ahead of time and prints its memory, its shortest possible time and its
communication. Override any field by --config.section.field=value.
"""

import time
from collections.abc import Sequence
from typing import Any

from diffusion_jax import planning
from diffusion_jax.core import progress
from diffusion_jax.core.files import bucket_path, write_json
from diffusion_jax.parallel import sharding
from diffusion_jax.planning import DoesNotFit, Fit, Measured, Plan, Program
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  check_flags(args)
  experiment = planning.with_slices(load_experiment(args.config, overrides), args.num_slices)
  spec = planning.image_spec(experiment, args.image, args.classes)
  devices = planning.find_devices(args.topology, max(experiment.mesh.dcn_data, 1))
  program = planning.build_program(experiment, spec, devices)
  size = batch_size(program, args.batch_size_per_device)
  chip = planning.find_chip(devices[0].device_kind)
  available = planning.memory_limit(devices[0], chip)
  measured, fit = compile_steps(program, size, available, args.fit)
  roof = None if chip is None else planning.roofline(measured, chip, len(devices))
  kind = devices[0].device_kind
  with progress.phase("compiling the preview", last_line=False):
    preview = planning.measure_preview(program)
  plan = Plan(
    args.config, args.topology, program, measured, kind, chip, available, roof, fit, preview
  )
  print(f"\n{planning.plan_text(plan)}")
  if args.json is not None:
    write_json(args.json, planning.plan_json(plan))


def parser() -> command_line.Parser:
  flags = command_line.Parser("plan", description=__doc__)
  flags.add_argument(
    "--config", required=True, help="a shipped config's name, e.g. ddpm_cifar, or a config file"
  )
  flags.add_argument("--topology", default="local",
                     help="a TPU slice, e.g. v5e:4x4, or local: the local devices")  # fmt: skip
  flags.add_argument("--num_slices", type=int,
                     help="number of such slices, joined by the slower network between them; "
                          "default: mesh.dcn_data")  # fmt: skip
  flags.add_argument("--batch_size_per_device", type=int,
                     help="images per device; default: from training.batch_size")  # fmt: skip
  flags.add_argument("--image", metavar="HxWxC", help="image shape, if the data are absent")
  flags.add_argument("--classes", type=int, help="number of labels, 0 for unlabelled images")
  flags.add_argument("--fit", choices=["off", "line", "verify"], default="line",
                     help="find the largest batch by a line through two compilations, or also "
                          "compile the batch found")  # fmt: skip
  flags.add_argument("--json", type=bucket_path, help="also write the plan to this JSON file")
  return flags


def check_flags(args: Any) -> None:
  """Raise a UserError for flags that would only fail after minutes of compilation."""
  if args.batch_size_per_device is not None and args.batch_size_per_device < 1:
    raise UserError(f"--batch_size_per_device={args.batch_size_per_device} must be at least 1")
  if args.classes is not None and args.classes < 0:
    raise UserError(f"--classes={args.classes} must be at least 0; 0 is for unlabelled images")
  if args.json is not None and (args.json.is_dir() or not args.json.parent.is_dir()):
    raise UserError(f"--json={args.json}: give a file in a folder that exists, e.g. plan.json")


def batch_size(program: Program, asked: int | None) -> int:
  """Return the images per device, by default from the config's batch size."""
  num_parts = program.experiment.training.accumulation_steps
  shards = sharding.num_batch_shards(program.mesh)
  if asked is None:
    total = program.experiment.training.batch_size
    sharding.check_batch_size(total, program.mesh, num_parts, "training.batch_size")
    return total // shards
  if asked % num_parts:
    near = asked // num_parts * num_parts or num_parts
    raise UserError(
      f"--batch_size_per_device={asked} is not divisible by training.accumulation_steps="
      f"{num_parts}; use --batch_size_per_device={near}"
    )
  return asked


def compile_steps(
  program: Program, size: int, available: int | None, how: str
) -> tuple[Measured, Fit | None]:
  """Return the step for the chosen batch size, and the largest batch that fits if known.

  Raises:
    UserError: the chosen batch does not fit.
  """
  wanted = how != "off" and available is not None
  asked, *more = compile_all(program, [size, 2 * size] if wanted else [size])
  if isinstance(asked, DoesNotFit):
    raise UserError(planning.explain_misfit(asked))
  if not more or available is None:
    return asked, None
  num_parts = program.experiment.training.accumulation_steps
  other = more[0]
  if isinstance(other, DoesNotFit):  # use half the batch for the line instead
    half = size // 2 // num_parts * num_parts
    other = compile_all(program, [half])[0] if half else other
  if isinstance(other, DoesNotFit):
    return asked, Fit(size, f"{2 * size} does not")
  points = [(m.batch_size_per_device, m.memory.peak) for m in (asked, other)]
  fit = planning.largest_batch(points, available, num_parts)
  if how == "verify":
    known = max(n for n, _ in points)
    fit = planning.verify(fit, known, num_parts, lambda n: compile_all(program, [n])[0])
  return asked, fit


def compile_all(program: Program, sizes: Sequence[int]) -> list[Measured | DoesNotFit]:
  """Compile for several batch sizes at once and print progress."""
  kind, whose = program.mesh.devices.flat[0].device_kind, planning.each(program)
  images = " and ".join(f"{n:,}" for n in sizes)
  print(f"compiling for {program.mesh.size} x {kind}, {images} images {whose} ...", flush=True)
  begun = time.perf_counter()
  with progress.phase("compiling", last_line=False):
    measured = planning.measure_program(program, sizes)
  print(f"  {time.perf_counter() - begun:.1f} s", flush=True)
  return measured


if __name__ == "__main__":
  command_line.run_main(main)
