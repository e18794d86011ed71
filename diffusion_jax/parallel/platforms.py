"""Settings for one platform only, each with its reason; benchmarks/README.md has the gains.

Nothing is set for GPUs and TPUs, because no setting has been measured there; `benchmarks/gpu.py`
and `benchmarks/tpu.py` measure the kernels' forms.
"""

import ctypes
import functools
from typing import Any

import jax

CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""YNNPACK for reductions only: XLA's own kernels are faster at a kernel's gradient."""


CPU_MEMORY_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""The default order of a CPU program gathers all split parameters first, and keeps them."""


PLAIN_FORM_ON: dict[str, frozenset[str]] = {
  "group_norm": frozenset(),  # cpu: the step 1.10 times as fast with the faster form
  "upsampled_conv": frozenset(),  # cpu: 16x16x256 to 32x32 in 90 ms instead of 212
  "pointwise": frozenset(),  # cpu: the step 1.04 times as fast with the faster form
}
"""Kernel -> platforms (cpu, gpu, tpu) where its faster form loses, each with the figure.

The kernels of `diffusion_jax.kernels` take the plain form there. gpu and tpu are not measured yet.
"""


def compiler_options(platform: str) -> dict[str, str]:
  """Return XLA's options for a training step on `platform`; {} if this jaxlib lacks them."""
  return _known(CPU_OPTIONS) if platform == "cpu" else {}


def memory_options(platform: str) -> dict[str, str]:
  """Return XLA's options for a program of split parameters; {} if this jaxlib lacks them."""
  return _known(CPU_MEMORY_OPTIONS) if platform == "cpu" else {}


def _known(options: dict[str, str]) -> dict[str, str]:
  return options if _are_known(tuple(options.items())) else {}


@functools.cache
def _are_known(options: tuple[tuple[str, str], ...]) -> bool:
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    try:
      jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
      return False
  return True


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPARE_BYTES = 2**26


def run_in_calling_thread() -> None:
  """Make JAX run CPU programs in the calling thread instead of a thread of its own.

  The calling thread then allocates a step's temporaries, and glibc can only retain memory that the
  main thread frees. Call it before JAX looks for devices; it does not affect other devices.
  """
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory(platform: str, num_bytes: int) -> None:
  """Keep freed memory for the next step, on a CPU with glibc; otherwise do nothing.

  XLA allocates a step's temporaries anew in each step. By default glibc maps a new block of that
  size, the kernel clears every page, and the block is returned after the step. Call it when
  everything is compiled, so that the compiler's memory is still returned.

  Args:
    platform: platform of the devices, e.g. "cpu".
    num_bytes: size of the temporaries, bytes. One block of this size and a small one for minor
      allocations are reserved, so that these do not fragment the large block between two steps.
      No page is used before something is written to it.
  """
  library = _glibc()
  if library is None or platform != "cpu":
    return
  for name, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
    library.mallopt(name, value)
  malloc, free = library.malloc, library.free
  malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  free.restype, free.argtypes = None, [ctypes.c_void_p]
  large, _, small = (malloc(num_bytes + 2 * SPARE_BYTES), malloc(SPARE_BYTES), malloc(SPARE_BYTES))
  free(large)  # the block between the two stays allocated, so that they do not merge
  free(small)


def _glibc() -> Any:
  """Return the C library, or None if it has no mallopt, which only glibc has."""
  library = ctypes.CDLL(None)
  return library if hasattr(library, "mallopt") else None
