"""The package's configs, found by name, and its version, without importing JAX."""

import ast
import importlib.metadata
from pathlib import Path

from diffusion_jax import __version__

PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
  """Return the folder of the shipped configs.

  An installed package holds them itself; in a checkout they lie beside the package, at its top.
  """
  installed = PACKAGE / "configs"
  return installed if any(installed.glob("*.py")) else PACKAGE.parent / "configs"


def configs() -> dict[str, Path]:
  """Return name -> file of every shipped config, sorted."""
  return {path.stem: path for path in sorted(folder().glob("*.py")) if path.stem != "__init__"}


def docstring(path: Path) -> str:
  """Return a file's docstring without running the file, "" if it has none."""
  return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def first_line(path: Path) -> str:
  """Return the first line of a file's docstring without running the file."""
  return docstring(path).partition("\n")[0]


def versions() -> str:
  """Return the versions of the project and of the JAX that is installed."""
  return f"diffusion_jax {__version__}, jax {importlib.metadata.version('jax')}"
