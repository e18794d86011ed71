"""The import rule: imports go down only, and rooms of one layer never import each other."""

import ast
from pathlib import Path

import pytest

import diffusion_jax

PACKAGE = Path(diffusion_jax.__file__).parent

LAYERS = [
  {
    "types",
    "config",
    "distributions",
    "randomness",
    "levels",
    "checksum",
    "torch_file",
    "watchdog",
    "streams",
    "ema_profiles",
    "flags",
    "paths",
    "storage",
    "bars",
    "npz",
    "kernels",
    "platforms",
    "program_cache",
  },
  {
    "augmentation",
    "processes",
    "models",
    "data",
    "sharding",
    "distributed",
    "log",
    "meter",
    "leaves",
    "step_folders",
  },
  {
    "losses",
    "samplers",
    "likelihood",
    "metrics",
    "extractors",
    "report",
    "state",
    "provenance",
    "signals",
  },
  {"generative", "step", "checkpoint"},
  {"experiment"},
  {"runs", "sampling", "weights"},
  {"job", "evaluation"},
  {"planning", "auditing"},
  {"previews", "snapshots", "compilation", "profiling", "outputs"},
  {"saving"},
  {
    "train",
    "sample",
    "evaluate",
    "prepare",
    "stats",
    "features",
    "plan",
    "audit",
    "edit",
    "encode",
  },
]
# Within layer 0, these are the ground that the others stand on.
GROUND = {"types", "paths", "config"}
LAYER_OF = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def imported_rooms(path: Path) -> set[str]:
  own = {n.split(".")[1] for n in imported_modules(path) if n.startswith("diffusion_jax.")}
  return own - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
  room = room_of(path)
  for other in imported_rooms(path) - {room} - GROUND:
    assert LAYER_OF[other] < LAYER_OF[room], f"{room} must not import {other}"


def test_the_rule_catches_an_import_upwards(tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text("from diffusion_jax.train import main\nimport diffusion_jax.step\n")
  assert imported_rooms(file) == {"train", "step"}
  assert LAYER_OF["train"] > LAYER_OF["step"] > LAYER_OF["models"]


@pytest.mark.parametrize(
  ("library", "rooms"),
  [
    ("flax", {"models"}),
    ("orbax", {"checkpoint"}),
    ("ml_collections", {"config"}),
    ("optax", {"state", "step", "extractors"}),
    ("matplotlib", {"report"}),
    ("jinja2", {"report"}),
    ("tensorflow_datasets", {"data", "prepare"}),
    ("array_record", {"data"}),
    ("torch", set()),
    ("tensorflow", set()),
  ],
)
def test_a_library_is_known_to_its_own_rooms_only(library, rooms):
  users = {
    room_of(p) for p in FILES if any(n.split(".")[0] == library for n in imported_modules(p))
  }
  assert users == rooms


def test_data_never_touches_a_device():
  files = [p for p in FILES if room_of(p) == "data"]
  assert files
  assert not any(n.split(".")[0] == "jax" for p in files for n in imported_modules(p))


def test_no_deprecated_parallelism():
  for path in FILES:
    for name in ("pmap", "PositionalSharding", "shard_map"):
      assert name not in path.read_text(), path


def test_every_file_has_a_docstring_and_is_short():
  for path in FILES:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), path
    limit = 200 if LAYER_OF[room_of(path)] == len(LAYERS) - 1 else 400
    assert len(text.splitlines()) <= limit, path
