"""The import rule: imports go down only, and rooms of one layer never import each other."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import diffusion_jax
from diffusion_jax.__main__ import PROGRAMS

PACKAGE = Path(diffusion_jax.__file__).parent

LAYERS = [
  {"types"},
  {"core"},
  {"parallel", "processes", "metrics", "weight_files"},
  {"kernels"},
  {"models"},
  {"data", "checkpoints", "training", "losses", "samplers", "likelihood", "report"},
  {"extractors", "generative"},
  {"runs"},
  {"inference"},
  {"porting"},
  {"evaluation", "planning", "auditing", "browsing"},
  {"train_loop"},
  {*PROGRAMS},
  {"__main__"},
]
# Said alone, they do not say of what: at most one public function may have each of these names.
SAY_NOTHING = {
  "describe",
  "draw",
  "run",
  "load",
  "measure",
  "start",
  "stop",
  "write",
  "read",
  "prepare",
  "restore",
  "compare",
  "explain",
  "build",
}
LOOSE = {"__init__", "__main__", "types", *PROGRAMS}
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
  for other in imported_rooms(path) - {room}:
    assert LAYER_OF[other] < LAYER_OF[room], f"{room} must not import {other}"


def test_only_the_programs_and_the_types_are_loose_files():
  assert {path.stem for path in PACKAGE.glob("*.py")} <= LOOSE


def test_each_file_has_a_name_of_its_own():
  """Two rooms may both have a base.py; no other name is given twice, nor a program's to a file."""
  names = Counter(path.stem for path in FILES if path.name not in ("__init__.py", "base.py"))
  assert [name for name, number in names.items() if number > 1] == []


def test_each_file_of_the_tests_has_a_name_of_its_own():
  """pytest imports them by their names alone."""
  names = Counter(path.name for path in Path(__file__).parent.rglob("*.py"))
  assert [name for name, number in names.items() if number > 1 and name != "conftest.py"] == []


def functions_of(path: Path) -> set[str]:
  """The public functions of a file; a program's are its own, but for words that say nothing."""
  nodes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
  public = {n.name for n in nodes if not n.name.startswith("_")}
  return public & SAY_NOTHING if room_of(path) in PROGRAMS else public


def test_each_public_function_has_a_name_of_its_own():
  names = Counter(name for path in FILES for name in functions_of(path))
  assert [name for name, number in names.items() if number > 1] == []


def test_the_rule_catches_an_import_upwards(tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text("from diffusion_jax.train import main\nimport diffusion_jax.training.step\n")
  assert imported_rooms(file) == {"train", "training"}
  assert LAYER_OF["train"] > LAYER_OF["training"] > LAYER_OF["models"]


@pytest.mark.parametrize(
  ("library", "rooms"),
  [
    ("flax", {"models"}),
    ("orbax", {"checkpoints"}),
    ("ml_collections", {"core"}),
    ("optax", {"training", "extractors"}),
    ("matplotlib", {"report"}),
    ("rich", {"core"}),
    ("jinja2", {"report"}),
    ("tensorflow_datasets", {"data", "prepare"}),
    ("array_record", {"data"}),
    ("starlette", {"browsing"}),
    ("uvicorn", {"browsing"}),
    ("datasets", {"data"}),
    ("torch", set()),
    ("safetensors", set()),
    ("msgpack", set()),
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
    for name in ("pmap", "PositionalSharding", "experimental.shard_map"):
      assert name not in path.read_text(), path


def test_every_file_has_a_docstring_and_is_short():
  for path in FILES:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), path
    limit = 200 if room_of(path) in PROGRAMS else 400
    assert len(text.splitlines()) <= limit, path
