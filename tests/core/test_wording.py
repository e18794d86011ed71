"""Words of messages: fields and arguments in Python, flags on the command line."""

import ast
import re
from pathlib import Path

import pytest

import diffusion_jax
from diffusion_jax.core.wording import ARGUMENTS, with_flags

PACKAGE = Path(diffusion_jax.__file__).parent
ROOMS = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)

PARSED = {
  "core/config.py": "parses these flags",
  "evaluation/context.py": "makes such a flag of one point of --sweep",
  "runs/command_line.py": "parses these flags",
  "runs/config_help.py": "is the list of these flags",
  "runs/flag_help.py": "explains a mistyped flag",
  "runs/own_data.py": "ends what the command prints of its choices",
}
"""Files that may write "--config.", and why."""

OF_COMMANDS = {
  "core/config.py": "parses these flags",
  "core/synonyms.py": "is the list of flags of other programs with those of this one",
  "evaluation/": "only the command evaluate comes here, with flags of its own",
  "runs/command_line.py": "parses these flags",
  "runs/config_help.py": "only commands come here",
  "runs/flag_help.py": "only commands come here",
  "runs/own_data.py": "writes the file of --save_config and says what to do with it",
  "train_loop/ending.py": "prints the commands that come next",
  "train_loop/own_run.py": "says how to train the file of --save_config",
}
"""Files that may write the flag of an argument, and why."""


@pytest.mark.parametrize(
  ("text", "flags"),
  [
    (
      "steps=0 must be at least 1; try `sampler.steps=50` or `sampler.name=ddim`",
      "steps=0 must be at least 1; try --config.sampler.steps=50 or --config.sampler.name=ddim",
    ),
    ("`data.path=my cats`: no such folder", "--config.data.path='my cats': no such folder"),
    ("`data.path=` is empty", "--config.data.path='' is empty"),
    ("set `model.conditional=False`, `ema.warmup=None`",
     "set --config.model.conditional=false, --config.ema.warmup=none"),
    ("more `model.multipliers=...`", "more --config.model.multipliers=..."),
    ("`workdir=runs/x`: use another `workdir` or `fresh=True`",
     "--workdir=runs/x: use another --workdir or --fresh"),
    ("`ema=decay:0.9`, `step=3`, `config=smoke`", "--ema=decay:0.9, --step=3, --config=smoke"),
    ("`data=my cats`: no pictures there", "--data='my cats': no pictures there"),
    ("python -m diffusion_jax.encode --out=DIR", "python -m diffusion_jax.encode --out=DIR"),
    ("the file `a.png`, `x = 1`, `steps=5` and `steps`",
     "the file `a.png`, `x = 1`, `steps=5` and `steps`"),
  ],
)  # fmt: skip
def test_a_librarys_message_names_flags_on_the_command_line(text, flags):
  assert with_flags(text) == flags
  assert with_flags(flags) == flags


def texts(tree: ast.AST) -> list[str]:
  """Return the string literals that are no docstrings, each f-string as one."""
  found = []
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      continue
    if isinstance(node, ast.JoinedStr):
      parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
      found.append("".join(map(str, parts)))
      found += [text for v in node.values if isinstance(v, ast.FormattedValue) for text in texts(v)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      found.append(node.value)
    found += [] if isinstance(node, ast.JoinedStr) else texts(node)
  return found


COMMAND = re.compile(r"(python -m diffusion_jax\.|diffusion-jax ).*")
"""The rest of a text from where a command to type begins."""


def writers(pattern: str) -> dict[str, list[str]]:
  """Return the texts of the library that name a flag, by file; commands to type may do so."""
  found = {}
  for path in ROOMS:
    said = [
      re.sub(r"(python -m diffusion_jax\.|diffusion-jax ).*", "", t)
      for t in texts(ast.parse(path.read_text()))
    ]
    if named := [text for text in said if re.search(pattern, text)]:
      found[path.relative_to(PACKAGE).as_posix()] = named
  return found


@pytest.mark.parametrize(
  ("pattern", "allowed"),
  [(r"--config\.", PARSED), (rf"--({'|'.join(ARGUMENTS)})\b", OF_COMMANDS)],
)
def test_the_library_names_fields_and_arguments_where_commands_have_flags(pattern, allowed):
  found = writers(pattern)
  assert {f: said for f, said in found.items() if not f.startswith(tuple(allowed))} == {}
  assert [a for a in allowed if not any(f.startswith(a) for f in found)] == []


def test_the_search_sees_f_strings_and_leaves_out_docstrings():
  tree = ast.parse('"""--config.a."""\nx = f"--config.a.{b}=1 {c + \'d\'}" + "e"')
  assert texts(tree) == ["--config.a.{}=1 {}", "d", "e"]
