"""Keep the words of a command whole: a browser would break a line after a flag's hyphens."""

import re

INLINE = re.compile(r"<code>([^<]*--[^<]*)</code>")
BLOCK = re.compile(r'<div class="language-sh highlight">.*?</div>', re.DOTALL)
FLAG = re.compile(r"(?<=[\s>])--[\w.]+")


def on_page_content(html, page, config, files):
  """Mark each word of the commands within the text, and each flag of the blocks."""
  html = INLINE.sub(lambda match: f"<code>{_words(match[1])}</code>", html)
  return BLOCK.sub(lambda match: FLAG.sub(r'<span class="flag">\g<0></span>', match[0]), html)


def _words(text: str) -> str:
  return " ".join(f'<span class="word">{word}</span>' for word in text.split(" "))
