"""A folder that appears whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.types import UserError


def check_new(out: Path) -> None:
  """Refuse a place with a file, or a folder with something in it.

  Raises:
    UserError: there is one.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out={out} exists; choose another, or move it away")


def cannot_write(out: Path, error: OSError) -> UserError:
  """Return the error of a place that cannot be written."""
  return UserError(f"--out={out} cannot be written ({error.strerror}); choose another")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
  """Yield a temporary folder that becomes `out` if the block ends without an error.

  Raises:
    UserError: the place cannot be written.
  """
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
  except OSError as error:
    raise cannot_write(out, error) from error
  try:
    yield folder
    folder.chmod(0o777 & ~_umask())
    if out.exists():
      out.rmdir()
    folder.rename(out)
  except BaseException:
    shutil.rmtree(folder, ignore_errors=True)
    raise


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
