"""Sampling beside diffusers at equal network evaluations: python benchmarks/sampling.py

DDPM's network for CIFAR-10 (the same 35,746,307 parameters) and ancestral sampling with clipped
estimates, --steps evaluations an image; ours is the very sampler of the config. The peer is in the
extra `bench`. On a GPU, add --dtype=bfloat16 --channels_last --compile.
"""

import sys
from collections.abc import Sequence

import harness
import machine

PEER = "diffusers"


def main() -> None:
  flags = harness.parser(__doc__, rounds=5, repeats=1)
  flags.add_argument("--batch_size", type=int, default=16)
  flags.add_argument("--steps", type=int, default=10, help="network evaluations of an image")
  flags.add_argument("--channels", type=int, default=128, help="of the networks' first level")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--channels_last", action="store_true", help="of the peer")
  flags.add_argument("--compile", action="store_true", help="the peer, with torch.compile")
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "ddpm_cifar.py"))
  flags.add_argument("overrides", nargs="*", help="of ours, after --")
  args = flags.parse_args()
  kind = {
    "batch_size": args.batch_size,
    "channels": args.channels,
    "dtype": args.dtype,
    "work": "sample",
  }
  overrides = [f"--config.model.dtype={args.dtype}", f"--config.model.channels={args.channels}",
               f"--config.sampler.steps={args.steps}", *args.overrides]  # fmt: skip
  ours = {"config": args.config, "overrides": overrides, "image": [32, 32, 3], **kind}
  theirs = {"steps": args.steps, "channels_last": args.channels_last, "compile": args.compile}
  rates = machine.measure(args.dtype)
  contenders = [
    harness.Contender("diffusion_jax", "ours.py", ours),
    harness.Contender(PEER, "torch_peers.py", {**theirs, **kind}, args.peer_python),
  ]
  try:
    check_evaluations(contenders)
    harness.alternate(contenders, args.rounds, args.repeats)
  finally:
    for contender in contenders:
      contender.close()
  rows = harness.summarize(contenders, args.batch_size, PEER)
  harness.print_table(rows, "images", PEER)
  ready = rows[0]["ready"]
  floor = sampling_floor(ready, rates)
  gap = harness.print_floor(floor, args.batch_size / rows[0]["per_sec"], ready["peak_flops"])
  about = harness.about(device=ready["device"], options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, "rows": rows, "floor": gap})


def check_evaluations(contenders: Sequence[harness.Contender]) -> None:
  """Ends the program where the contenders do not evaluate their networks equally often."""
  found = {contender.name: contender.ready["evaluations"] for contender in contenders}
  if len(set(found.values())) > 1:
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    sys.exit(f"not compared: network evaluations of an image differ ({listed})")


def sampling_floor(ready: dict, rates: machine.Rates) -> harness.Floor:
  """The parameters are read once an evaluation; what lies between could stay on the chip."""
  read = ready["state_bytes"] * ready["evaluations"]
  return harness.Floor(ready["flops"], read, rates.flops, rates.num_bytes)


if __name__ == "__main__":
  main()
