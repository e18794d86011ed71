"""Failures of storage: kind, place, free space, and advice.

A full disk, a quota, a size limit or a lost mount cannot be fixed by a restart. The relevant error
may be the cause or the context of another one, and libraries write its number into their texts.
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

ADVICE = {
  errno.ENOSPC: "free space there",
  errno.EDQUOT: "free space there, or ask for a larger quota",
  errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use another file system",
  errno.EROFS: "mount it for writing",
  errno.EACCES: "give this user the right to use it",
  errno.EPERM: "give this user the right to use it",
  errno.EIO: "the disk or its connection fails (see dmesg): repair it, or use another",
  errno.ESTALE: "mount it again",
  errno.ENODEV: "mount it again",
  errno.EMFILE: "let a process open more files (ulimit -n)",
  errno.ENFILE: "let the machine open more files (sysctl fs.file-max)",
  errno.EMLINK: "delete what is not needed there: the folder is full",
  errno.ENAMETOOLONG: "choose a shorter path",
}
"""Errors that only the user can fix, with advice for each."""

SPARED = {
  errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV,
  errno.ENOTCONN, errno.ETIMEDOUT, errno.EINTR,
}  # fmt: skip
"""Read errors that do not depend on the content, which may be intact."""

IN_TEXT = re.compile(r"\[os_error_code='(\d+)'|\[Errno (\d+)\]")
WORDS = {os.strerror(n).lower(): n for n in sorted(ADVICE, key=lambda n: -len(os.strerror(n)))}
SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")
"""NumPy's message for an incomplete write, which has no error number."""

UNREADABLE = {
  "OUT_OF_RANGE": "a file of it is cut short",
  "NOT_FOUND": "a file of it is missing",
  "DATA_LOSS": "a file of it is damaged",
  "FAILED_PRECONDITION": "a file of it is damaged",
  "INVALID_ARGUMENT": "a file of it is damaged",
}
"""Status with which TensorStore refuses a checkpoint -> the reason in plain words."""

UNREACHED = re.compile(
  r"\b(ABORTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
)
"""Status with which TensorStore reports that it could not reach or use a bucket."""

OF_BUCKETS = {"gcsfs", "google", "aiohttp", "aiobotocore", "botocore", "azure"}
"""Packages whose errors are those of reaching or using a bucket."""

MISPLACED = {
  errno.ENOENT: "a file of it is missing",
  errno.ENOTDIR: "a file stands where a folder of it belongs",
  errno.EISDIR: "a folder stands where a file of it belongs",
}
"""Error of reading a checkpoint's files -> the reason in plain words."""

PATH = re.compile(r"""(?<![\w.])/[^\s"':,;()]+""")


class Trouble(NamedTuple):
  """A failure of storage.

  Attributes:
    number: number of the error, as in `errno`.
    path: file or folder, if known.
  """

  number: int
  path: Path | None


def chain(error: BaseException) -> Iterator[BaseException]:
  """Yield an error and its origins: causes, contexts, and the members of groups."""
  todo, seen = [error], set()
  while todo:
    one = todo.pop(0)
    if id(one) in seen:
      continue
    seen.add(id(one))
    yield one
    context = None if one.__suppress_context__ else one.__context__
    members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
    todo += [e for e in (one.__cause__, *members, context) if e is not None]


def find(error: BaseException, every: bool = False) -> Trouble | None:
  """Return the first failure of storage in an error's chain, or None.

  Args:
    error: error whose causes, contexts and members are searched too.
    every: accept any error number of the operating system, not only those in `ADVICE`.
  """
  coded = [(code, one) for one in chain(error) if (code := _number(one)) is not None]
  coded.sort(key=lambda row: not isinstance(row[1], OSError))  # these have a path
  known = [row for row in coded if row[0] in ADVICE]
  return next((Trouble(code, _path(one)) for code, one in known or coded[:every]), None)


def _number(error: BaseException) -> int | None:
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno
  text = str(error)
  if (match := IN_TEXT.search(text)) is not None:
    return int(match[1] or match[2])
  if SHORT_WRITE.match(text):
    return errno.ENOSPC
  if isinstance(error, jax.errors.JaxRuntimeError):  # from a device
    return None
  return next((code for words, code in WORDS.items() if words in text.lower()), None)


def _path(error: BaseException) -> Path | None:
  name = getattr(error, "filename", None)
  if isinstance(name, str | os.PathLike):
    return Path(os.fspath(name))
  named = PATH.findall(str(error))
  return Path(named[-1]) if named else None


def explain_storage(error: BaseException, folder: Path | None = None) -> str | None:
  """Describe a failure of storage in one line (path, free space, advice), or return None.

  Args:
    error: error whose causes, contexts and members are searched too.
    folder: folder that was written or read, named instead of its files; with it any error number of
      the operating system counts.
  """
  trouble = find(error, every=folder is not None)
  if trouble is None:
    return None
  path = trouble.path
  if folder is not None and (path is None or folder.absolute() in path.absolute().parents):
    path = folder
  where = "" if path is None else f": {path}{_room(path)}"
  advice = ADVICE.get(trouble.number, "make sure that the folder exists and can be used")
  if path is None:
    advice = advice.replace(" there", "")
  return f"{os.strerror(trouble.number)}{where}; {advice}, then start the same command again"


def _room(path: Path) -> str:
  """Return the free space at a path in words; empty if it is unknown."""
  for folder in (path.absolute(), *path.absolute().parents):
    try:
      disk = os.statvfs(folder)
    except FileNotFoundError:
      continue
    except OSError:
      return ""
    free, whole = (size(n * disk.f_frsize) for n in (disk.f_bavail, disk.f_blocks))
    files = ", and no more files fit" if disk.f_files and not disk.f_favail else ""
    return f" ({free} of {whole} free{files})"
  return ""


def size(num_bytes: int) -> str:
  """Format bytes: 812 B, 4.1 MB or 1,234.0 GB."""
  if num_bytes < 1000:
    return f"{num_bytes} B"
  power = 1 if num_bytes < 1e6 else 2 if num_bytes < 1e9 else 3
  return f"{num_bytes / 1000**power:,.1f} {('kB', 'MB', 'GB')[power - 1]}"


def spares_content(error: BaseException) -> bool:
  """Return whether an unreadable file may be intact: the fault is the process's or mount's."""
  trouble = find(error, every=True)
  return (trouble is not None and trouble.number in SPARED) or could_not_reach(error)


def could_not_reach(error: BaseException) -> bool:
  """Return whether a bucket could not be reached or used, which is no fault of its files."""
  return any(
    isinstance(one, ConnectionError | TimeoutError)
    or type(one).__module__.partition(".")[0] in OF_BUCKETS
    or UNREACHED.search(str(one))
    for one in chain(error)
    if not isinstance(one, jax.errors.JaxRuntimeError)  # of devices and processes
  )


def numbered_reason(error: BaseException) -> str:
  """Return the reason of a failed save with the error's number, for the other processes."""
  trouble = find(error, every=True)
  return f"[Errno {trouble.number}] {reason(error)}" if trouble else reason(error)


def reason(error: BaseException) -> str:
  """Return the reason of a failed read in one line, from the error's first cause."""
  if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
    return "its metadata is truncated or not JSON"
  if (trouble := find(error, every=True)) is not None:
    location = f": {trouble.path}" if trouble.path else ""
    return f"{MISPLACED.get(trouble.number) or os.strerror(trouble.number)}{location}"
  *_, first = chain(error)
  text = str(first).strip().splitlines() or [type(first).__name__]
  status = text[0].partition(":")[0]
  return UNREADABLE.get(status) or text[0][:200]
