"""Text of others, made safe to print; nothing here imports JAX."""


def printable(text: str) -> str:
  """Return a text on one line, with line breaks and other control characters escaped.

  A file's name may contain any of them, and a terminal executes some.
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode()  # an invalid byte too: \udcff
    for c in text
  )
