"""A training step beside its peers: python benchmarks/train_step.py

DDPM's network for CIFAR-10 with dropout, Adam, clip and an average of the weights, on images that
are already on the device; ours is the very step that the trainer compiles. Peers, from the extra
`bench`: diffusers' UNet2DModel (the same 35,746,307 parameters) and, where --peers names it,
lucidrains' denoising_diffusion_pytorch (a U-Net of its own). On a GPU, add --dtype=bfloat16
--channels_last --compile.
"""

import harness
import machine

PEER = "diffusers"


def main() -> None:
  flags = harness.parser(__doc__, rounds=5, repeats=1)
  flags.add_argument("--batch_size", type=int, default=16)
  flags.add_argument("--channels", type=int, default=128, help="of the networks' first level")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--peers", default="diffusers", help="of diffusers,lucidrains")
  flags.add_argument("--channels_last", action="store_true", help="of the peers")
  flags.add_argument("--compile", action="store_true", help="the peers, with torch.compile")
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "ddpm_cifar.py"))
  flags.add_argument("overrides", nargs="*", help="of ours, after --")
  args = flags.parse_args()
  kind = {
    "batch_size": args.batch_size,
    "channels": args.channels,
    "dtype": args.dtype,
    "work": "train",
  }
  overrides = [f"--config.model.dtype={args.dtype}", f"--config.model.channels={args.channels}",
               f"--config.training.batch_size={args.batch_size}", *args.overrides]  # fmt: skip
  ours = {"config": args.config, "overrides": overrides, "image": [32, 32, 3], **kind}
  theirs = {"channels_last": args.channels_last, "compile": args.compile, **kind}
  rates = machine.measure(args.dtype)
  contenders = [harness.Contender("diffusion_jax", "ours.py", ours)]
  contenders += [
    harness.Contender(peer, "torch_peers.py", {"peer": peer, **theirs}, args.peer_python)
    for peer in args.peers.split(",")
  ]
  harness.alternate(contenders, args.rounds, args.repeats)
  for contender in contenders:
    contender.close()
  rows = harness.summarize(contenders, args.batch_size, args.peers.split(",")[0])
  harness.print_table(rows, "images", args.peers.split(",")[0])
  floor = step_floor(rows[0]["ready"], rates)
  gap = harness.print_floor(
    floor, args.batch_size / rows[0]["per_sec"], rows[0]["ready"]["peak_flops"]
  )
  about = harness.about(device=rows[0]["ready"]["device"], options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, "rows": rows, "floor": gap})


def step_floor(ready: dict, rates: machine.Rates) -> harness.Floor:
  """The state is read and written once; what lies between the layers could stay on the chip."""
  return harness.Floor(ready["flops"], 2 * ready["state_bytes"], rates.flops, rates.num_bytes)


if __name__ == "__main__":
  main()
