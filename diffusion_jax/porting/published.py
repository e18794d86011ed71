"""Published checkpoints: their addresses, the commands that measure them, and their figures.

Sizes are as the publishers' pages show them. No file's SHA-256 is published, so none is compared;
`import` records the checksum of what it read.
"""

from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.types import UserError


class Figure(NamedTuple):
  """A published figure and the measurement that repeats it.

  Attributes:
    name: "fid", or the name of a likelihood of `evaluate`.
    value: the published value; bits/dim for likelihoods.
    num: images of its protocol: samples, or images of a likelihood; None: all of the split.
    overrides: fields of `evaluate` for its protocol, as "section.field=value".
    protocol: words on how it was measured.
    reference: paper or page, with the table.
  """

  name: str
  value: float
  num: int | None
  overrides: tuple[str, ...]
  protocol: str
  reference: str


class Published(NamedTuple):
  """A published checkpoint.

  Attributes:
    name: name in the commands.
    address: SOURCE of `import`.
    megabytes: size of what is downloaded.
    licence: licence of the weights.
    data: name of the data set in the figures' protocol, of tensorflow-datasets.
    config: shipped config that supplies data and training; None: `overrides` do.
    image_size: side of the images, pixels.
    overrides: fields that the file does not tell, as "section.field=value".
    figures: published figures, the first by default.
    note: what else must be known; "" for nothing.
    sha256: confirmed checksum of a single file; None: none is published.
  """

  name: str
  address: str
  megabytes: int
  licence: str
  data: str
  config: str | None
  image_size: int
  overrides: tuple[str, ...]
  figures: tuple[Figure, ...]
  note: str = ""
  sha256: str | None = None


ONLY_FID = (
  "eval.metrics=fid", "eval.likelihoods=none", "eval.spectrum_images=0", "eval.num_seeds=3",
  "eval.num_samples=50000",
)  # fmt: skip


def _bits(name: str, *overrides: str) -> tuple[str, ...]:
  return (
    f"eval.likelihoods={name}", "eval.metrics=none", "eval.spectrum_images=0",
    "eval.num_samples=64", *overrides,
  )  # fmt: skip


def _fid(value: float, reference: str, *overrides: str, words: str = "") -> Figure:
  protocol = "50,000 samples against all training images" + (f"; {words}" if words else "")
  return Figure("fid", value, 50_000, (*ONLY_FID, *overrides), protocol, reference)


DDPM = "Ho et al. 2020 (arXiv 2006.11239), table 1"

PUBLISHED: tuple[Published, ...] = (
  Published(
    "ddpm-cifar10", "hf:google/ddpm-cifar10-32", 143, "Apache-2.0", "cifar10", "ddpm_cifar", 32, (),
    (
      _fid(3.17, DDPM, words="the least of the checkpoints of its training"),
      Figure(
        "vlb", 3.75, None, _bits("vlb"), "bound on the 10,000 test images, at most; one draw", DDPM
      ),
    ),
  ),
)  # fmt: skip


def find_published(name: str) -> Published:
  """Return the checkpoint of a name.

  Raises:
    UserError: there is none; the message names the nearest.
  """
  known = {entry.name: entry for entry in PUBLISHED}
  if name not in known:
    hint = spelling_hint(name, known)
    raise UserError(f"{name}: no such file, folder or published checkpoint.{hint}")
  return known[name]


def published_table(entries: Sequence[Published] = PUBLISHED) -> str:
  """Return the table of `import --list`, one row for each figure."""
  rows = [("name", "MB", "licence", "figure", "published", "ours", "source")]
  for entry in entries:
    for figure in entry.figures:
      first = figure is entry.figures[0]
      about = (entry.name, f"{entry.megabytes:,}", entry.licence) if first else ("", "", "")
      source = entry.address if first else ""
      rows.append((*about, figure.name, f"{figure.value:g}", "not measured", source))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(text.ljust(n) for text, n in zip(r, widths, strict=True)) for r in rows]
  return "\n".join(line.rstrip() for line in lines)
