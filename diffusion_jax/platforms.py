"""What is set for one platform only, each with its reason; benchmarks/README.md has its gain.

Nothing is set for GPUs and TPUs: no setting has been measured there.
"""

import functools

import jax

CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "reduce"}
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
