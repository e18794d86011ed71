"""The published checkpoints as a table for a terminal, and as a page of the documentation."""

import shlex
from collections.abc import Sequence

from diffusion_jax.porting.published import PUBLISHED, Figure, Published

HEAD = """# Published checkpoints

The checkpoints that `import` and `reproduce` know by name, with their published figures.
`reproduce NAME` imports one, measures it as its publishers did and prints both figures with their
difference in standard errors. Sizes are approximate. A SHA-256 is given where it could be
confirmed; else `import` records that of what it read. No figure of ours has been measured yet: the
column is filled by whoever measures one. `diffusion-jax import --list` prints the same.
"""


def published_table(entries: Sequence[Published] = PUBLISHED) -> str:
  """Return the table of `import --list`, one row for each figure."""
  rows = [("name", "MB", "licence", "figure", "published", "ours", "source")]
  for entry in entries:
    about, source = (entry.name, _size(entry), entry.licence), entry.address
    for figure in entry.figures:
      rows.append((*about, figure.name, f"{figure.value:g}", "not measured", source))
      about, source = ("", "", ""), ""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(text.ljust(n) for text, n in zip(r, widths, strict=True)) for r in rows]
  return "\n".join(line.rstrip() for line in lines)


def published_page(entries: Sequence[Published] = PUBLISHED) -> str:
  """Return docs/published.md."""
  return "\n".join([HEAD, *(_section(entry) for entry in entries)])


def _section(entry: Published) -> str:
  size = f"about {_size(entry)} MB" if entry.megabytes else "size not known"
  checksum = f"SHA-256 `{entry.sha256}`" if entry.sha256 else "no confirmed SHA-256"
  config = f"`{entry.config}`" if entry.config else "none for its data"
  settings = ", ".join(f"`{field}`" for field in entry.overrides) or "none"
  lines = [
    f"## {entry.name}",
    "",
    f"- source: `{entry.address}`, {size}, {checksum}",
    f"- licence: {entry.licence}",
    f"- data: {entry.data}; images of {entry.image_size}x{entry.image_size}",
    f"- our config: {config}; set by hand: {settings}",
    *([f"- autoencoder: `{entry.autoencoder}`"] if entry.autoencoder else []),
    *([f"- note: {entry.note}"] if entry.note else []),
    "",
    "| figure | published | protocol | source | ours | command |",
    "|---|---|---|---|---|---|",
    *(_row(entry, figure) for figure in entry.figures),
  ]
  return "\n".join([*lines, ""])


def _row(entry: Published, figure: Figure) -> str:
  chosen = [] if figure is entry.figures[0] else [f"--figure={figure.name}"]
  command = shlex.join(["diffusion-jax", "reproduce", entry.name, *chosen])
  unit = "" if figure.name == "fid" else " bits/dim"
  return (
    f"| `{figure.name}` | {figure.value:g}{unit} | {figure.protocol} | {figure.reference} | "
    f"not measured | `{command}` |"
  )


def _size(entry: Published) -> str:
  return f"{entry.megabytes:,}" if entry.megabytes else "?"
