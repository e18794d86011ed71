"""Store a command's images batch by batch until one file or folder holds them all.

Finished batches are kept in `.NAME.parts` beside the file, or in `.parts` inside the folder, with
the settings they were made with. After a kill, the same command continues; another is refused.
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
from diffusion_jax.core import files, progress
from diffusion_jax.core.class_names import in_file_name
from diffusion_jax.core.picture_grid import grid_of, image_grid, label_captions
from diffusion_jax.data.pictures import UNFINISHED
from diffusion_jax.data.unfinished import check_asked
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
  """Raise a UserError if the output cannot be written or is a folder that is not empty.

  Raises:
    UserError: the path is not usable, with the reason.
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
  """Return the lock file of an output: beside a file, inside a folder."""
  return out.with_name(f".{out.name}.lock") if out.suffix else out / LOCK


@contextlib.contextmanager
def writing(
  out: Path, check: Callable[[Path], None] = check_out, file: Path | None = None
) -> Iterator[None]:
  """Lock the output while it is written, and stop between batches on a signal.

  All processes of a job must call it.

  Args:
    out: the output path of the command.
    check: raises a UserError if the path cannot be written, and creates the lock's folder.
    file: the lock file; by default `lock_file(out)`.

  Raises:
    UserError: `check` failed, or another command is writing there.
  """
  with contextlib.ExitStack() as stack:

    def claim() -> None:
      check(out)
      _lock(stack, out, file or lock_file(out))
      check(out)  # another command may have finished there meanwhile

    parallel.on_process_0(claim)
    stack.enter_context(signals.stops_between_pieces("the same command continues"))
    yield


def _lock(stack: contextlib.ExitStack, out: Path, file: Path) -> None:
  # When a job restarts, process 0 of the previous attempt may still be exiting on another host.
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
  """Return the settings other than the weights that determine the images.

  Args:
    args, names: the flags, and the names of those that matter.
    experiment: the experiment whose model and sampler matter.
    also: further sections of its config that matter.
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
  """Return the facts of an unfinished output of the same command, or None; a collective.

  Args:
    out: the output path of the command.
    asked: everything but the weights that determines the images; JSON values.

  Raises:
    UserError: the unfinished output was made by a different command.
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
  """Restore weights; for the latest step, use that of an unfinished output if there is one."""
  if left is not None and step is None:
    directory = restoring.folder_of(workdir, left["step"], average)
    try:
      return restoring.restore_weights(workdir, left["step"], mesh, generative, average)
    except UserError:
      if parallel.broadcast_object(left["step"] in store.saved_steps(directory)):
        raise
  return restoring.restore_weights(workdir, step, mesh, generative, average)


def make(
  out: Path, facts: Facts, num_images: int, size: int, compute: Callable[[int], Arrays], words: str
) -> Chunks:
  """Compute all missing batches and write each one when it is done.

  Args:
    out: the output path.
    facts: "asked" (see `left_over`) and everything else that determines the batches; batches with
      different facts are deleted.
    num_images: total number of images.
    size: images per batch.
    compute: (index of the first image) -> arrays with at least one batch of images.
    words: name of the work, for the progress bar.

  Returns:
    The batches, on process 0's disk.
  """
  folder = parts_folder(out)
  parallel.on_process_0(lambda: _sweep(folder, facts))
  chunks = Chunks(folder, facts, is_shared=False)
  try:
    with progress.phase(words, num_images, "images") as phase:
      for chunk, first, count in pieces(num_images, size):
        chunks.ensure(chunk, count, lambda first=first: compute(first))
        phase.set(first + count)
  except UserError:
    if parallel.is_first() and not any(folder.glob("[0-9]*.npz")):
      _remove(folder)
    raise
  return chunks


def _sweep(folder: Path, facts: Facts) -> None:
  """Delete batches that were made with different facts."""
  try:
    same = json.loads((folder / "facts.json").read_text()) == json.loads(json.dumps(facts))
  except (OSError, ValueError):
    same = False
  if not same and folder.exists():
    if any(folder.glob("[0-9]*.npz")):
      print(f"{folder} has a part made from other weights or images, now gone: starting over")
    _remove(folder)


