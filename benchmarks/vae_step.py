"""The VAE's training step beside its floor: python benchmarks/vae_step.py

The convolutional VAE of configs/vae_cifar.py on images that are already on the device; it is the
very step that the trainer compiles. It has no peer: no library has a VAE of this shape. diffusers'
AutoencoderKL of the same widths has other layers and about twice the parameters (13.3 million, ours
of spatial latents 7.1 million), so the two would not do the same work. --config measures the step
of any other config of 32x32x3 images in the same way.
"""

import harness
import machine


def main() -> None:
  flags = harness.parser(__doc__, rounds=5, repeats=1)
  flags.add_argument("--batch_size", type=int, default=64)
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--config", default=str(harness.HERE.parent / "configs" / "vae_cifar.py"))
  flags.add_argument("overrides", nargs="*", help="after --")
  args = flags.parse_args()
  overrides = [f"--config.model.dtype={args.dtype}",
               f"--config.training.batch_size={args.batch_size}", *args.overrides]  # fmt: skip
  options = {"config": args.config, "overrides": overrides, "image": [32, 32, 3],
             "classes": 0, "batch_size": args.batch_size, "work": "train"}  # fmt: skip
  rates = machine.measure(args.dtype)
  contenders = [harness.Contender(harness.OURS, "ours.py", options)]
  measured = harness.measure_contenders(contenders, args)
  rows = harness.summarize(measured, args.batch_size, harness.OURS)
  ready = rows[0]["ready"]
  floor = harness.step_floor(ready, rates)
  print_table(rows[0], args.batch_size, floor)
  gap = harness.print_floor(floor, args.batch_size / rows[0]["per_sec"], ready)
  about = harness.about(device=ready["device"], options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, "rows": rows, "floor": gap})


def print_table(row: dict, batch_size: int, floor: harness.Floor) -> None:
  """The rate, its share of what the floor allows, and what it took to get there."""
  low, high = row["per_sec_range"]
  share = row["per_sec"] * floor.seconds / batch_size
  peak = row["rounds"][-1]["peak_bytes"] / 1e9
  print("\n| step | images/s | range | ratio to the floor's | compile, s | peak GB |")
  print("|---|---|---|---|---|---|")
  print(
    f"| {row['name']} | {row['per_sec']:.4g} | {low:.4g} to {high:.4g} | {share:.2f} | "
    f"{row['ready']['compile_sec']:.1f} | {peak:.2f} |"
  )


if __name__ == "__main__":
  main()
