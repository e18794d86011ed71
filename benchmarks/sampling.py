"""Sampling beside diffusers at equal network evaluations: python benchmarks/sampling.py

DDPM's network for CIFAR-10 (the same 35,746,307 parameters) and ancestral sampling with clipped
estimates, --steps evaluations an image; ours is the very sampler of the config. The peer is in the
extra `bench`. On a GPU, add --dtype=bfloat16 --channels_last --compile.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import machine


def main() -> None:
  flags = harness.network_parser(__doc__)
  flags.add_argument(
    "--steps", type=harness.positive, default=10, help="network evaluations of an image"
  )
  args = flags.parse_args()
  rates = machine.measure(args.dtype)
  steps = f"--config.sampler.steps={args.steps}"
  contenders = harness.contend(args, "sample", steps, ["diffusers"], steps=args.steps)
  check_evaluations(contenders)
  harness.report(args, contenders, sampling_floor, rates)


def check_evaluations(contenders: Sequence[harness.Contender]) -> None:
  """Ends the program where the contenders do not evaluate their networks equally often."""
  found = {contender.name: contender.ready["evaluations"] for contender in contenders}
  if len(set(found.values())) > 1:
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    sys.exit(f"not compared: network evaluations of an image differ ({listed})")


def sampling_floor(ready: Mapping[str, Any], rates: machine.Rates) -> harness.Floor:
  """The parameters are read once an evaluation; what lies between could stay on the chip."""
  read = ready["state_bytes"] * ready["evaluations"]
  return harness.Floor(ready["flops"], read, rates.flops, rates.num_bytes)


if __name__ == "__main__":
  main()
