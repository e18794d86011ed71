"""Keep the words of a command whole: a browser would break a line after a flag's hyphens."""

import re

CODE = re.compile(r"<code>([^<]*--[^<]*)</code>")


def on_page_content(html, page, config, files):
  """Mark each word of the commands within the text."""
  return CODE.sub(lambda match: f"<code>{_words(match[1])}</code>", html)


def _words(text: str) -> str:
  return " ".join(f'<span class="word">{word}</span>' for word in text.split(" "))
