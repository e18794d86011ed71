"""The forms of one kernel, value and gradient, turn by turn: python benchmarks/forms.py group_norm

Kernels: attention (the plain form xla, cuDNN's and splash where the device has them), group_norm,
upsampled_conv and pointwise (the faster form and the plain one), at the shapes that DDPM's network
for CIFAR-10 and DiT-XL/2 have. A form that loses on a platform belongs into PLAIN_FORM_ON of
diffusion_jax/parallel/platforms.py. What a form costs inside a whole step, where XLA joins it with
its neighbours, is measured by train_step.py --plain=KERNEL. --tiny shows only that it works.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.kernels import attention, group_norm, pointwise, upsampled_conv
from diffusion_jax.parallel import placement, platforms

TOKENS, HEADS, HEAD_WIDTH = 16_384, 16, 72
LENGTHS = (256, 1024, 4096)
IMAGES = 128
FUSED = {"gpu": ("cudnn",), "tpu": ("splash",)}
"""Platform -> its attention kernels."""


class Case(NamedTuple):
  """One shape.

  Attributes:
    title: in the table.
    forms: functions of the arrays; the first is what the others are compared to.
    arrays: differentiated too.
    refused: form -> why it is not there.
  """

  title: str
  forms: dict[str, Callable[..., jax.Array]]
  arrays: list[jax.Array]
  refused: dict[str, str]


def main() -> None:
  flags = harness.parser(__doc__, rounds=5, repeats=20)
  flags.add_argument("kernel", choices=CASES)
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--tiny", action="store_true", help="small arrays, to see that it works")
  args = flags.parse_args()
  platforms.PLAIN_FORM_ON.update(dict.fromkeys(platforms.PLAIN_FORM_ON, frozenset()))
  rows = [row for case in CASES[args.kernel](args.dtype, args.tiny) for row in measured(case, args)]
  print_table(rows)
  about = harness.about(device=jax.devices()[0].device_kind, options=vars(args) | {"out": None})
  harness.write(args.out, {"about": about, "rows": rows})


def arrays(dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def attention_cases(dtype: str, tiny: bool) -> list[Case]:
  shapes = [(TOKENS // length, length, HEADS, HEAD_WIDTH) for length in LENGTHS]
  shapes = [(2, 16, 2, 8)] if tiny else [*shapes, (IMAGES, 256, 1, 256)]
  return [attention_case(dtype, *shape) for shape in shapes]


def attention_case(dtype: str, batch: int, length: int, heads: int, width: int) -> Case:
  platform = placement.platform_at_hand()
  fused = FUSED.get(platform, ())
  reasons = {name: attention.refusal(name, platform, dtype, width) for name in fused}
  refused = {name: reason for name, reason in reasons.items() if reason}
  forms = {
    name: lambda q, k, v, name=name: attention.attend(q, k, v, heads, name)
    for name in ("xla", *fused)
    if name not in refused
  }
  shape = (batch, length, heads * width)
  return Case(f"{batch}x{length}, {heads} x {width}", forms, arrays(dtype, *[shape] * 3), refused)


def group_norm_cases(dtype: str, tiny: bool) -> list[Case]:
  shapes = [(2, 4, 32)] if tiny else [(IMAGES, 32, 128), (IMAGES, 16, 256), (IMAGES, 8, 512)]
  forms = {"plain": group_norm.plain_group_norm, "faster": group_norm.group_norm}

  def whole(form: Callable) -> Callable:
    return lambda x, scale, bias, *vectors: form(
      x, scale, bias, 32, 1e-6, group_norm.Modulation(*vectors), True
    )

  return [
    Case(
      f"{batch}x{side}x{side}x{channels}",
      {name: whole(form) for name, form in forms.items()},
      arrays(dtype, (batch, side, side, channels))
      + arrays("float32", (channels,), (channels,), (batch, channels), (batch, channels)),
      {},
    )
    for batch, side, channels in shapes
  ]


def upsampled_conv_cases(dtype: str, tiny: bool) -> list[Case]:
  shapes = [(2, 4, 8)] if tiny else [(IMAGES, side, 256) for side in (4, 8, 16)]
  forms = {
    "plain": upsampled_conv.plain_upsampled_conv,
    "faster": upsampled_conv.upsampled_conv,
  }
  return [
    Case(
      f"{batch}x{side}x{side}x{channels} to {2 * side}x{2 * side}",
      dict(forms),
      arrays(dtype, (batch, side, side, channels), (3, 3, channels, channels)),
      {},
    )
    for batch, side, channels in shapes
  ]


def pointwise_cases(dtype: str, tiny: bool) -> list[Case]:
  shapes = [((2, 4, 4, 8), 8)] if tiny else [((IMAGES, 16, 16, 256), 256), ((32, 256, 1152), 4608)]
  forms = {"plain": pointwise.plain_pointwise, "faster": pointwise.pointwise}
  return [
    Case(f"{'x'.join(map(str, x))} to {width}", dict(forms), arrays(dtype, x, (x[-1], width)), {})
    for x, width in shapes
  ]


CASES: dict[str, Callable[[str, bool], list[Case]]] = {
  "attention": attention_cases,
  "group_norm": group_norm_cases,
  "upsampled_conv": upsampled_conv_cases,
  "pointwise": pointwise_cases,
}


def measured(case: Case, args: Any) -> list[dict[str, Any]]:
  """Each form's seconds; why it has none, where it has none."""
  ready, failed = {}, dict(case.refused)
  for name, form in case.forms.items():
    try:
      ready[name] = prepared(form, case.arrays)
    except Exception as error:  # out of memory, or a kernel that refuses the shape
      failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
  seconds: dict[str, list[float]] = {name: [] for name in ready}
  for number in range(args.rounds):
    for name in list(ready)[:: 1 if number % 2 else -1]:
      seconds[name].append(timed(ready[name], case.arrays, args.repeats))
  print(f"  {case.title}: {', '.join(ready)}", file=sys.stderr, flush=True)
  return [row_of(case.title, name, seconds) for name in ready] + [
    {"case": case.title, "form": name, "failed": reason} for name, reason in failed.items()
  ]


