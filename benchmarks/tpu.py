"""The same on one chip of a TPU, where there is no torch: python benchmarks/tpu.py --out=FOLDER

The parts of gpu.py, with splash attention in place of cuDNN's and dewml as the only peer, where
--python.dewml=PYTHON has it. One process at a time has the chip. The same command again goes on
where this one ended. `launch/tpu_pod.sh bench` runs it on a Cloud TPU. --tiny runs all of it with
small sizes, on any machine, to see that it works; its figures mean nothing.
"""

import argparse

import suite
from suite import Part, form_part, step_part


def main() -> None:
  suite.run_suite(suite.suite_parser(__doc__), make_parts, ["dewml"])


def make_parts(args: argparse.Namespace, peers: list[str]) -> list[Part]:
  """In the order of their importance; the batches are for the 16 GB of a v5e."""
  alone = ["--one_at_a_time"]
  many = [*alone, *([] if args.tiny else ["--repeats=20"])]
  few = [*alone, *([] if args.tiny else ["--repeats=5"])]
  return [
    step_part("ddpm_128", "ddpm_cifar", 128, args, peers, many, 400),
    step_part("ddpm_256", "ddpm_cifar", 256, args, [], few, 240),
    suite.sampling_part(args, [], alone, 240),
    step_part("dit_xl2", "dit_xl2", 8, args, peers, [*few, "--remat"], 500),
    form_part("attention", args, 120),
    form_part("group_norm", args, 120),
    form_part("upsampled_conv", args, 120),
    suite.stall_part(args, 120),
    suite.start_part(args, 240),
    step_part("forms_in_ddpm", "ddpm_cifar", 128, args, [], many, 500, plain=suite.FORMS),
    step_part("ddpm_512", "ddpm_cifar", 512, args, [], few, 240),
    step_part("dit_b4", "dit_b4", 64, args, peers, [*few, "--remat"], 400),
    form_part("pointwise", args, 120),
  ]


if __name__ == "__main__":
  main()
