"""The copy of a file or folder of a bucket: what it holds, its download and its upload."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from diffusion_jax.core import bucket_files, files, progress, storage
from diffusion_jax.core.bucket_files import Here, Sign, is_mark
from diffusion_jax.types import UserError

PASSING = re.compile(r"^\.|\.orbax-checkpoint-tmp|\.incomplete|\.array_record\.part$")
"""Names of what is not uploaded: locks, parts, unfinished checkpoints and shards."""

BEGUN = re.compile(r"\.shards\.json\.part$")
"""Files that say that a set is not whole; they are uploaded before all others."""

WHOLE = re.compile(r"(\.shards\.json|(^|/)(latents|dataset_info)\.json)$")
"""Files by which a set counts as whole; they are uploaded after all others."""

STORE_SEC = 5.0
"""Seconds after which a transfer remembers what has arrived, for a start after a kill."""

Known = dict[str, tuple[Here, Sign]]
"""File -> its signs here and in the bucket when both had the same content."""


@dataclasses.dataclass(frozen=True)
class Copy:
  """The copy of one file or folder of a bucket.

  Attributes:
    url: its address, e.g. gs://bucket/runs/a.
    home: folder of the copy and of what is known about it.
    has_checkpoints: true if checkpoints are copied too; otherwise Orbax uses them in the bucket.
  """

  url: str
  home: Path
  has_checkpoints: bool = True

  @property
  def above(self) -> str:
    """Address of the folder above."""
    return self.url.rpartition("/")[0]

  @property
  def root(self) -> Path:
    """Folder in the place of the folder above; it holds only the copy and what is made beside."""
    return self.home / "files"

  @property
  def path(self) -> Path:
    """The copy itself."""
    return self.root / self.url.rpartition("/")[2]

  def holds(self, name: str) -> bool:
    """Return whether a file of the bucket is copied."""
    return self.has_checkpoints or bucket_files.STEP_FILE.match(name) is None

  def list_remote(self) -> dict[str, Sign]:
    """Return the files of the bucket, by their paths below the folder above."""
    found = bucket_files.list_files(self.url)
    named = {f"{self.path.name}/{name}".rstrip("/"): sign for name, sign in found.items()}
    return {name: sign for name, sign in named.items() if self.holds(name)}

  def list_here(self) -> dict[str, Here]:
    """Return the files of the copy, by their paths below the folder above.

    A checkpoint here has no mark, because it was renamed when it was whole; the entry of its mark
    stands for the one in the bucket.
    """
    found: dict[str, Here] = {}
    for folder, folders, names in os.walk(self.root):
      folders[:] = [name for name in folders if not PASSING.search(name)]
      for path in (Path(folder, name) for name in names if not PASSING.search(name)):
        with contextlib.suppress(FileNotFoundError):
          about = path.stat()
          found[path.relative_to(self.root).as_posix()] = (about.st_size, about.st_mtime_ns)
    found = {name: sign for name, sign in found.items() if self.holds(name)}
    whole = [name for name in found if name.endswith("/meta/metadata")]
    return found | dict.fromkeys(_marks_of(whole), (0, 0))

  def known(self) -> Known:
    """Return what was the same here and in the bucket after the last transfer."""
    return {name: signs for name, signs in self._stored().items() if self.holds(name)}

  def _stored(self) -> Known:
    try:
      stored = json.loads((self.home / "known.json").read_text())
    except (OSError, ValueError):
      return {}
    return {name: (tuple(here), tuple(there)) for name, (here, there) in stored.items()}

  def note(self, name: str) -> list[str]:
    """Return the files that a transfer noted before it began; none if it has ended."""
    try:
      return json.loads((self.home / name).read_text())
    except (OSError, ValueError):
      return []

  def store_known(self, known: Known) -> None:
    """Remember what is the same here and in the bucket."""
    others = {name: signs for name, signs in self._stored().items() if not self.holds(name)}
    files.write_json(self.home / "known.json", {**others, **known})

  @contextlib.contextmanager
  def transferring(self) -> Iterator[None]:
    """Hold the lock of transfers: the processes of a machine transfer one after the other."""
    with contextlib.ExitStack() as stack:
      if stack.enter_context(files.locked(self.home / "transfer", 1.0)) == "held":
        what = f"waiting for another process that transfers {self.url}"
        with progress.phase(what, last_line=False):
          stack.enter_context(files.locked(self.home / "transfer", math.inf))
      yield


def check_versions(copy: Copy, signs: Iterable[Sign]) -> None:
  """Raise an error if a file has no version.

  Raises:
    UserError: a change of a file would go unnoticed.
  """
  if not all(version for _, version in signs):
    raise UserError(
      f"{copy.url}: a bucket of this kind does not tell whether a file was changed; give a path on "
      "this machine, e.g. where the bucket is mounted"
    )


def download(copy: Copy, is_alone: bool) -> None:
  """Bring the copy to the content of the bucket, except for files that only changed here.

  Args:
    copy: copy whose lock of transfers the caller holds.
    is_alone: true if no other process uses the copy.
  """
  found = copy.list_remote()
  check_versions(copy, found.values())
  if is_alone:
    _delete_unfinished(copy)
  # A checkpoint that was uploaded in part is not known to the bucket: it must not be deleted here.
  known, here = bucket_files.without_parts(copy.known()), copy.list_here()
  if is_alone:  # the cache has lost what is missing: it was not deleted by a program
    known = {name: signs for name, signs in known.items() if name in here}
  there = {n for n in {*known, *found} if found.get(n) != (known[n][1] if n in known else None)}
  own = {n for n in {*known, *here} if here.get(n) != (known[n][0] if n in known else None)}
  if is_alone:
    ours = _uploaded_before(copy, there & own & {*here} & {*found})
    known |= {n: (here[n], found[n]) for n in ours}
    longer = {n for n in ours if here[n][0] > found[n][0]}
    there, own = there - ours, own - (ours - longer)
    known |= {n: ((0, 0), found[n]) for n in longer}
  if is_alone and there and own:
    aside = files.free_name(copy.root)
    copy.root.rename(aside)
    copy.root.mkdir()
    print(
      f"{copy.url} was changed elsewhere before changes made here were uploaded; these are kept in "
      f"{aside}",
      flush=True,
    )
    known, there, own = {}, set(found), set()
  wanted = sorted(name for name in there - own if name in found)
  _check_room(copy, sum(found[name][0] for name in wanted))
  known |= {name: ((0, 0), found[name]) for name in wanted if is_mark(name)}
  _fetch(copy, [name for name in wanted if not is_mark(name)], found, known)
  for name in there - own - {*found}:
    _delete_here(copy, name)
    known.pop(name, None)
  copy.store_known(known)
  for note in ("downloading.json", "uploading.json")[: 1 + is_alone]:
    (copy.home / note).unlink(missing_ok=True)
  _reserve_names(copy)


def _delete_here(copy: Copy, name: str) -> None:
  """Delete a file and the folders that it leaves empty, which would look like checkpoints."""
  (copy.root / name).unlink(missing_ok=True)
  with contextlib.suppress(OSError):  # not empty
    for folder in Path(name).parents:
      (copy.root / folder).rmdir()


def _delete_unfinished(copy: Copy) -> None:
  """Delete what a killed download did not remember: no program made it here."""
  known, here, noted = copy.known(), copy.list_here(), copy.note("downloading.json")
  for folder in {(copy.root / name).parent for name in noted}:
    for part in folder.glob(".*.part"):
      part.unlink()
  for name in noted:
    if name not in known or here.get(name) != known[name][0]:
      _delete_here(copy, name)
  copy.root.mkdir(exist_ok=True)


def _uploaded_before(copy: Copy, names: set[str]) -> set[str]:
  """Return the files that a killed upload has sent, whole or as far as they went then."""

  def is_ours(name: str) -> bool:
    return is_mark(name) or bucket_files.begins(f"{copy.above}/{name}", copy.root / name)

  noted = sorted(names & {*copy.note("uploading.json")})
  return {
    name for name, yes in zip(noted, bucket_files.at_once(is_ours, noted), strict=True) if yes
  }


def _fetch(copy: Copy, wanted: list[str], found: dict[str, Sign], known: Known) -> None:
  if not wanted:
    return
  files.write_json(copy.home / "downloading.json", wanted)
  num_mb = sum(found[name][0] for name in wanted) // 10**6
  is_large = num_mb > 100 or len(wanted) == 1
  store = _storing(copy, known)
  total, unit = (num_mb, "MB") if is_large else (len(wanted), "files")
  with progress.phase(f"downloading {copy.url}", total, unit) as shown:
    count = _counting_mb(shown) if is_large else lambda num: None

    def fetch(name: str) -> Here:
      return bucket_files.fetch_file(f"{copy.above}/{name}", copy.root / name, count)

    for name, sign in zip(wanted, bucket_files.at_once(fetch, wanted), strict=True):
      known[name] = (sign, found[name])
      store()
      if not is_large:
        shown.advance()


def _counting_mb(shown: progress.Phase) -> Callable[[int], None]:
  """Return a function that threads call with the bytes that have arrived."""
  lock, done = threading.Lock(), 0

  def count(num: int) -> None:
    nonlocal done
    with lock:
      done += num
      shown.set(done // 10**6)

  return count


def _storing(copy: Copy, known: Known) -> Callable[[], None]:
  """Return a function that remembers what is known every few seconds."""
  due = time.monotonic() + STORE_SEC

  def store() -> None:
    nonlocal due
    if time.monotonic() >= due:
      copy.store_known(known)
      due = time.monotonic() + STORE_SEC

  return store


def _check_room(copy: Copy, num_bytes: int) -> None:
  free = shutil.disk_usage(copy.home).free
  if num_bytes > free:
    raise UserError(
      f"{copy.url}: its copy needs {storage.size(num_bytes)}, and {copy.home} has "
      f"{storage.size(free)} left; free space there, or set XDG_CACHE_HOME to another disk"
    )


def _reserve_names(copy: Copy) -> None:
  """Make an empty folder for each run moved aside in the bucket: its name stays taken."""
  above = bucket_files.remote(copy.above)
  for other in above.iterdir() if above.is_dir() else ():
    if re.fullmatch(rf"{re.escape(copy.path.name)}\.old\d+", other.name):
      (copy.root / other.name).mkdir(exist_ok=True)


def upload(copy: Copy) -> None:
  """Upload what has changed and delete what is gone; a set or a checkpoint only as a whole.

  What says that a set is whole goes last, so that an upload that is killed leaves none.
  """
  known, here = copy.known(), copy.list_here()
  changed = [n for n in here if n not in known or here[n] != known[n][0]]
  gone = [n for n in known if n not in here]
  if not changed and not gone:
    return
  marks = _marks_of([*changed, *gone])  # a checkpoint is not whole while its files change
  changed = [n for n in changed if not is_mark(n)]
  gone = [n for n in gone if not is_mark(n)]
  steps_going = _marks_of(gone)

  def send(name: str) -> Sign | None:
    return bucket_files.send_file(copy.root / name, f"{copy.above}/{name}")

  files.write_json(copy.home / "uploading.json", [*changed, *sorted(marks & {*here})])
  store = _storing(copy, known)
  try:
    for mark in sorted(marks & {*known}):
      bucket_files.delete_mark(f"{copy.above}/{mark}")
      del known[mark]
    for names in _in_turns(changed):
      for name, sign in zip(names, bucket_files.at_once(send, names), strict=True):
        if sign is not None:
          known[name] = (here[name], sign)
          store()
    for mark in sorted(marks & {*here} - steps_going):
      known[mark] = (here[mark], bucket_files.send_mark(f"{copy.above}/{mark}"))
    for name in gone:
      bucket_files.delete_file(f"{copy.above}/{name}")
      del known[name]
  finally:
    copy.store_known(known)
  (copy.home / "uploading.json").unlink(missing_ok=True)


def _in_turns(names: Iterable[str]) -> list[list[str]]:
  """Return files in groups, each to be uploaded before the next."""
  turns: list[list[str]] = [[], [], []]
  for name in names:
    turns[0 if BEGUN.search(name) else 2 if WHOLE.search(name) else 1].append(name)
  return turns


def _marks_of(names: Iterable[str]) -> set[str]:
  """Return the marks of the checkpoints that files belong to."""
  steps = (bucket_files.STEP_FILE.match(name) for name in names)
  return {f"{step[1]}/{bucket_files.MARK}" for step in steps if step is not None}
