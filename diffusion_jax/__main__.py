"""List the commands and start one of them: diffusion-jax train --config=ddpm_digits

`diffusion-jax train ...` and `python -m diffusion_jax train ...` are `python -m diffusion_jax.train
...`: the same module runs in this process. Nothing here imports JAX, so the list shows at once.
"""

import contextlib
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.core import shipped
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.runs.streams import Unbreakable

PROGRAMS = (
  "train", "sample", "edit", "encode", "evaluate", "gallery", "prepare", "stats", "features",
  "plan", "audit", "options", "import", "export",
  "reproduce",
)  # fmt: skip
"""Modules with a command each; the first line of a module's docstring describes it."""

OWN = {
  "configs": "List the shipped configs, or describe one: configs [NAME].",
  "doctor": "Check versions, devices and folders, and say what to type for each fault.",
  "runs": "List runs, their figures and how their configs differ: runs [DIR].",
  "help": "Print the flags of a command: help COMMAND.",
}
"""Commands without a module of their own, with their descriptions."""

DONE, USER_ERROR = 0, 2


def main() -> int:
  """Run the command in sys.argv; return the exit code unless a program exits itself."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the program handles it: no traceback
  name, *rest = sys.argv[1:] or ["--help"]
  if name == "help" and rest:
    name, rest = rest[0], ["--help", *rest[1:]]
  if name in PROGRAMS:
    start_program(name, rest)
  out, err = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = answer(name, rest)
    out.flush()
    err.flush()
  return code


def start_program(name: str, argv: Sequence[str]) -> None:
  """Run a program as `python -m` would, and exit with its code."""
  sys.argv[1:] = argv
  runpy.run_module(f"diffusion_jax.{name}", run_name="__main__", alter_sys=True)
  sys.exit(DONE)


def answer(name: str, rest: Sequence[str]) -> int:
  """Run a command of OWN, or refuse an unknown one in one line; return the exit code."""
  if name in ("-h", "--help", "help", "--helpfull", "--helpshort"):
    print(overview())
  elif name in ("--version", "-V", "version"):
    print(shipped.versions())
  elif name == "configs" and (not rest or set(rest) & {"-h", "--help"}):
    print(two_columns({n: shipped.first_line(path) for n, path in shipped.configs().items()}))
    print(
      "\ntrain one: diffusion-jax train --config=NAME; describe one: diffusion-jax configs NAME"
    )
  elif name == "configs":
    return config_facts(rest)
  elif name == "runs":
    return list_runs(rest)
  elif name == "doctor":
    return check_machine(rest)
  elif name.startswith("-"):
    return refuse(f"{name}: name a command first, as diffusion-jax train {name}; see --help")
  else:
    return refuse(f"{name}: no such command.{spelling_hint(name, [*PROGRAMS, *OWN])}")
  return DONE


def config_facts(names: Sequence[str]) -> int:
  """Print the files and docstrings of shipped configs; return the exit code."""
  configs = shipped.configs()
  for name in names:
    if name.startswith("-"):
      return refuse(f"configs {name}: no such flag; write configs or configs NAME")
    if name not in configs:
      return refuse(f"{name}: no shipped config.{spelling_hint(name, configs)}")
  print("\n\n".join(f"{configs[n]}\n\n{shipped.docstring(configs[n])}" for n in names))
  return DONE


def list_runs(argv: Sequence[str]) -> int:
  """Print the table of runs; return the exit code."""
  from diffusion_jax.runs.run_table import UsageError, table_of_runs

  try:
    print(table_of_runs(argv))
  except UsageError as error:
    return refuse(str(error))
  except SystemExit:  # --help is printed
    pass
  return DONE


def check_machine(argv: Sequence[str]) -> int:
  """Print the findings of the doctor; return the exit code."""
  from diffusion_jax.runs.doctor import DoctorUsageError, examine

  try:
    return DONE if examine(argv) else USER_ERROR
  except DoctorUsageError as error:
    return refuse(str(error))
  except SystemExit:  # --help is printed
    return DONE


def refuse(message: str) -> int:
  """Print what is wrong and return the code for it."""
  print(f"error: {message}", file=sys.stderr)
  return USER_ERROR


def overview() -> str:
  """Return the list of the commands."""
  lines = {n: shipped.first_line(Path(__file__).with_name(f"{n}.py")) for n in PROGRAMS} | OWN
  return (
    "usage: diffusion-jax COMMAND [FLAGS], or python -m diffusion_jax COMMAND [FLAGS]\n\n"
    f"{two_columns(lines)}\n\n"
    "diffusion-jax COMMAND --help lists a command's flags, --version prints the versions.\n"
    "To begin: diffusion-jax train --config=ddpm_digits"
  )


def two_columns(lines: dict[str, str]) -> str:
  """Return names and their lines in two columns."""
  width = max(map(len, lines))
  return "\n".join(f"  {name:{width}}  {line}" for name, line in lines.items())


if __name__ == "__main__":
  sys.exit(main())
