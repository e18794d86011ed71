"""Check the headers of listed pictures; refuse or skip unreadable ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.accounting import FileCounts, count_reasons, count_treatments
from diffusion_jax.data.decoded import Decoded
from diffusion_jax.data.listing import Listing
from diffusion_jax.data.reading import (
  Broken,
  Header,
  Reader,
  Unreadable,
  header_notes,
  read_headers,
)
from diffusion_jax.data.walking import some
from diffusion_jax.types import UserError


class Checked(NamedTuple):
  """The readable pictures of a listing.

  Attributes:
    listing: the readable pictures.
    headers: headers of these pictures, in the same order.
    skipped: sentences on unreadable pictures.
    memory: file in the user's cache that records a complete check; None without one.
    files: counts of all files, also of those that `keep` leaves out.
    images: pixels of all pictures, if they were decoded for the check.
    rows: rows in `images` of these pictures.
  """

  listing: Listing
  headers: Sequence[Header]
  skipped: tuple[str, ...] = ()
  memory: Path | None = None
  files: FileCounts | None = None
  images: np.ndarray | None = None
  rows: np.ndarray | None = None

  def keep(self, places: Sequence[int]) -> "Checked":
    """Return the same for a subset of the pictures."""
    headers = [self.headers[i] for i in places]
    rows = None if self.rows is None else self.rows[list(places)]
    return self._replace(listing=self.listing.keep(places), headers=headers, rows=rows)

  def notes(self) -> tuple[str, ...]:
    """Return sentences on all pictures that are skipped or converted."""
    return (*self.listing.notes, *self.skipped, *header_notes(self.headers))


def check_pictures(
  listing: Listing,
  make_reader: Callable[[Listing], Reader],
  where: str,
  unreadable: Unreadable,
  size: int | None = None,
  decode: Callable[[Reader, Listing, bool], Decoded] | None = None,
) -> Checked:
  """Read the header of every picture.

  If one of them is damaged, all pictures are decoded to list every unreadable one. With
  unreadable=skip all are decoded too, once for the same files.

  Args:
    listing: the pictures.
    make_reader: (listing) -> reader of its pictures.
    where: flag that named the folder, for messages.
    unreadable: refuse or skip unreadable pictures.
    size: pixels per side that pictures are resized to, for the counts.
    decode: (reader, listing, skip unreadable ones) -> all pixels; None: they are read later.

  Raises:
    UserError: some pictures are unreadable (all of them are listed), or all are.
  """
  headers = read_headers(listing.files())
  broken = {i: str(h) for i, h in enumerate(headers) if isinstance(h, Broken)}
  reader, decoded = make_reader(listing), None
  if broken and unreadable == "refuse":
    raise reader.refuse(broken)
  if decode is not None:
    decoded = decode(reader, listing, unreadable == "skip")
    broken |= decoded.broken
  elif unreadable == "skip":
    broken |= reader.remembered(listing.root, listing.files())
  kept = [i for i in range(len(headers)) if i not in broken]
  if not kept:
    reasons = ", ".join(
      f"{num:,} {reason}" for reason, num in count_reasons(broken.values()).items()
    )
    raise UserError(f"{where}: none of its {len(headers):,} pictures can be read ({reasons})")
  whole = [h for i in kept if isinstance(h := headers[i], Header)]
  rest = listing.keep(kept) if broken else listing
  reasons = {**listing.skipped, **count_reasons(broken.values())}
  counts = FileCounts(count_treatments([header.size for header in whole], size), reasons)
  checked = Checked(rest, whole, unreadable_notes(broken, reader), reader.memory, counts)
  if decoded is None:
    return checked
  readable = np.setdiff1d(np.arange(len(headers)), list(decoded.broken))
  rows = np.searchsorted(readable, kept)
  return checked._replace(images=decoded.images, rows=rows)


def unreadable_notes(broken: dict[int, str], reader: Reader) -> tuple[str, ...]:
  """Return a sentence on the skipped pictures, if there are any."""
  if not broken:
    return ()
  files = "picture" if len(broken) == 1 else "pictures"
  return (f"{len(broken):,} unreadable {files} left out: {some(reader.lines(broken))}",)
