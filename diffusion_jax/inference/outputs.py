"""Images that a program makes, kept batch by batch until one file or folder holds them all.

The finished batches are in `.NAME.parts` beside the file, or `.parts` in the folder, with the
settings that they were made with: after a kill the same command goes on, another one is refused.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import files, wording
from diffusion_jax.data.pictures import UNFINISHED
from diffusion_jax.data.progress import check_asked
from diffusion_jax.inference import draw
from diffusion_jax.inference import restore as restoring
from diffusion_jax.runs import signals
from diffusion_jax.runs.experiment import COMMON, Experiment
from diffusion_jax.runs.resumable import Arrays, Chunks, pieces
from diffusion_jax.runs.workdir import LOCK_PATIENCE_SEC
from diffusion_jax.types import GenerativeModel, UserError

Facts = Mapping[str, Any]

LOCK = ".lock"


def parts_folder(out: Path) -> Path:
  """Return the folder of an unfinished output's batches: beside a file, inside a folder."""
  return out.with_name(f".{out.name}.parts") if out.suffix else out / UNFINISHED


def check_out(out: Path) -> None:
  """Refuse a place that cannot be written, or a folder with something in it.

  Raises:
    UserError: what is wrong with it.
  """
  if out.suffix not in (".png", ".npz", ""):
    raise UserError(f"--out={out}: use a name ending in .png or .npz, or a folder without a dot")
  if out.suffix:
    files.check_file(out)
  else:
    files.make_writable(out, f"--out={out}")
  files.check_own_folder(parts_folder(out), f"--out={out}")
  if out.suffix or parts_folder(out).is_dir():
    return
  if any(file.name != LOCK for file in out.iterdir()):
    raise UserError(f"--out={out}: the folder is not empty; choose another or empty it")


def lock_file(out: Path) -> Path:
  """Return the file that is locked while an output is written: beside a file, inside a folder."""
  return out.with_name(f".{out.name}.lock") if out.suffix else out / LOCK


@contextlib.contextmanager
def writing(
  out: Path, check: Callable[[Path], None] = check_out, file: Path | None = None
) -> Iterator[None]:
  """Keep other commands from writing the same output meanwhile, and stop between batches.

  All processes of a job must call it.

  Args:
    out: of the command.
    check: refuses a place that cannot be written, and makes the lock's folder.
    file: to lock; by default `lock_file`.

  Raises:
    UserError: from `check`, or another command is writing there.
  """
  with contextlib.ExitStack() as stack:

    def claim() -> None:
      check(out)
      _lock(stack, out, file or lock_file(out))
      check(out)  # another command may have finished there meanwhile

    parallel.on_process_0(claim)
    stack.enter_context(signals.stops_between_pieces("the same command goes on where it was"))
    yield


def _lock(stack: contextlib.ExitStack, out: Path, file: Path) -> None:
  # A job that was started again may find its predecessor's process 0 still dying on another host.
  patience = LOCK_PATIENCE_SEC if jax.process_count() > 1 else 0.0
  try:
    outcome = stack.enter_context(files.locked(file, patience))
  except OSError as error:
    raise UserError(f"--out={out}: {file} cannot be written ({error.strerror}); delete it, or "
                    "choose another --out") from error  # fmt: skip
  if outcome == "held":
    raise UserError(f"another command is writing --out={out}; wait for it or choose another --out")
  if outcome == "not supported":
    print(f"{out}: this file system has no locks; start no second command for it", flush=True)


def asked_for(
  args: Any, names: Sequence[str], experiment: Experiment, also: Sequence[str] = ()
) -> dict[str, Any]:
  """Return the settings beside the weights that images depend on: flags and sampling.

  Args:
    args, names: flags, and which of them count.
    experiment: whose model and sampler count.
    also: further sections of its config that do.
  """
  flags = {name: getattr(args, name) for name in names}
  fields = {
    f"{name}.{field}": value
    for name, section in experiment.to_dict().items()
    if name in ("generative", *also) or name not in COMMON
    for field, value in section.items()
  }
  return {**{n: str(v) if isinstance(v, Path) else v for n, v in flags.items()}, **fields}


def left_over(out: Path, asked: Facts) -> dict[str, Any] | None:
  """Return the facts of an unfinished output that the same command has left; a collective.

  Args:
    out: of the command.
    asked: what its images depend on, but for the weights; JSON values.

  Raises:
    UserError: another command has left it.
  """

  def read() -> dict[str, Any] | None:
    folder = parts_folder(out)
    try:
      facts = json.loads((folder / "facts.json").read_text())
      theirs = dict(facts["asked"])
    except (OSError, ValueError, KeyError, TypeError):
      return None
    is_begun = any(folder.glob("[0-9]*.npz"))
    return facts if check_asked(out, folder, theirs, asked, is_begun) else None

  return parallel.first_says(read)


def restore_for_output(
  workdir: Path, step: int | None, left: Facts | None, mesh: Mesh, generative: GenerativeModel,
  average: restoring.Average,
) -> restoring.Weights:  # fmt: skip
  """Restore as `restore_weights`; for the latest step, that of `left_over` while it is there."""
  if left is not None and step is None:
    directory = restoring.folder_of(workdir, left["step"], average)
    try:
      return restoring.restore_weights(workdir, left["step"], mesh, generative, average)
    except UserError:
      if parallel.broadcast_object(left["step"] in store.saved_steps(directory)):
        raise
  return restoring.restore_weights(workdir, step, mesh, generative, average)


