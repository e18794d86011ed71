"""The hooks of the documentation site, as modules."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def hook(name: str):
  """Return a module of docs/hooks/."""
  path = ROOT / "docs" / "hooks" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", path)
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
