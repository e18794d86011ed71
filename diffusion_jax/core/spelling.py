"""The word that a mistyped one was meant to be; nothing here imports JAX."""

import difflib
from collections.abc import Iterable


def closest(word: str, allowed: Iterable[str], likeness: float = 0.5) -> str | None:
  """Return the allowed word that is most like `word`, None if none is.

  Capitals count as small letters, and hyphens as underscores.

  Args:
    word: the text that was typed.
    allowed: the words that could have been typed.
    likeness: least ratio of equal letters, in [0, 1].
  """
  plain = {_plain(other): other for other in sorted(allowed, reverse=True)}
  close = difflib.get_close_matches(_plain(word), sorted(plain), n=1, cutoff=likeness)
  return plain[close[0]] if close else None


def _plain(word: str) -> str:
  return word.lower().replace("-", "_")


def spelling_hint(word: str, allowed: Iterable[str]) -> str:
  """Return " Did you mean 'x'?" for the closest allowed word, then the allowed words."""
  allowed = sorted(allowed)
  close = closest(word, allowed)
  hint = f" Did you mean '{close}'?" if close else ""
  return f"{hint} Allowed: {', '.join(allowed)}." if allowed else ""
