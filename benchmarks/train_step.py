"""A training step beside its peers: python benchmarks/train_step.py

DDPM's network for CIFAR-10 with dropout, Adam, clip and an average of the weights, on images that
are already on the device; ours is the very step that the trainer compiles. Peers, from the extra
`bench`: diffusers' UNet2DModel (the same 35,746,307 parameters) and, where --peers names it,
lucidrains' denoising_diffusion_pytorch (a U-Net of its own). On a GPU, add --dtype=bfloat16
--channels_last --compile.
"""

import harness
import machine

PEERS = ("diffusers", "lucidrains")


def main() -> None:
  flags = harness.network_parser(__doc__)
  flags.add_argument("--peers", default="diffusers", help="of diffusers,lucidrains")
  args = flags.parse_args()
  peers = args.peers.split(",")
  if unknown := [peer for peer in peers if peer not in PEERS]:
    flags.error(f"--peers={args.peers}: '{unknown[0]}' is none of {','.join(PEERS)}")
  rates = machine.measure(args.dtype)
  batch = f"--config.training.batch_size={args.batch_size}"
  harness.report(args, harness.contend(args, "train", batch, peers), harness.step_floor, rates)


if __name__ == "__main__":
  main()