def write_grid(
  out: Path, facts: Facts, num_images: int, size: int, compute: Callable[[int], Arrays],
  rows_of: Callable[[np.ndarray], Sequence[np.ndarray]], columns: int,
  captions: Sequence[str] = (),
) -> None:  # fmt: skip
  """Write one PNG grid of images that are computed as in `make`.

  Args:
    out, facts, num_images, size, compute: as in `make`; the array of images is named "images".
    rows_of: (all of these images) -> the images of each kind of row; the rows alternate.
    columns: number of columns of the grid.
    captions: text above each image of a kind of row, the same for every kind.
  """
  chunks = make(out, facts, num_images, size, compute, "drawing")

  def put_together() -> None:
    batches = [chunks.read(chunk, count)["images"] for chunk, _, count in pieces(num_images, size)]
    rows = rows_of(np.concatenate(batches))
    texts = draw.captions_in_turn(captions, len(rows), columns)
    files.write_png(out, image_grid(draw.rows_in_turn(rows, columns), columns, texts))
    _remove(chunks.folder)

  parallel.on_process_0(put_together)


def hash_of(*arrays: Any) -> str:
  """Return a short hash of input arrays, whose content may change under the same file name."""
  contents = (b"" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays)
  return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def _remove(folder: Path) -> None:
  """Delete a folder of batches; renamed first, so that it is never left incomplete."""
  gone = folder.with_name(f"{folder.name}.gone")
  shutil.rmtree(gone, ignore_errors=True)  # left by a process that was killed
  with contextlib.suppress(OSError):
    folder.rename(gone)
  for left in (gone, folder):
    shutil.rmtree(left, ignore_errors=True)


def finish(
  out: Path, chunks: Chunks, num_images: int, size: int, columns: int, names: Sequence[str] = ()
) -> None:
  """Combine batches of images and labels into the output and delete them; for process 0.

  Args:
    out: a .png (one grid), an .npz (arrays images, labels; class_names if there are some) or a
      folder (one PNG per image, whose name ends in that of its class).
    chunks: batches from `make`.
    num_images, size: as in `make`.
    columns: number of columns of a grid.
    names: names of the classes; empty: numbers.
  """
  batches = (chunks.read(number, count) for number, _, count in pieces(num_images, size))
  if out.suffix == ".png":
    labels = [chunks.read(n, count)["labels"] for n, _, count in pieces(num_images, size)]
    texts = label_captions(np.concatenate(labels), names)
    images = (image for batch in batches for image in batch["images"])
    files.write_png(out, grid_of(images, num_images, columns, texts))
  elif out.suffix == ".npz":
    write_npz(out, batches, num_images, names)
  else:
    pairs = ((i, x) for b in batches for i, x in zip(b["images"], b["labels"], strict=True))
    for number, (image, label) in enumerate(pairs):
      ending = f"_{in_file_name(int(label), names)}" if names and label >= 0 else ""
      files.write_png(out / f"{number:06d}{ending}.png", image)
  _remove(chunks.folder)


def write_npz(
  out: Path, batches: Iterator[Arrays], num_images: int, names: Sequence[str] = ()
) -> None:
  """Write an .npz with images, labels and class_names (if any), holding one batch at a time."""
  part, labels = parts_folder(out) / "whole.npz", []
  part.unlink(missing_ok=True)  # left by a process that was killed, or a link
  with files.naming(out), part.open("xb") as whole, zipfile.ZipFile(whole, "w") as archive:
    with archive.open(_member("images.npy"), "w", force_zip64=True) as file:
      for batch in batches:
        if not labels:
          shape = (num_images, *batch["images"].shape[1:])
          header = {"descr": "|u1", "fortran_order": False, "shape": shape}
          np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(batch["images"]).data)
        labels.append(batch["labels"].astype(np.int32))
    with archive.open(_member("labels.npy"), "w", force_zip64=True) as file:
      np.lib.format.write_array(file, np.concatenate(labels), allow_pickle=False)
    if names:
      with archive.open(_member("class_names.npy"), "w") as file:
        np.lib.format.write_array(file, np.array(names), allow_pickle=False)
  os.replace(part, out)


def _member(name: str) -> zipfile.ZipInfo:
  """Return a compressed archive member without a timestamp: same images, same bytes."""
  member = zipfile.ZipInfo(name)
  member.compress_type = zipfile.ZIP_DEFLATED
  return member
