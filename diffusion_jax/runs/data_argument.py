"""Errors about data that were given as one argument, `train --data=...`."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.core.files import bucket_path, printable, run_folder
from diffusion_jax.data.finding import find_data, name_of_data
from diffusion_jax.runs.own_data import CHOSEN
from diffusion_jax.types import UserError


def folder_for_data(text: str) -> Path:
  """Return runs/<name of the data>, the default folder of a run on --data=TEXT.

  Raises:
    UserError: there are no such data; if there were when that run began, it says how to go on.
  """
  try:
    return run_folder(f"runs/{name_of_data(text, find_data(text))}")
  except UserError as error:
    folder = Path("runs") / name_of_data("", {"path": text or "."})
    if not (folder / CHOSEN).is_file():
      raise
    raise UserError(
      f"{error}. {folder} was trained on data of this name: if they were moved, go on with "
      f"`data=NEW_PLACE` `workdir={folder}`"
    ) from error


@contextlib.contextmanager
def naming_data(text: str | None) -> Iterator[None]:
  """Name the argument `data` in errors about the fields that it stands for.

  Args:
    text: value of the argument; None: it was not given, and nothing is changed.
  """
  try:
    yield
  except UserError as error:
    if text is None:
      raise
    raise UserError(in_words_of_argument(str(error), text)) from error


def in_words_of_argument(message: str, text: str) -> str:
  """Return a message in which the fields that `data` has set are called by the argument.

  Paths and names that a message asks for in place of them, `data.path=ROOT/train`, become values of
  the argument as well.
  """
  own = {str(value) for value in find_data(text).values()}
  argument = f"`data={printable(text)}`"

  def renamed(found: re.Match[str]) -> str:
    return argument if found[1] in own else f"`data={found[1]}`"

  changed = re.sub(r"`data\.(?:path|dataset)=([^`]*)`", renamed, message)
  if "`data=" in changed:
    return changed
  rest = changed.removeprefix(f"{bucket_path(text).absolute()}: ")
  return f"{argument}: {rest}" if rest != changed else changed
