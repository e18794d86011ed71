"""What is set for one platform only, each with its reason; benchmarks/README.md has its gain.

Nothing is set for GPUs and TPUs: no setting has been measured there.
"""

import ctypes
import functools

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


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory(platform: str) -> None:
  """On a CPU, lets the C library keep what was freed for the next step; elsewhere does nothing.

  XLA asks anew for a step's temporaries each time. By default glibc maps memory for a block of that
  size, the kernel clears every page of it, and all of it goes back after the step. To be called
  once everything is compiled: what the compiler frees should go back. Other C libraries have no
  such setting and are left alone.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform == "cpu" else None
  if mallopt is not None:
    for name, value in ((M_MMAP_MAX, 0), (M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, -1)):
      mallopt(name, value)
