"""JAX's cache of compiled programs: an entry that cannot be read is replaced."""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache


def replace_damaged_entries() -> None:
  """Have JAX write a compiled program anew whose file in the cache cannot be read.

  JAX writes the files in place, so a process that is killed leaves one cut short. Left alone, it
  compiles such a program at every start, since it never writes to a file that is there.
  """
  read = getattr(compilation_cache, "get_executable_and_time", None)
  if read is None or hasattr(read, "__wrapped__"):
    return

  @functools.wraps(read)
  def get(cache_key: str, *args: Any, **options: Any) -> Any:
    try:
      return read(cache_key, *args, **options)
    except OSError:  # the storage's trouble, not the entry's: JAX says so and compiles
      raise
    except Exception as error:
      if _setting("jax_raise_persistent_cache_errors") or not _remove(cache_key):
        raise
      name, reason = cache_key.rpartition("-")[0], str(error).strip().partition("\n")[0][:200]
      print(f"the compiled program {name} in the cache is damaged ({reason}): it is compiled and "
            "stored anew", file=sys.stderr)  # fmt: skip
      return None, None

  compilation_cache.get_executable_and_time = get


def _setting(name: str) -> Any:
  return getattr(jax.config, name)  # JAX's own types do not know its settings


def _remove(cache_key: str) -> bool:
  """Deletes an entry; False where that cannot be done, as in a cache that is only read."""
  try:
    Path(_setting("jax_compilation_cache_dir"), f"{cache_key}-cache").unlink(missing_ok=True)
  except OSError:
    return False
  return True
