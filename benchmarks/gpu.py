"""The goals for one NVIDIA GPU, measured in one command: python benchmarks/gpu.py --out=FOLDER

The most important parts come first, until --minutes are over; the same command again goes on where
this one ended. The peers are diffusers (compiled, in --dtype, channels_last) and dewml, where their
interpreters have them. On a machine without a network, --wheels=DIR installs the packages that are
missing from a folder of wheels. --tiny runs all of it with small sizes, on any machine, to see that
it works; its figures mean nothing.
"""

import argparse

import suite
from suite import Part, form_part, step_part


def main() -> None:
  suite.run_suite(suite.suite_parser(__doc__), make_parts, ["diffusers", "dewml"])


def make_parts(args: argparse.Namespace, peers: list[str]) -> list[Part]:
  """In the order of their importance."""
  torch = ["--channels_last", *([] if args.tiny else ["--compile"])]
  many = [] if args.tiny else ["--repeats=20"]
  few = [] if args.tiny else ["--repeats=5"]
  alone = ["--one_at_a_time"]
  return [
    step_part("ddpm_128", "ddpm_cifar", 128, args, peers, [*torch, *many], 270,
              "at least 1.5 times diffusers"),
    step_part("ddpm_512", "ddpm_cifar", 512, args, [], few, 120, "45% MFU at the best batch"),
    suite.sampling_part(args, [peer for peer in peers if peer == "diffusers"], torch, 150,
                        "at least 1.3 times diffusers"),
    step_part("dit_xl2", "dit_xl2", 32, args, peers, [*torch, *few, *alone], 270,
              "at least 35% MFU; published: 107 images/s, 25% of an A100"),
    form_part("attention", args),
    form_part("group_norm", args),
    form_part("upsampled_conv", args),
    suite.stall_part(args),
    suite.start_part(args),
    step_part("forms_in_ddpm", "ddpm_cifar", 128, args, [], many, 200,
              "no form loses", suite.FORMS),
    step_part("ddpm_256", "ddpm_cifar", 256, args, [], many, 120),
    step_part("ddpm_1024", "ddpm_cifar", 1024, args, [], few, 120),
    step_part("dit_xl2_64", "dit_xl2", 64, args, [], few, 120),
    step_part("dit_b4", "dit_b4", 128, args, peers, [*torch, *few, *alone], 240),
    form_part("pointwise", args),
    vae(args),
  ]  # fmt: skip


def vae(args: argparse.Namespace) -> Part:
  flags = suite.FEW if args.tiny else ["--rounds=5", "--repeats=20"]
  narrow = ["--", "--config.model.channels=16"] if args.tiny else []
  arguments = ["vae_step.py", f"--dtype={args.dtype}", *flags, *narrow]
  return Part("vae_step", "training step of vae_cifar, batch 64", 120, arguments, suite.vae_cell)


if __name__ == "__main__":
  main()
