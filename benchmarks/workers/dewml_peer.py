"""The peer dewml (https://dewml.dev): its objective and compiled step, networks of its own layers.

dewml has neither DDPM's U-Net nor DiT as published: its `Unet` has other blocks and no dropout, its
`UNet2DCondition` always attends to a text, and its `SimpleDiT` rotates tokens and embeds the time
in a wider layer. So its layers are wired here as the papers have them, with the same parameters as
ours. Images, noise, loss, gradient, optimizer, average and compilation are all its own.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import protocol

try:
  from dew.training.runtime import prepare_process
except ModuleNotFoundError:
  sys.exit("no dewml here: name an interpreter that has it, --python.dewml=PYTHON")

prepare_process(multi_host=False)  # before JAX is used, as dewml's recipes do

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from dew import Field, InputSpec, Trainer  # noqa: E402
from dew.cache import default_compilation_cache_dir, enable_compilation_cache  # noqa: E402
from dew.diffusion import EpsilonPredictionTransform, LinearNoiseScheduler, Process  # noqa: E402
from dew.diffusion.presets import Flow  # noqa: E402
from dew.inputs import Condition  # noqa: E402
from dew.inputs.encoders import ConditionEncoder  # noqa: E402
from dew.nn.attention import NormalAttention  # noqa: E402
from dew.nn.blocks import ResidualBlock, sinusoidal_time, torch_nearest_resize  # noqa: E402
from dew.nn.conv import Conv  # noqa: E402
from dew.nn.dit import ModulatedBlock, PatchSequenceEmbed, PatchSequenceOutput, remat_block  # noqa: E402
from dew.objectives.diffusion import DiffusionObjective  # noqa: E402
from flax import linen as nn  # noqa: E402

TIME_FREQUENCIES = 256


def main() -> None:
  options = protocol.options()
  enable_compilation_cache(default_compilation_cache_dir())
  trainer = Trainer(objective(options), optimizer(options), key=jax.random.key(0))
  state, _, _ = trainer.place()
  batch = jax.device_put(images(options))
  begun = time.perf_counter()
  step = trainer.compile(state, batch)
  seconds = time.perf_counter() - begun

  def repeat(times: int) -> None:
    nonlocal state
    for _ in range(times):
      state, *scalars = step(state, batch)
    jax.block_until_ready((state, scalars))

  repeat(2)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
  ready = {"device": jax.devices()[0].device_kind, "compile_sec": seconds, "parameters": parameters}
  protocol.serve(ready, repeat, peak)


def objective(options: Mapping[str, Any]) -> DiffusionObjective:
  """Noise prediction over DDPM's table, or velocities of straight paths with labels dropped."""
  dtype = jnp.dtype(options["dtype"])
  sample, classes = Field("image", tuple(options["image"])), options["classes"]
  if "channels" in options["shape"]:
    schedule = LinearNoiseScheduler(1000, p2_loss_weight_gamma=0)  # all weights are 1
    process = Process(schedule, EpsilonPredictionTransform())
    net, inputs = UNet(options["shape"]["channels"], dtype), InputSpec(sample)
  else:
    process = Flow(density="uniform")
    net = DiT(classes + 1, dtype=dtype, remat=options["remat"], **options["shape"])
    labels = Condition(Labels(), field="label", unconditional=float(classes))
    inputs = InputSpec(sample, {"label": labels})
  return DiffusionObjective(net, process, inputs, ema_decay=0.9999, unconditional_prob=0.1)


def optimizer(options: Mapping[str, Any]) -> optax.GradientTransformation:
  adam = optax.adam(options["learning_rate"])
  clip = options["clip_norm"]
  return adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)


def images(options: Mapping[str, Any]) -> dict[str, np.ndarray]:
  size, rng = options["batch_size"], np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (size, *options["image"]), np.uint8)}
  if options["classes"]:
    batch["label"] = (np.arange(size) % options["classes"]).astype(np.int32)
  return batch


class Labels(ConditionEncoder):
  """The labels as they are; the network embeds them."""

  params: Mapping[str, Any] = {}
  reads_captions = False
  keyword = "label"

  @classmethod
  def from_pretrained(cls, checkpoint: str, *, params: Any = None) -> "Labels":
    return cls()

  def tokenize(self, texts: Any) -> Any:
    return np.asarray(texts, np.int32)

  def encode(self, params: Any, tokens: Any) -> Any:
    return jnp.asarray(tokens)

  def to_json(self) -> dict[str, Any]:
    return {"checkpoint": ""}


