"""Check the headers of listed pictures; refuse or skip unreadable ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion_jax.data.listing import Listing, some
from diffusion_jax.data.reading import (
  Broken,
  Header,
  Reader,
  Unreadable,
  header_notes,
  read_headers,
)
from diffusion_jax.types import UserError


class Checked(NamedTuple):
  """The readable pictures of a listing.

  Attributes:
    listing: the readable pictures.
    headers: headers of these pictures, in the same order.
    skipped: sentences on unreadable pictures.
    memory: file in the user's cache that records a complete check; None without one.
  """

  listing: Listing
  headers: Sequence[Header]
  skipped: tuple[str, ...] = ()
  memory: Path | None = None

  def keep(self, places: Sequence[int]) -> "Checked":
    """Return the same for a subset of the pictures."""
    headers = [self.headers[i] for i in places]
    return self._replace(listing=self.listing.keep(places), headers=headers)

  def notes(self) -> tuple[str, ...]:
    """Return sentences on all pictures that are skipped or converted."""
    return (*self.listing.notes, *self.skipped, *header_notes(self.headers))


def check_pictures(
  listing: Listing, make_reader: Callable[[Listing], Reader], where: str, unreadable: Unreadable
) -> Checked:
  """Read the header of every picture.

  If one of them is damaged, all pictures are decoded to list every unreadable one. With
  unreadable=skip all are decoded too, once for the same files.

  Args:
    listing: the pictures.
    make_reader: (listing) -> reader of its pictures.
    where: flag that named the folder, for messages.
    unreadable: refuse or skip unreadable pictures.

  Raises:
    UserError: some pictures are unreadable (all of them are listed), or all are.
  """
  files = [listing.path(i) for i in range(len(listing.names))]
  headers = read_headers(files)
  broken = {i: str(h) for i, h in enumerate(headers) if isinstance(h, Broken)}
  reader = make_reader(listing)
  if unreadable == "skip":
    broken |= reader.remembered(listing.root, listing.names)
  elif broken:
    raise reader.refuse(broken)
  kept = [i for i in range(len(headers)) if i not in broken]
  if not kept:
    raise UserError(f"{where}: none of its {len(headers):,} pictures can be read")
  whole = [h for i in kept if isinstance(h := headers[i], Header)]
  rest = listing.keep(kept) if broken else listing
  return Checked(rest, whole, skipped(broken, reader), reader.memory)


def skipped(broken: dict[int, str], reader: Reader) -> tuple[str, ...]:
  """Return a sentence on the skipped pictures, if there are any."""
  if not broken:
    return ()
  files = "picture" if len(broken) == 1 else "pictures"
  return (f"{len(broken):,} unreadable {files} left out: {some(reader.lines(broken))}",)
