"""Replace entries of JAX's compilation cache that cannot be read."""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache


def replace_damaged_entries() -> None:
  """Make JAX rewrite an entry of its compilation cache that cannot be read.

  JAX writes these files in place, so a killed process can leave a truncated file. JAX never
  overwrites an existing file, so without this it would compile that program again at every start.
  """
  read = getattr(compilation_cache, "get_executable_and_time", None)
  if read is None or hasattr(read, "__wrapped__"):
    return

  @functools.wraps(read)
  def get(cache_key: str, *args: Any, **options: Any) -> Any:
    try:
      return read(cache_key, *args, **options)
    except OSError:  # a storage fault: JAX reports it and compiles
      raise
    except Exception as error:
      if _setting("jax_raise_persistent_cache_errors") or not _remove(cache_key):
        raise
      name, reason = cache_key.rpartition("-")[0], str(error).strip().partition("\n")[0][:200]
      print(f"the compiled program {name} in the cache is damaged ({reason}): it is compiled and "
            "stored again", file=sys.stderr)  # fmt: skip
      return None, None

  compilation_cache.get_executable_and_time = get


def _setting(name: str) -> Any:
  return getattr(jax.config, name)  # JAX's own types do not know its settings


def _remove(cache_key: str) -> bool:
  """Delete a cache entry; return False if that is impossible, e.g. in a read-only cache."""
  try:
    Path(_setting("jax_compilation_cache_dir"), f"{cache_key}-cache").unlink(missing_ok=True)
  except OSError:
    return False
  return True
