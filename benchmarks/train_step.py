"""A training step beside its peers: python benchmarks/train_step.py --network=ddpm_cifar

Adam, an average of the weights and, for DDPM, dropout and a clipped gradient, on images that are
already on the device; ours is the very step that the trainer compiles. Networks: ddpm_cifar (DDPM's
for CIFAR-10), dit_b4 (DiT-B/4 on 64x64x3) and dit_xl2 (DiT-XL/2 on 32x32x4, the shape of latents).
Peers: diffusers, of the extra `bench`; dewml, which needs Python 3.12 and an environment of its
own, --python.dewml=PYTHON; and for DDPM lucidrains' denoising_diffusion_pytorch, also of `bench`.
All but the last have as many parameters as ours, or the program ends. On a GPU, add
--dtype=bfloat16 --channels_last --compile.
"""

import harness
import machine
import networks


def main() -> None:
  flags = networks.network_parser(__doc__, list(networks.NETWORKS), list(networks.PEERS))
  args = networks.parse_network(flags)
  rates = machine.measure(args.dtype)
  batch = f"--config.training.batch_size={args.batch_size}"
  contenders = networks.contend(args, "train", batch)
  measured = harness.measure_contenders(contenders, args, networks.check_parameters)
  networks.report(args, measured, harness.step_floor, rates)


if __name__ == "__main__":
  main()
