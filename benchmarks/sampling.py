"""Sampling beside diffusers at equal network evaluations: python benchmarks/sampling.py

DDPM's network for CIFAR-10 (the same 35,746,307 parameters) and ancestral sampling with clipped
estimates, --steps evaluations an image; ours is the very sampler of the config. The peer is
in the extra `bench`; --peers= measures ours alone. On a GPU, add --dtype=bfloat16 --channels_last
--compile.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import harness
import machine
import networks


def main() -> None:
  flags = networks.network_parser(__doc__, ["ddpm_cifar"], ["diffusers"])
  flags.add_argument(
    "--steps", type=harness.positive, default=10, help="network evaluations of an image"
  )
  args = networks.parse_network(flags)
  rates = machine.measure(args.dtype)
  contenders = networks.contend(
    args, "sample", f"--config.sampler.steps={args.steps}", steps=args.steps
  )
  measured = harness.measure_contenders(contenders, args, check)
  networks.report(args, measured, sampling_floor, rates)


def check(contenders: Sequence[harness.Contender]) -> None:
  """Ends the program where networks differ, or how often they are evaluated."""
  networks.check_parameters(contenders)
  networks.check_equal(contenders, "evaluations", "network evaluations of an image")


def sampling_floor(ready: Mapping[str, Any], rates: machine.Rates) -> harness.Floor:
  """The parameters are read once an evaluation; what lies between could stay on the chip."""
  read = ready["state_bytes"] * ready["evaluations"]
  return harness.Floor(ready["flops"], read, rates.flops, rates.num_bytes)


if __name__ == "__main__":
  main()
