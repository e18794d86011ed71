"""Random streams: every draw has a name; a draw for one example depends on no other.

Nothing stores a key. Keys form a tree with two kinds of steps, never both from the same key:
`stream` takes a name of `Stream`, `numbered` a number (a training step, an example's global index,
a row of a sampler). An example's noise is therefore the same in any batch, on any number of devices
and hosts.

  key(seed) -> INIT -> NETWORK, SCHEDULE, LOSS
            -> TRAINING -> step -> EXAMPLES -> index -> the example's streams
                                -> DROPOUT, SHARED_TIMES, HISTORY
            -> HELD_OUT, in the place of a step
            -> SAMPLES -> index; LIKELIHOOD -> repeat -> index; LOSS_BY_LOG_SNR -> index

`jax.random.split(key)[i]` is `fold_in(key, i)` bit for bit, so a key that is split must not be
folded with numbers too; streams are numbered from 2^30 to avoid both.
"""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from diffusion_jax.core.shapes import describe_value
from diffusion_jax.types import Key, Keys

FIRST = 2**30

DRAWS = 2
"""Version of the streams, stored in each checkpoint; training only continues with its own.

Checkpoints before version 2 do not have it.
"""


class Stream(enum.IntEnum):
  """Names of all random streams, grouped by the key that they derive from."""

  # of key(seed)
  INIT = FIRST
  TRAINING = FIRST + 1
  HELD_OUT = FIRST + 2
  SAMPLES = FIRST + 3
  LIKELIHOOD = FIRST + 4
  LOSS_BY_LOG_SNR = FIRST + 5
  # of INIT
  NETWORK = FIRST + 16
  SCHEDULE = FIRST + 17
  LOSS = FIRST + 18
  # of a step
  EXAMPLES = FIRST + 32
  DROPOUT = FIRST + 33
  SHARED_TIMES = FIRST + 34
  HISTORY = FIRST + 35
  # of an example
  TIME = FIRST + 64
  NOISE = FIRST + 65
  CONDITION_DROPOUT = FIRST + 66
  AUGMENTATION = FIRST + 67
  POSTERIOR = FIRST + 68
  RECONSTRUCTION = FIRST + 69
  DEQUANTIZATION = FIRST + 70
  PROBES = FIRST + 71
  TERMS = FIRST + 72
  IMPORTANCE = FIRST + 73
  START = FIRST + 74
  STEPS = FIRST + 75
  CHURN = FIRST + 76
  INPAINTING = FIRST + 77


def stream(key: Key | Keys, name: Stream) -> Key | Keys:
  """Return the key of a stream, from one key or from each of [B] keys."""
  return numbered(key, int(name))


def numbered(key: Key | Keys, index: int | Integer[Array, ""]) -> Key | Keys:
  """Return the `index`-th key, below 2^30, from one key or from each of [B] keys.

  Raises:
    ValueError: the key is none that `jax.random.key` makes.
  """
  check_typed(key)
  if key.ndim == 0:
    return jax.random.fold_in(key, index)
  return jax.vmap(lambda k: jax.random.fold_in(k, index))(key)


def check_typed(key: Any, name: str = "key") -> None:
  """Raise a ValueError for anything but keys of `jax.random.key`; says what to write instead."""
  if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return
  hint = "jax.random.key(0), or jax.random.split(jax.random.key(0), 8) for 8 examples"
  given = repr(key) if isinstance(key, int | str | None) else describe_value(key)
  old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32
  given += ", an old-style key" if old else ""
  raise ValueError(f"{name}={given}: it must be made by {hint}")


def check_one_per_example(keys: Any, num: int, name: str = "keys") -> None:
  """Raise a ValueError unless there is one key per example.

  Args:
    keys: what was given as keys.
    num: number of examples.
    name: name of the argument, for the message.

  Raises:
    ValueError: another number of keys, or no keys of `jax.random.key`.
  """
  check_typed(keys, name)
  if keys.shape != (num,):
    given = "one key" if not keys.shape else f"keys of shape {keys.shape}"
    raise ValueError(
      f"{name}: {given} for {num} examples; give one per example, e.g. jax.random.split(key, {num})"
    )


def sample_keys(seed: int | Integer[Array, ""], index: Integer[Array | np.ndarray, "N"]) -> Keys:
  """Return the keys of samples: image i depends on the seed and its number alone."""
  return example_keys(stream(jax.random.key(seed), Stream.SAMPLES), index)


def example_keys(key: Key, index: Integer[Array | np.ndarray, "B"]) -> Keys:
  """Return one key per example [B], from its global index."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
  """Return standard normal noise of `shape` per example."""
  return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(keys)


def uniform(keys: Keys) -> Float[Array, "B"]:
  """Return one number in [0, 1) per example."""
  return jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)
