"""The same images a device on more and more devices: python benchmarks/weak_scaling.py

The training step of configs/ddpm_digits.py on virtual devices of one CPU. They share its cores, so
that N devices with N times the images take N times as long at best: the cost of sharding is the
seconds of a step over N times the seconds on one device, 1.0 where there is none. With
--topology=v5e:4x4, which may be repeated and needs libtpu (pip install 'diffusion_jax[plan]'), the
step is also compiled for TPU slices that are not there, and what its program needs is printed.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

FLAG = "--xla_force_host_platform_device_count"


def main() -> None:
  flags = harness.parser(__doc__, rounds=5, repeats=5)
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "ddpm_digits.py"))
  flags.add_argument("--batch_size_per_device", type=int, default=8)
  flags.add_argument("--devices", default="1,2,4,8", help="numbers of virtual devices, from 1 on")
  flags.add_argument("--topology", action="append", default=[],
                     help="a TPU slice to compile for, e.g. v5e:4x4; may be repeated")  # fmt: skip
  flags.add_argument("--image", help="HEIGHTxWIDTHxCHANNELS, for data that are not there")
  flags.add_argument("--classes", type=int, help="number of labels, 0 for unlabelled images")
  flags.add_argument("overrides", nargs="*", help="of the config, after --")
  args = flags.parse_args()
  numbers = [int(text) for text in args.devices.split(",") if text]
  if numbers and numbers[0] != 1:
    flags.error(f"--devices={args.devices} must begin with 1, which the others are compared to")
  if args.batch_size_per_device < 1:
    flags.error(f"--batch_size_per_device={args.batch_size_per_device} must be at least 1")
  options = {"config": args.config, "overrides": args.overrides, "image": args.image,
             "classes": args.classes, "per_device": args.batch_size_per_device}  # fmt: skip
  virtual = on_virtual(numbers, options, args) if numbers else []
  compiled = [row for name in args.topology if (row := compile_for(name, options))]
  if compiled:
    print_compiled(compiled)
  about = harness.about(options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, "virtual": virtual, "compiled": compiled})


def on_virtual(
  numbers: Sequence[int], options: dict[str, Any], args: argparse.Namespace
) -> list[dict[str, Any]]:
  """Measures each number of devices in a process of its own, in turn, and prints the table."""
  program = str(Path(__file__).resolve())
  contenders = [
    harness.Contender(f"{n} devices", program, {**options, "devices": n}) for n in numbers
  ]
  contenders = harness.measure_contenders(contenders, args)
  first = [one["seconds"] for one in contenders[0].rounds]
  rows = []
  for number, contender in zip(numbers, contenders, strict=True):
    seconds = [one["seconds"] for one in contender.rounds]
    costs = [s / number / one for s, one in zip(seconds, first, strict=True)]
    rows.append({
      "devices": number, "images": number * options["per_device"],
      "seconds": statistics.median(seconds), "seconds_range": [min(seconds), max(seconds)],
      "cost": statistics.median(costs), "cost_range": [min(costs), max(costs)],
      "ready": contender.ready, "rounds": contender.rounds,
    })  # fmt: skip
  print("\n| virtual devices | images | s/step | range | over N times that of one | range |")
  print("|---|---|---|---|---|---|")
  for row in rows:
    low, high = row["seconds_range"]
    least, most = row["cost_range"]
    print(
      f"| {row['devices']} | {row['images']} | {row['seconds']:.4g} | {low:.4g} to {high:.4g} | "
      f"{row['cost']:.2f} | {least:.2f} to {most:.2f} |"
    )
  return rows


def worker(options: dict[str, Any]) -> None:
  """Serves the training step on so many virtual devices, as `workers/ours.py` does on one."""
  others = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{others} {FLAG}={options['devices']}".strip()
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(harness.HERE / "workers"))
  import jax
  import ours  # the flags above must be there before JAX is

  from diffusion_jax.runs import command_line

  command_line.enable_compilation_cache()
  program = build(options, jax.devices())
  ours.train(program, {"batch_size": options["devices"] * options["per_device"]})


def build(options: dict[str, Any], devices: Sequence[Any]) -> Any:
  """The config's program on these devices."""
  from diffusion_jax import planning
  from diffusion_jax.core import config
  from diffusion_jax.runs.stored import load_experiment

  overrides = [config.parse_override(text) for text in options["overrides"]]
  experiment = load_experiment(options["config"], overrides)
  spec = planning.image_spec(experiment, options["image"], options["classes"])
  return planning.build_program(experiment, spec, devices)


def compile_for(topology: str, options: dict[str, Any]) -> dict[str, Any] | None:
  """What the step compiled for a slice needs; None, and a line, where it does not fit."""
  from diffusion_jax import planning

  print(f"compiling for {topology} ...", file=sys.stderr, flush=True)
  devices = planning.find_devices(topology)
  (measured,) = planning.measure_program(build(options, devices), [options["per_device"]])
  if isinstance(measured, planning.DoesNotFit):
    print(f"{topology}: {planning.explain_misfit(measured)}")
    return None
  chip = planning.find_chip(devices[0].device_kind)
  if chip is None:
    print(f"{topology}: no figures are known of {devices[0].device_kind}")
    return None
  roof = planning.roofline(measured, chip, len(devices))
  if roof is None or len(roof.seconds) < 3:
    calls = [*measured.flops.unknown, *measured.work.unknown_calls]
    print(f"{topology}: FLOPs or memory traffic are unknown: {', '.join(calls)}")
    return None
  return {
    "topology": topology, "chip": chip.name, "chips": len(devices) // chip.devices_per_chip,
    "images": measured.batch_size, "peak_bytes": measured.memory.peak,
    "flops": measured.flops.executed, "memory_bytes": measured.work.memory_bytes,
    "wire_bytes": sum(row.wire_bytes for row in measured.traffic),
    "collectives": [row._asdict() for row in measured.traffic],
    "seconds": roof.seconds, "binds": roof.binds,
    "images_per_sec_per_chip": roof.images_per_sec_per_chip,
    "compile_sec": measured.compile_sec,
  }  # fmt: skip


def print_compiled(rows: Sequence[dict[str, Any]]) -> None:
  """The compiled programs, with each one's bound beside the first one's."""
  print("\n| slice | chips | images | FLOP time, ms | memory time, ms | links, ms | MB sent "
        "| binds | at most images/s a chip | ratio to the first |")  # fmt: skip
  print("|---|---|---|---|---|---|---|---|---|---|")
  for row in rows:
    ms = {name: 1e3 * seconds for name, seconds in row["seconds"].items()}
    rate = row["images_per_sec_per_chip"]
    print(
      f"| {row['topology']} | {row['chips']} | {row['images']:,} | {ms['compute']:.4g} | "
      f"{ms['memory']:.4g} | {ms['interconnect']:.4g} | {row['wire_bytes'] / 1e6:.4g} | "
      f"{row['binds']} | {rate:,.0f} | {rate / rows[0]['images_per_sec_per_chip']:.3f} |"
    )


if __name__ == "__main__":
  if sys.argv[1:] and sys.argv[1].startswith("{"):  # started by `on_virtual`
    worker(json.loads(sys.argv[1]))
  else:
    main()
