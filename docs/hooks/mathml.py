r"""Turn the formulas of a page, $...$ and $$...$$, into MathML, which browsers draw.

Browsers need a font with a table of mathematics, which not every system has. The site gets the
glyphs that formulas may need from STIX Two Math (SIL Open Font License), the font of `ziamath`.
"""

import html as text
import importlib.util
import re
from pathlib import Path

FORMULA = re.compile(
  r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
OPERATORS = {
  "<mi>log</mi>": '<mo lspace="0.1em" rspace="0.17em">log</mo>',
  "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",  # \sim, which the converter takes for an identifier
}
GLYPHS = [
  range(0x20, 0x7F), range(0xA0, 0x100), range(0x300, 0x3D7), range(0x2010, 0x2070),
  range(0x2100, 0x2300), range(0x2308, 0x230C), range(0x23DC, 0x23E2), range(0x27E6, 0x27F0),
  range(0x1D434, 0x1D468), range(0x1D49C, 0x1D4D0), range(0x1D538, 0x1D56C),
  range(0x1D6FC, 0x1D71C),
]  # fmt: skip
"""Letters, operators, brackets, and the italic, script and double-struck alphabets."""

FONT = "assets/math.woff"


def to_mathml(tex: str, display: str) -> str:
  """Return a formula as MathML; display is "inline" or "block".

  Raises:
    Exception: latex2mathml's, for a formula that it cannot read.
  """
  from latex2mathml.converter import convert

  mathml = convert(tex, display=display)
  for wrong, right in OPERATORS.items():
    mathml = mathml.replace(wrong, right)
  if "\\" in re.sub(r"<[^>]*>", "", mathml):
    raise ValueError(f"latex2mathml has left a command as it is in: {tex}")
  return mathml


def on_page_content(html, page, config, files):
  """Replace each formula; one that cannot be read ends the build."""
  return FORMULA.sub(_formula, html)


def _formula(match: re.Match) -> str:
  tag = match["tag"]
  mathml = to_mathml(text.unescape(match["tex"]).strip(), "block" if tag == "div" else "inline")
  return f'<{tag} class="formula">{mathml}</{tag}>'


def on_post_build(config):
  """Write the font."""
  from fontTools import subset

  options = subset.Options(flavor="woff", layout_features=["ssty"], notdef_outline=True)
  package = importlib.util.find_spec("ziamath")  # not imported: it reads the whole font
  folder = Path(package.submodule_search_locations[0])
  font = subset.load_font(str(folder / "fonts" / "STIXTwoMath-Regular.ttf"), options)
  subsetter = subset.Subsetter(options)
  subsetter.populate(unicodes=[code for codes in GLYPHS for code in codes])
  subsetter.subset(font)
  subset.save_font(font, str(Path(config.site_dir) / FONT), options)
