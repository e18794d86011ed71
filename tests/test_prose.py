"""Docstrings keep the rule of CONTRIBUTING.md: plain first lines, noun phrases for attributes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
  path
  for folder in ("diffusion_jax", "launch", "configs", "examples", "docs")
  for path in (ROOT / folder).rglob("*.py")
)
OPENERS = ["Of", "Those", "That", "What", "Where", "Whether", "How", "As", "By"]
MAX_LENGTH = 90


def documented(path: Path) -> list[tuple[int, str]]:
  """Return the line number and text of each docstring, those of attributes included."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    body = getattr(node, "body", None)
    if not isinstance(body, list):
      continue
    for statement in body:
      value = statement.value if isinstance(statement, ast.Expr) else None
      if isinstance(value, ast.Constant) and isinstance(value.value, str):
        found.append((statement.lineno, value.value))
  return found


def faults(path: Path) -> list[str]:
  """Return what breaks the rule in a file, one line per fault."""
  found = []
  for number, text in documented(path):
    first = text.strip().split("\n")[0]
    where = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{number}"
    if first.split(" ")[0].rstrip(",:") in OPENERS:
      found.append(f"{where}: begins with '{first.split(' ')[0]}': {first}")
    if len(first) >= MAX_LENGTH:
      found.append(f"{where}: first line of {len(first)} characters: {first}")
    for line in text.split("\n"):
      if re.match(r"^\s+[a-z_0-9]+(, [a-z_0-9]+)*: of ", line):
        found.append(f"{where}: not a noun phrase: {line.strip()}")
  return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_keep_the_rule(path):
  assert not faults(path)


def test_the_rule_notices_what_it_forbids(tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text('"""What it is."""\n\n\ndef f():\n  """Do it.\n\n  Args:\n    x: of it.\n  """\n')
  assert len(faults(file)) == 2