def prepared(form: Callable, inputs: list[jax.Array]) -> Callable:
  """Value and gradient, compiled and run once."""

  def loss(*given: jax.Array) -> jax.Array:
    return jnp.sin(form(*given).astype(jnp.float32)).sum()

  both = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(inputs)))))
  jax.block_until_ready(both(*inputs))
  return both


def timed(function: Callable, inputs: list[jax.Array], repeats: int) -> float:
  begun = time.perf_counter()
  for _ in range(repeats):
    made = function(*inputs)
  jax.block_until_ready(made)
  return (time.perf_counter() - begun) / repeats


def row_of(title: str, name: str, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
  """The seconds of a form, and how many times as fast as the first one it is."""
  first = next(iter(seconds.values()))
  speedups = [a / b for a, b in zip(first, seconds[name], strict=True)]
  return {"case": title, "form": name, "seconds": harness.spread(seconds[name]),
          "speedup": harness.spread(speedups)}  # fmt: skip


def print_table(rows: list[dict[str, Any]]) -> None:
  print("\n| shape | form | ms | range | times as fast as the first | range |")
  print("|---|---|---|---|---|---|")
  for row in rows:
    if "failed" in row:
      print(f"| {row['case']} | {row['form']} | {row['failed']} | | | |")
      continue
    ms, times = {k: 1e3 * s for k, s in row["seconds"].items()}, row["speedup"]
    print(
      f"| {row['case']} | {row['form']} | {ms['median']:.4g} | {ms['min']:.4g} to {ms['max']:.4g} "
      f"| {times['median']:.2f} | {times['min']:.2f} to {times['max']:.2f} |"
    )


if __name__ == "__main__":
  main()
