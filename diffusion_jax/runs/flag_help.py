"""Help on a command's flags: types, defaults, and the nearest flag to a mistyped one."""

import argparse
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from diffusion_jax.core import shipped
from diffusion_jax.core.files import run_folder
from diffusion_jax.core.spelling import closest
from diffusion_jax.core.synonyms import hint_for_flag, meanings
from diffusion_jax.runs.experiment import section_names

MAX_WIDTH = 100
NAMES = {"config": "CONFIG", "step": "STEP", "guide_step": "STEP"}
"""Flag -> name of its value in the help, for those whose type does not say it."""


class Formatter(argparse.RawDescriptionHelpFormatter):
  """argparse's help with the description's own lines and --flag=TYPE."""

  def __init__(self, prog: str):
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns - 2, MAX_WIDTH)
    super().__init__(prog, max_help_position=30, width=width)

  def _format_action_invocation(self, action: argparse.Action) -> str:
    if not action.option_strings or action.nargs == 0:
      return super()._format_action_invocation(action)
    value = f"={self._format_args(action, 'TEXT')}"
    if action.nargs == "?":
      value = f"[={action.metavar}]"
    return ", ".join(f"{flag}{value}" for flag in action.option_strings)


def complete(action: argparse.Action) -> None:
  """Add to a flag's help what the parser knows: the name of its value, its default, required."""
  action.metavar = metavar(action)
  if not action.option_strings:
    return
  if action.required:
    action.help = f"{action.help} [required]"
  elif action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, []):
    action.help = f"{action.help} [default: %(default)s]"


def metavar(action: argparse.Action) -> Any:
  """Return what a flag's value is called in the help."""
  if action.dest in NAMES:
    return NAMES[action.dest]
  if action.metavar or action.choices or not action.option_strings or action.nargs == 0:
    return action.metavar
  words: dict[Any, str] = {int: "INTEGER", float: "NUMBER", None: "TEXT", run_folder: "FOLDER"}
  return words.get(action.type, "PATH")


def usage(program: str, actions: Iterable[argparse.Action]) -> str:
  """Return the usage line: what must be given, the rest as FLAGS."""
  words = [program]
  for action in actions:
    if not action.option_strings:
      name = action.metavar or action.dest
      words.append(f"[{name}]" if action.nargs == "?" else str(name))
    elif action.required:
      value = metavar(action) or "|".join(map(str, action.choices or ()))
      words.append(f"{action.option_strings[0]}={value}")
  return " ".join([*words, "[FLAGS]"])


def explain_unknown(unknown: Sequence[str], flags: Iterable[str], takes_config: bool) -> str:
  """Return the line on arguments that a program does not have, with what was probably meant.

  Args:
    unknown: the arguments, at least one.
    flags: those that the program has.
    takes_config: whether it takes --config and overrides.
  """
  first, _, value = unknown[0].partition("=")
  if not value and len(unknown) > 1 and not unknown[1].startswith("-"):
    value = unknown[1]
  word, own = first.rpartition(".")[2], list(flags)
  hint = hint_for_flag(word, own, takes_config, value)
  if hint and first.lstrip("-") not in meanings(word):  # else only --config. is missing
    return f"unrecognized arguments: {' '.join(unknown)}; {hint}"
  meant = closest(first, own) if first.startswith("-") else None
  field = re.fullmatch(r"-{0,2}(?:config\.)?(([a-z_]+)\.\w+)", first)
  if not first.startswith("-") and os.path.exists(first):
    meant = _flag_of_path(first, own)
  elif takes_config and field and (field[2] in section_names() or first.startswith("-")):
    meant = f"--config.{field[1]}{unknown[0][len(first) :]}"
  elif takes_config and (name := closest(first, shipped.configs(), 0.8)):
    meant = f"--config={name}"
  hint = f"; did you mean {meant}?" if meant else ""
  return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def _flag_of_path(path: str, flags: Sequence[str]) -> str | None:
  """Return the flag, with its value, for a file or a folder that was given without one."""
  is_run = os.path.exists(os.path.join(path, "config.json"))
  name = "--workdir" if is_run else "--config" if path.endswith(".py") else "--data"
  return f"{name}={path}" if name in flags else None
