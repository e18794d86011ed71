"""What is set for one platform only, each with its reason; benchmarks/README.md has its gain.

Nothing is set for GPUs and TPUs: no setting has been measured there.
"""

import ctypes
import functools
from typing import Any

import jax

CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
"""YNNPACK for reductions only. XLA's own kernels are faster at a convolution's kernel gradient."""


def compiler_options(platform: str) -> dict[str, str]:
  """XLA's options for a training step on `platform`; none where this jaxlib does not know them."""
  return CPU_OPTIONS if platform == "cpu" and _are_known() else {}


@functools.cache
def _are_known() -> bool:
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    try:
      jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
      return False
  return True


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPARE_BYTES = 2**26


def run_in_calling_thread() -> None:
  """Has JAX run programs for a CPU in the thread that calls them, not in one of its own.

  That thread asks for a step's temporaries, and glibc can keep what the main thread frees only. To
  be called before JAX looks for devices; other devices do not mind.
  """
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory(platform: str, num_bytes: int) -> None:
  """On a CPU, lets the C library keep what was freed for the next step; elsewhere does nothing.

  XLA asks anew for a step's temporaries each time. By default glibc maps memory for a block of that
  size, the kernel clears every page of it, and all of it goes back after the step. To be called
  once everything is compiled: what the compiler frees should go back. Other C libraries have no
  such setting and are left alone.

  Args:
    platform: of the devices.
    num_bytes: of the temporaries. Room for them is set aside, and a smaller room, which malloc
      prefers for whatever is small: that would otherwise take a piece of the large room between two
      steps, and the next step would need a new one. No page is used before something stands in it.
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
  free(large)  # what lies between the two stays taken, so that they do not become one
  free(small)


def _glibc() -> Any:
  """The C library; None where it has no mallopt, as only glibc does."""
  library = ctypes.CDLL(None)
  return library if hasattr(library, "mallopt") else None
