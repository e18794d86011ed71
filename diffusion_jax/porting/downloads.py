"""Download the weights of others into the user's cache."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from diffusion_jax.core import progress
from diffusion_jax.core.files import bucket_path, cache_folder, locked
from diffusion_jax.types import UserError

HUB, WEB = "hf:", ("https://", "http://")

BLOCK = 1 << 20
PATIENCE_SEC = 30.0

WEIGHTS = (
  "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin",
  "pytorch_model.bin",
)  # fmt: skip
"""Files of weights in a repository's folder; the first one there is downloaded."""


def fetch_source(text: str) -> Path:
  """Return the local file or folder of a source, downloaded if it is elsewhere.

  Args:
    text: a path, an address of a bucket, https://..., or hf:OWNER/NAME of Hugging Face, with
      @REVISION after the name for another than the newest.

  Raises:
    UserError: it cannot be downloaded.
  """
  if text.startswith(HUB):
    return _from_hub(text)
  if text.startswith(WEB):
    return _from_web(text)
  return bucket_path(text)


def check_sha256(path: Path, wanted: str | None) -> None:
  """Compare a file with its checksum.

  Raises:
    UserError: it differs; or the source is a folder.
  """
  if wanted is None:
    return
  if not path.is_file():
    raise UserError(f"--sha256={wanted}: {path} is no file; its checksum cannot be compared")
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if found != wanted.lower():
    raise UserError(
      f"{path} has SHA-256 {found}, not {wanted}: it is another file, or damaged; delete it and "
      "get a copy"
    )


def _from_web(url: str) -> Path:
  """Download a file, or the rest of one that an interrupted download left."""
  folder = cache_folder() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
  name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
  target = folder / (name or "weights")
  folder.mkdir(parents=True, exist_ok=True)
  with locked(folder / "lock", patience_sec=3600.0):
    if not target.exists():
      part = folder / f"{target.name}.part"
      try:
        _download(url, part)
      except (OSError, http.client.HTTPException) as error:
        kept = f"; {part.stat().st_size:,} bytes are kept" if part.exists() else ""
        raise UserError(
          f"cannot download {url} ({_reason(error)}){kept}; try again, or give a file that you have"
        ) from error
      part.replace(target)
  return target


def _download(url: str, part: Path) -> None:
  """Append the bytes that a partial file lacks, if the server's file is still the same.

  Raises:
    OSError: the connection failed, or ended before the last byte.
  """
  version = part.with_suffix(".etag")
  begun = part.stat().st_size if part.exists() and version.exists() else 0
  headers = {"Range": f"bytes={begun}-", "If-Range": version.read_text()} if begun else {}
  request = urllib.request.Request(url, headers=headers)
  try:
    answer = urllib.request.urlopen(request, timeout=PATIENCE_SEC)
  except urllib.error.HTTPError as error:
    if error.code == 416 and begun:  # nothing is left, or the file became shorter
      if _total(error) == begun:
        return
      part.unlink()
      return _download(url, part)
    raise
  with answer:
    if begun and answer.status != 206:  # the server sends all of it
      begun = 0
    length = answer.headers.get("Content-Length", "")
    total = begun + int(length) if length.isdecimal() else None
    megabytes = None if total is None else total >> 20
    if tag := answer.headers.get("ETag") or answer.headers.get("Last-Modified"):
      version.write_text(tag)
    with (
      part.open("ab" if begun else "wb") as file,
      progress.phase(f"downloading {part.stem}", megabytes, "MiB", begun >> 20) as phase,
    ):
      while block := answer.read(BLOCK):
        file.write(block)
        phase.set(file.tell() >> 20)
      if total is not None and file.tell() != total:
        raise OSError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _total(error: urllib.error.HTTPError) -> int | None:
  """Return the size that a server gives with its refusal of a range."""
  text = (error.headers.get("Content-Range") or "").rpartition("/")[2]
  return int(text) if text.isdecimal() else None


def _reason(error: Exception) -> str:
  return str(getattr(error, "reason", None) or error) or type(error).__name__


def _from_hub(text: str) -> Path:
  """Download a repository's configs and one file of weights for each of its networks."""
  hub = _import_hub(text)
  name, _, revision = text.removeprefix(HUB).partition("@")
  try:
    info = hub.HfApi().model_info(name, revision=revision or None)
    files = wanted_files([entry.rfilename for entry in info.siblings])
    if not files:
      raise UserError(f"{text}: this repository has no weights and configs of diffusers")
    return Path(hub.snapshot_download(name, revision=info.sha, allow_patterns=files))
  except UserError:
    raise
  except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
    raise UserError(f"{text}: there is no such repository or revision, or it is private") from error
  except hub.errors.HFValidationError as error:
    raise UserError(f"{text}: must be hf:OWNER/NAME") from error
  except Exception as error:  # of its HTTP library, whichever it is
    raise UserError(
      f"{text} cannot be downloaded ({_first_line(error)}); try again, or give a folder that you "
      "have"
    ) from error


def wanted_files(files: Collection[str]) -> list[str]:
  """Return the configs of a repository of diffusers and one file of weights for each folder.

  Shards are taken with their index. Other precisions, demonstrations and pictures are left out.
  """
  chosen = [name for name in files if PurePosixPath(name).name in CONFIGS]
  for folder in sorted({str(PurePosixPath(name).parent) for name in files}):
    stem = "" if folder == "." else f"{folder}/"
    for weights in WEIGHTS:
      index = f"{stem}{weights}.index.json"
      if f"{stem}{weights}" in files:
        chosen.append(f"{stem}{weights}")
        break
      if index in files:
        base, _, end = weights.rpartition(".")
        own = [n for n in files if n.startswith(f"{stem}{base}-") and n.endswith(f".{end}")]
        chosen += [index, *own]
        break
  return chosen


CONFIGS = ("model_index.json", "config.json", "scheduler_config.json")


def check_upload(name: str) -> None:
  """Raise a UserError unless a folder can be uploaded to a repository of this name.

  Raises:
    UserError: no such name is possible, the hub's package is missing, or nobody is logged in.
  """
  hub = _import_hub(name)
  if name.count("/") != 1 or not all(name.split("/")):
    raise UserError(f"--push={name}: must be OWNER/NAME")
  try:
    hub.HfApi().whoami()
  except Exception as error:  # of its HTTP library, whichever it is
    reason = _first_line(error)
    raise UserError(f"--push={name}: {reason}; log in by `hf auth login`") from error


def upload_folder(folder: Path, name: str) -> str:
  """Upload a folder to a repository of Hugging Face, made if it is new; return its address.

  Raises:
    UserError: the upload failed; the folder stays.
  """
  hub = _import_hub(name)
  try:
    address = hub.HfApi().create_repo(name, exist_ok=True)
    hub.HfApi().upload_folder(
      repo_id=name, folder_path=folder, commit_message="Weights of diffusion_jax"
    )
  except Exception as error:  # of its HTTP library, whichever it is
    raise UserError(
      f"--push={name}: the upload failed ({_first_line(error)}); {folder} is complete, upload it "
      f"by `hf upload {name} {folder}`"
    ) from error
  return str(address)


def _first_line(error: Exception) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__


def _import_hub(text: str) -> Any:
  try:
    import huggingface_hub  # pyright: ignore[reportMissingImports]
    import huggingface_hub.errors  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError(
      f"{text} needs the package huggingface_hub: pip install 'diffusion_jax[hub]'"
    ) from None
  return huggingface_hub
