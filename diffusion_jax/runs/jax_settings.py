"""Settings of JAX that programs and library calls run with, whatever a user has set."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

AS_WRITTEN = {
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_numpy_rank_promotion": "allow",
}
"""Settings of JAX required by the programs; the environment cannot change them."""

IN_THREAD = {
  "jax_enable_x64": jax.enable_x64,
  "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
  "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}
"""JAX's context managers of these settings, which act on their own thread only."""

_lock, _inside = threading.Lock(), 0
_outside: dict[str, Any] = {}


def hold_jax_as_written() -> None:
  """Set the required settings for all threads of the process."""
  for name, value in AS_WRITTEN.items():
    jax.config.update(name, value)


@contextlib.contextmanager
def jax_as_written() -> Iterator[None]:
  """Hold JAX at these settings in all threads; afterwards they are as the user set them.

  Calls may be nested, and may overlap in several threads.
  """
  _enter()
  try:
    with contextlib.ExitStack() as stack:
      for name, value in AS_WRITTEN.items():
        if getattr(jax.config, name) != value:  # a context manager of the user's
          stack.enter_context(IN_THREAD[name](value))
      yield
  finally:
    _leave()


def _enter() -> None:
  global _inside
  with _lock:
    if not _inside:
      _outside.update(_of_all_threads())
      hold_jax_as_written()
    _inside += 1


def _leave() -> None:
  global _inside
  with _lock:
    _inside -= 1
    if not _inside:
      for name, value in _outside.items():
        jax.config.update(name, value)


def _of_all_threads() -> dict[str, Any]:
  """Return the settings of a new thread: a context manager hides them in its own thread."""
  with ThreadPoolExecutor(1) as new_thread:
    return new_thread.submit(lambda: {n: getattr(jax.config, n) for n in AS_WRITTEN}).result()
