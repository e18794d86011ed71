"""Try JAX's devices: list them, compute one convolution and one collective, print JSON.

`diffusion-jax doctor` starts this file as a program of its own: an accelerator that hangs or
crashes its process then ends the check, not the doctor. It imports nothing of this package.
"""

import json
import sys
import time


def check_devices() -> dict:
  """Return platform, kind and number of the devices, and the result of each trial."""
  import jax

  started = time.perf_counter()
  devices = jax.devices()
  return {
    "platform": devices[0].platform,
    "kind": devices[0].device_kind,
    "num": len(devices),
    "seconds": round(time.perf_counter() - started, 1),
    "convolution": outcome(convolution_error),
    "collective": outcome(collective_error),
  }


def outcome(trial) -> str:
  """Return the error of a trial in one line; empty if it is fine."""
  try:
    return trial()
  except Exception as error:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def convolution_error() -> str:
  """Return how a convolution differs from NumPy's; empty if it does not."""
  import jax
  import numpy as np

  random = np.random.default_rng(0)
  x, w = (random.normal(size=s).astype(np.float32) for s in ((1, 1, 8, 8), (1, 1, 3, 3)))
  found = np.asarray(jax.jit(lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"))(x, w))[0, 0]
  windows = np.lib.stride_tricks.sliding_window_view(x[0, 0], (3, 3))
  expected = np.einsum("ijkl,kl->ij", windows, w[0, 0])
  worst = float(np.max(np.abs(found - expected)))
  return "" if worst < 0.1 else f"its error is {worst:.3g}"  # float32 may be rounded to bfloat16


def collective_error() -> str:
  """Return how a sum over all devices differs from the right one; empty if it does not."""
  import jax
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  devices = np.array(jax.local_devices())
  mesh = Mesh(devices, ("data",))
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  values = jax.device_put(np.arange(1.0, len(devices) + 1, dtype=np.float32), split)
  total = jax.jit(lambda x: x.sum(), out_shardings=whole)(values)
  found = {float(shard.data) for shard in total.addressable_shards}
  expected = len(devices) * (len(devices) + 1) / 2
  return "" if found == {expected} else f"{sorted(found)} instead of {expected}"


if __name__ == "__main__":
  print(json.dumps(check_devices()))
  sys.exit(0)