class UNet(nn.Module):
  """DDPM's network for 32x32 images, of dewml's blocks."""

  channels: int
  dtype: Any
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  num_blocks: int = 2
  attention_at: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array, train: bool = False) -> jax.Array:
    embedding = self._embed(time)
    h = self._conv(self.channels, "conv_in")(x)
    skips, last = [h], len(self.multipliers) - 1
    for i, factor in enumerate(self.multipliers):
      for _ in range(self.num_blocks):
        h = self._block(h, embedding, factor, train)
        skips.append(h)
      if i < last:
        halve = self._conv(h.shape[-1], f"down{i}", strides=(2, 2), padding=((0, 1), (0, 1)))
        h = halve(h)
        skips.append(h)
    h = self._block(h, embedding, self.multipliers[-1], train, attend=False)
    h = self._attend(h)
    h = self._block(h, embedding, self.multipliers[-1], train, attend=False)
    for i, factor in reversed(list(enumerate(self.multipliers))):
      for _ in range(self.num_blocks + 1):
        joined = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self._block(joined, embedding, factor, train)
      if i:
        doubled = torch_nearest_resize(h, 2 * h.shape[1], 2 * h.shape[2])
        h = self._conv(h.shape[-1], f"up{i}")(doubled)
    h = nn.GroupNorm(32, epsilon=1e-6, dtype=self.dtype)(h)
    return self._conv(x.shape[-1], "conv_out")(nn.silu(h))

  def _conv(self, features: int, name: str, **more: Any) -> Conv:
    return Conv(features, (3, 3), dtype=self.dtype, name=name, **more)

  def _embed(self, time: jax.Array) -> jax.Array:
    h = sinusoidal_time(time, self.channels, dtype=jnp.float32, shift=1, cosine_first=False)
    h = nn.silu(nn.Dense(4 * self.channels)(h))
    return nn.silu(nn.Dense(4 * self.channels)(h))

  def _block(self, h, embedding, factor, train, attend: bool = True) -> jax.Array:
    width = factor * self.channels
    block = ResidualBlock(width, norm_groups=32, norm_epsilon=1e-6, dropout=0.1, dtype=self.dtype)
    h = block(h, embedding, train=train)
    return self._attend(h) if attend and h.shape[1] == self.attention_at else h

  def _attend(self, h: jax.Array) -> jax.Array:
    normed = nn.GroupNorm(32, epsilon=1e-6, dtype=self.dtype)(h)
    width = h.shape[-1]
    return h + NormalAttention(width, heads=1, dim_head=width, dtype=self.dtype)(normed)


class DiT(nn.Module):
  """The transformer of Peebles and Xie, of dewml's blocks."""

  num_labels: int
  depth: int
  hidden: int
  heads: int
  patch: int
  dtype: Any
  remat: bool

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array, label: jax.Array, train: bool = False
  ) -> jax.Array:
    h = sinusoidal_time(time / 1000, TIME_FREQUENCIES, dtype=jnp.float32)  # from 0 to 1
    h = nn.Dense(self.hidden)(nn.silu(nn.Dense(self.hidden)(h)))
    condition = h + nn.Embed(self.num_labels, self.hidden)(label)
    tokens, order = PatchSequenceEmbed(self.patch, self.hidden, dtype=self.dtype)(x)
    block = remat_block(ModulatedBlock, "dots" if self.remat else False)
    for i in range(self.depth):
      made = block(self.hidden, self.heads, dtype=self.dtype, norm_epsilon=1e-6, name=f"block{i}")
      tokens = made(tokens, condition, None, train)
    head = PatchSequenceOutput(
      self.patch, x.shape[-1], modulated=True, norm_epsilon=1e-6, dtype=self.dtype
    )
    return head(tokens, order, *x.shape[1:3], condition)


def peak() -> dict[str, Any]:
  stats = jax.devices()[0].memory_stats() or {}
  return {"peak_bytes": stats.get("peak_bytes_in_use", protocol.resident_bytes())}


if __name__ == "__main__":
  main()
