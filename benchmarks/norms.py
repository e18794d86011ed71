"""A training step whose norms count from an anchor, and without: python benchmarks/norms.py

Group and layer normalisation take a group's mean and variance in one pass, counted from one of its
values; without that anchor the variance is lost to rounding where the mean is large. The contender
without it is kept here only. Both steps are those that the trainer compiles, in one process, turn
by turn; seconds are the least of all rounds, of the wall and of the processor, since other programs
may be running.

  python benchmarks/norms.py --config=configs/dit_digits.py --image=8,8,1 --classes=10
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

HERE = Path(__file__).parent
sys.path.append(str(HERE / "workers"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import ours  # noqa: E402

from diffusion_jax.core import config  # noqa: E402
from diffusion_jax.models import dit, layers  # noqa: E402
from diffusion_jax.parallel import platforms, sharding  # noqa: E402
from diffusion_jax.planning import compiled  # noqa: E402
from diffusion_jax.runs import command_line  # noqa: E402
from diffusion_jax.runs.stored import load_experiment  # noqa: E402
from diffusion_jax.training.step import hyperparameters, jit_train_step, make_init, make_train_step  # noqa: E402
from diffusion_jax.types import ImageSpec  # noqa: E402


def group_norm(x, scale, bias, num_groups, epsilon, modulation=None, swish=False):
  """`kernels.group_norm` without an anchor: the mean square less the squared mean."""
  high = jnp.promote_types(x.dtype, jnp.float32)
  size, values = x.shape[-1] // num_groups, x.astype(high)

  def of_group(channels):
    return jnp.repeat(channels.reshape(len(x), num_groups, size).mean(-1), size, axis=-1)

  mean, square = of_group(values.mean((1, 2))), of_group(jnp.square(values).mean((1, 2)))
  variance = jnp.maximum(square - jnp.square(mean), 0.0)
  factor = jax.lax.rsqrt(variance + epsilon) * scale
  offset = bias - mean * factor
  if modulation is not None:
    more = 1 + modulation.scale.astype(high)
    factor, offset = factor * more, offset * more + modulation.shift.astype(high)

  @jax.checkpoint
  def apply(x, factor, offset):
    y = x.astype(high) * factor[:, None, None] + offset[:, None, None]
    return (jax.nn.swish(y) if swish else y).astype(x.dtype)

  return apply(x, factor, offset)


def layer_norm(x):
  """`dit._layer_norm` without an anchor."""
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
  return (x - mean) * jax.lax.rsqrt(variance + dit.EPSILON)


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("--config", default=str(HERE.parent / "configs" / "ddpm_cifar.py"))
  flags.add_argument("--image", default="32,32,3", help="height, width, channels")
  flags.add_argument("--classes", type=int, default=0)
  flags.add_argument("--batch_size", type=int, default=16)
  flags.add_argument("--rounds", type=int, default=10)
  args = flags.parse_args()
  platforms.run_in_calling_thread()
  command_line.enable_compilation_cache()
  anchored = Step(args)
  without = (mock.patch.object(layers, "group_norm", group_norm),
             mock.patch.object(dit, "_layer_norm", layer_norm))  # fmt: skip
  with without[0], without[1]:
    plain = Step(args)
  platforms.keep_freed_memory(jax.default_backend(), anchored.temporaries)
  contenders = {"with an anchor": anchored, "without": plain}
  times = {name: [] for name in contenders}
  for number in range(args.rounds):
    for name in list(contenders)[:: 1 if number % 2 else -1]:
      times[name].append(contenders[name].seconds())
  report(times, contenders)


class Step:
  """A compiled training step with its state, run once."""

  def __init__(self, args: argparse.Namespace):
    overrides = [config.parse_override(f"--config.training.batch_size={args.batch_size}")]
    experiment = load_experiment(args.config, overrides)
    spec = ImageSpec(*map(int, args.image.split(",")), 256, args.classes)
    program = compiled.build_program(experiment, spec, jax.devices()[:1])
    parts = (program.experiment.optimizer, program.experiment.ema, program.experiment.training)
    optimizer, ema, training = parts
    init = make_init(program.generative, optimizer, training, ema.names())
    self.state = jax.jit(init)(np.uint32(0))
    self.batch = sharding.put_batch(ours.images(args.batch_size, spec), program.mesh)
    self.numbers = hyperparameters(program.generative, optimizer, ema, training)
    step = make_train_step(program.generative, optimizer, ema, training, program.mesh)
    lowered = jit_train_step(step, self.state, program.mesh).lower
    self.run = lowered(self.state, self.batch, self.numbers).compile()
    self.temporaries = compiled.memory_of(self.run).temporaries
    self.seconds()

  def seconds(self) -> tuple[float, float]:
    """One step's, of the wall and of the processor."""
    start = time.perf_counter(), time.process_time()
    self.state, scalars = self.run(self.state, self.batch, self.numbers)
    jax.block_until_ready((self.state, scalars))
    return time.perf_counter() - start[0], time.process_time() - start[1]


def report(times: dict[str, list[tuple[float, float]]], contenders: dict[str, Step]) -> None:
  print("\n| step | wall, s | processor, s | temporaries, GB |\n|---|---|---|---|")
  for name, rounds in times.items():
    wall, processor = (min(column) for column in zip(*rounds, strict=True))
    print(f"| {name} | {wall:.4g} | {processor:.4g} | {contenders[name].temporaries / 1e9:.3f} |")
  for kind, number in (("wall", 0), ("processor", 1)):
    pairs = zip(*times.values(), strict=True)
    ratios = [first[number] / second[number] for first, second in pairs]
    low, high = min(ratios), max(ratios)
    least = functools.reduce(
      lambda a, b: a / b, (min(r[number] for r in rounds) for rounds in times.values())
    )
    print(
      f"{kind}: with over without {least:.3f} of the least, {statistics.median(ratios):.3f} in the "
      f"median of pairs ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
  main()
