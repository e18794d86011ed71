"""Reads a report back: elements, numbers and texts, without the code that wrote it."""

from html.parser import HTMLParser

from diffusion_jax.report import Beside, OtherRun

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac$ --></svg>"
"""A name or text of a user's that must stay text."""

VOID = {"meta", "link", "img", "br", "input", "hr"}


def beside(training=(), *others):
  """What a report shows besides its own evaluation: training rows, and metrics of other runs."""
  return Beside(training, [OtherRun(metrics) for metrics in others])


class Element:
  """An element with its attributes and, in `parts`, its text and its children in order."""

  def __init__(self, tag: str, attributes: dict):
    self.tag, self.attributes, self.parts = tag, attributes, []

  def all(self, tag: str | None = None, **attributes) -> list["Element"]:
    """Descendants with the tag and the attributes."""
    found = []
    for part in self.parts:
      if isinstance(part, Element):
        same = all(part.attributes.get(k.rstrip("_")) == v for k, v in attributes.items())
        if tag in (None, part.tag) and same:
          found.append(part)
        found += part.all(tag, **attributes)
    return found

  def one(self, tag: str | None = None, **attributes) -> "Element":
    """The only such descendant."""
    (found,) = self.all(tag, **attributes)
    return found

  @property
  def text(self) -> str:
    return "".join(p if isinstance(p, str) else p.text for p in self.parts)

  def numbers(self) -> list[float]:
    """The exact numbers inside, in order."""
    return [float(element.attributes["value"]) for element in self.all("data")]


class _Reader(HTMLParser):
  def __init__(self):
    super().__init__()
    self.root = Element("root", {})
    self.stack = [self.root]

  def handle_starttag(self, tag, attrs):
    element = Element(tag, dict(attrs))
    self.stack[-1].parts.append(element)
    if tag not in VOID:
      self.stack.append(element)

  def handle_startendtag(self, tag, attrs):
    self.stack[-1].parts.append(Element(tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.stack[-1].tag == tag, f"<{self.stack[-1].tag}> ended by </{tag}>"
    self.stack.pop()

  def handle_data(self, data):
    self.stack[-1].parts.append(data)


def read(html: str) -> Element:
  """The document; every element must be closed by its own tag."""
  reader = _Reader()
  reader.feed(html)
  reader.close()
  assert len(reader.stack) == 1, f"<{reader.stack[-1].tag}> is not closed"
  return reader.root


def row(table: Element, key: str) -> Element:
  """The row whose head begins with a key."""
  found = [r for r in table.all("tr") for th in r.all("th")[:1] if th.text.split()[:1] == [key]]
  assert len(found) == 1, f"{len(found)} rows of {key}"
  return found[0]
