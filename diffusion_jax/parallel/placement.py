"""The devices that a program is traced for, and which form of a kernel is used there."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
from jax.sharding import Mesh

from diffusion_jax.parallel import platforms

NVIDIA_AND_AMD = ("cuda", "rocm")
"""JAX's names of one maker's GPUs; its devices say gpu."""

_mesh: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def placed_on(mesh: Mesh) -> Iterator[None]:
  """Trace everything in the block for the devices of a mesh, over which examples are split."""
  token = _mesh.set(mesh)
  try:
    yield
  finally:
    _mesh.reset(token)


def placed_mesh() -> Mesh | None:
  """Return the mesh that the program is traced for; None if nothing says so."""
  return _mesh.get()


def platform_at_hand() -> str:
  """Return the platform of that mesh, otherwise of this machine's devices: cpu, gpu or tpu."""
  mesh = _mesh.get()
  name = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  return "gpu" if name in NVIDIA_AND_AMD else name


def takes_plain_form(kernel: str) -> bool:
  """Return True if `parallel.platforms` switches a kernel's faster form off there."""
  return platform_at_hand() in platforms.PLAIN_FORM_ON[kernel]