def make(
  out: Path, facts: Facts, num: int, size: int, compute: Callable[[int], Arrays], words: str
) -> Chunks:
  """Compute all batches that are not there yet, each written as it comes.

  Args:
    out: the output to be.
    facts: "asked", see `left_over`, and what else the batches depend on; batches of other facts
      are deleted.
    num: images in all.
    size: images of a batch.
    compute: number of the first image -> arrays of at least the batch's images.
    words: what is counted, for the bar.

  Returns:
    The batches, on process 0's disk.
  """
  folder = parts_folder(out)
  parallel.on_process_0(lambda: _sweep(folder, facts))
  chunks = Chunks(folder, facts, is_shared=False)
  bar = wording.Bar(words, num, active=parallel.is_first())
  try:
    for number, first, count in pieces(num, size):
      chunks.ensure(number, count, lambda first=first: compute(first))
      bar.advance(first + count)
  except UserError:
    if parallel.is_first() and not any(folder.glob("[0-9]*.npz")):
      _remove(folder)
    raise
  finally:
    bar.close()
  return chunks


def _sweep(folder: Path, facts: Facts) -> None:
  """Delete batches of other facts."""
  try:
    same = json.loads((folder / "facts.json").read_text()) == json.loads(json.dumps(facts))
  except (OSError, ValueError):
    same = False
  if not same and folder.exists():
    if any(folder.glob("[0-9]*.npz")):
      print(
        f"{folder} holds a part made from other weights or images, which are gone: starting over"
      )
    _remove(folder)


def write_grid(
  out: Path, facts: Facts, num: int, size: int, compute: Callable[[int], Arrays],
  rows_of: Callable[[np.ndarray], Sequence[np.ndarray]], columns: int,
) -> None:  # fmt: skip
  """Write one picture of images that are computed as by `make`.

  Args:
    out, facts, num, size, compute: as there; the images' array is "images".
    rows_of: all of these images -> the images of each kind of rows, which take turns.
    columns: of the grid.
  """
  chunks = make(out, facts, num, size, compute, "images")

  def put_together() -> None:
    batches = [chunks.read(number, count)["images"] for number, _, count in pieces(num, size)]
    rows = draw.rows_in_turn(rows_of(np.concatenate(batches)), columns)
    files.write_png(out, files.image_grid(rows, columns))
    _remove(chunks.folder)

  parallel.on_process_0(put_together)


def hash_of(*arrays: Any) -> str:
  """Return a short hash of arrays that are given, which may change under one name."""
  contents = (b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays)
  return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def _remove(folder: Path) -> None:
  """Delete a folder of batches: it is whole or gone, whenever this is cut off."""
  gone = folder.with_name(f"{folder.name}.gone")
  shutil.rmtree(gone, ignore_errors=True)  # by a process that was killed
  with contextlib.suppress(OSError):
    folder.rename(gone)
  for left in (gone, folder):
    shutil.rmtree(left, ignore_errors=True)


def finish(out: Path, chunks: Chunks, num: int, size: int, columns: int) -> None:
  """Put batches of images and labels together as the output, and delete them; for process 0.

  Args:
    out: a .png (one grid), an .npz (arrays images, labels) or a folder (one PNG an image).
    chunks: from `make`.
    num, size: as there.
    columns: of a grid.
  """
  batches = (chunks.read(number, count) for number, _, count in pieces(num, size))
  if out.suffix == ".png":
    files.write_png(
      out, files.grid_of((i for batch in batches for i in batch["images"]), num, columns)
    )
  elif out.suffix == ".npz":
    write_npz(out, batches, num)
  else:
    for number, image in enumerate(image for batch in batches for image in batch["images"]):
      files.write_png(out / f"{number:06d}.png", image)
  _remove(chunks.folder)


def write_npz(out: Path, batches: Iterator[Arrays], num: int) -> None:
  """Write an .npz with the arrays images and labels, holding one batch at a time."""
  part, labels = parts_folder(out) / "whole.npz", []
  part.unlink(missing_ok=True)  # by a process that was killed, or a link
  with files.naming(out), part.open("xb") as whole, zipfile.ZipFile(whole, "w") as archive:
    with archive.open(_member("images.npy"), "w", force_zip64=True) as file:
      for batch in batches:
        if not labels:
          _write_header(file, (num, *batch["images"].shape[1:]), np.dtype(np.uint8))
        file.write(np.ascontiguousarray(batch["images"]).data)
        labels.append(batch["labels"].astype(np.int32))
    with archive.open(_member("labels.npy"), "w", force_zip64=True) as file:
      np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
  os.replace(part, out)


def _member(name: str) -> zipfile.ZipInfo:
  """A compressed file of an archive, without the time: the same images are the same bytes."""
  member = zipfile.ZipInfo(name)
  member.compress_type = zipfile.ZIP_DEFLATED
  return member


def _write_header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
  header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
