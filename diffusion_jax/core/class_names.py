"""Names of classes as people type them, as captions of pictures, and in names of files."""

import re
import unicodedata
from collections.abc import Sequence

from diffusion_jax.core.spelling import closest
from diffusion_jax.types import UserError

MAX_LISTED = 12
"""Number of names that a message lists."""

MAX_IN_FILE = 60
"""Bytes of a class name in the name of a file."""


def class_numbers(given: str | Sequence[str | int], names: Sequence[str], where: str) -> list[int]:
  """Return the numbers of classes that are given by name or by number.

  Names take precedence. If a class's name is a number other than its own, texts are only names.

  Args:
    given: text such as "cat,3", whose names may contain commas; or a list of names and integers.
    names: names of all classes in the order of their numbers; empty if they have none.
    where: source of the text, for messages: "--labels=cat,3".

  Raises:
    UserError: a text is neither the name of one class nor a number.
  """
  words = _split(given, names) if isinstance(given, str) else given
  if isinstance(given, str) and "" in words:
    some = f"a class is missing; give e.g. {names[0] if names else 0}, or leave the flag out"
    raise UserError(f"{where}: {some} for all classes")
  return [_number(word, names, where) if isinstance(word, str) else int(word) for word in words]


def _split(text: str, names: Sequence[str]) -> list[str]:
  """Split a text at its commas, except at those within a name; longer names are tried first."""
  pieces, words, known = text.split(","), [], {_plain(name) for name in names}
  longest = max((name.count(",") for name in names), default=0) + 1
  while pieces:
    ends = range(min(longest, len(pieces)), 1, -1)
    end = next((e for e in ends if _plain(",".join(pieces[:e])) in known), 1)
    words.append(",".join(pieces[:end]).strip())
    pieces = pieces[end:]
  return words


def _number(word: str, names: Sequence[str], where: str) -> int:
  """Return the number of one class."""
  exact = [i for i, name in enumerate(names) if name == word]
  alike = exact or [i for i, name in enumerate(names) if _plain(name) == _plain(word)]
  if len(alike) == 1:
    return alike[0]
  if alike:
    raise UserError(f"{where}: {word!r} may be any of {list_classes([names[i] for i in alike])}")
  if re.fullmatch(r"\s*\d+\s*", word, re.ASCII) and not _numbers_elsewhere(names):
    return int(word)
  if not names:
    raise UserError(f"{where}: {word!r} is no number, and these classes have no names")
  close = closest(word, names)
  hint = f" Did you mean {close!r}?" if close else ""
  raise UserError(f"{where}: no class is called {word!r}.{hint} Classes: {list_classes(names)}")


def _numbers_elsewhere(names: Sequence[str]) -> bool:
  """Return whether the name of a class is a number other than its own."""
  return any(name.strip().isdecimal() and int(name) != i for i, name in enumerate(names))


def _plain(name: str) -> str:
  """Return the form in which names are compared: macOS stores é as two characters."""
  return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def list_classes(names: Sequence[str]) -> str:
  """List the first names, and the number of the others."""
  more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
  shown = [repr(name) if "," in name else name for name in names[:MAX_LISTED]]
  return ", ".join(shown) + more


def name_of(label: int, names: Sequence[str]) -> str:
  """Return a class's name; its number if it has none."""
  return names[label] if 0 <= label < len(names) else str(label)


def in_file_name(label: int, names: Sequence[str]) -> str:
  """Return a class's name in letters, digits, - and _, at most MAX_IN_FILE bytes long."""
  words = unicodedata.normalize("NFC", name_of(label, names))
  words = re.sub(r"[^\w-]+", "_", words).strip("_")
  short = words.encode()[:MAX_IN_FILE].decode(errors="ignore")
  return short or str(label)
