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
  """The pictures of a listing that can be read, as far as it has been looked.

  Attributes:
    listing: these pictures.
    headers: of them, in the same order.
    skipped: sentences on those that cannot be read.
    memory: file of the user's cache that says so, where all have been looked through.
  """

  listing: Listing
  headers: Sequence[Header]
  skipped: tuple[str, ...] = ()
  memory: Path | None = None

  def keep(self, places: Sequence[int]) -> "Checked":
    """The same of some of the pictures."""
    headers = [self.headers[i] for i in places]
    return self._replace(listing=self.listing.keep(places), headers=headers)

  def notes(self) -> tuple[str, ...]:
    """Sentences on all that was left out or is changed on the way in."""
    return (*self.listing.notes, *self.skipped, *header_notes(self.headers))


def check_pictures(
  listing: Listing, make_reader: Callable[[Listing], Reader], where: str, unreadable: Unreadable
) -> Checked:
  """Reads the header of every picture.

  If one of them is damaged, all pictures are decoded, to name every one that cannot be read. Those
  that are to be skipped are looked for in the same way, once for the same files.

  Args:
    listing: the pictures.
    make_reader: of a listing's pictures.
    where: the folder was named, for messages.
    unreadable: what is done about pictures that cannot be read.

  Raises:
    UserError: unreadable pictures, all of them named, or none that can be read.
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
  """A sentence on the pictures that are skipped, if there are any."""
  if not broken:
    return ()
  files = "picture" if len(broken) == 1 else "pictures"
  return (f"{len(broken):,} unreadable {files} left out: {some(reader.lines(broken))}",)
