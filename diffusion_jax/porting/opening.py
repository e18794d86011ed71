"""Recognise given weights: a folder of diffusers, or a file of a known layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.porting import score_sde
from diffusion_jax.porting.diffusers_folder import is_diffusers, read_folder
from diffusion_jax.porting.dit_weights import DIT, SIT
from diffusion_jax.porting.edm_pickle import EDM_PICKLE
from diffusion_jax.porting.kl_weights import AUTOENCODER_KL_FILE, LATENT_DIFFUSION_KL
from diffusion_jax.porting.latent_source import with_autoencoder
from diffusion_jax.porting.layout import Content, FileLayout, Source, Tensors
from diffusion_jax.porting.openai_unet import OPENAI_UNETS
from diffusion_jax.porting.score_sde_modules import with_named_average
from diffusion_jax.porting.vdm_checkpoint import VDM
from diffusion_jax.types import UserError
from diffusion_jax.weight_files.weight_file import WeightFile, read_weights

FILE_LAYOUTS: tuple[FileLayout, ...] = (
  VDM, score_sde.FLAX, score_sde.TORCH, *OPENAI_UNETS, EDM_PICKLE, DIT, SIT, AUTOENCODER_KL_FILE,
  LATENT_DIFFUSION_KL,
)  # fmt: skip
"""Layouts of single files, the first that recognises the tensors' names is taken."""

IN_FOLDER = "diffusion_pytorch_model"
"""Start of the names of weights in folders of diffusers, beside which their config is."""

VAE = "vae"
"""Folder of a pipeline's autoencoder."""

LATENT_IMAGE_SIZE = 256

NUMBERED = re.compile(r"(?:ckpt-|checkpoint_)(\d+)(?:\.flax|\.pth)?")
"""Names of checkpoints of clu, flax and score_sde with their step or number."""

AVERAGES = ("ema", "ema_params", "params_ema", "model_ema", "state_dict", "model", "params")
"""Groups of a file that may hold the network, averages first."""


def open_source(
  path: Path,
  group: str | None = None,
  image_size: int | None = None,
  architecture: str | None = None,
  autoencoder: Path | None = None,
) -> Source:
  """Read the weights of another library.

  Args:
    path: a file of weights, or a folder of diffusers.
    group: key of the file's group of arrays to read; None: the averaged weights if there are any.
    image_size: side of the images, pixels, for files that do not tell it.
    architecture: name of the file's layout; None: the first that recognises the tensors' names.
    autoencoder: file or folder of the autoencoder that decodes a network's latents; None: that of
      the pipeline, if there is one.

  Raises:
    UserError: the file is missing, damaged or of an unknown architecture, one line.
  """
  source = _open_network(path, group, image_size, architecture)
  if autoencoder is None and path.is_dir() and (path / VAE).is_dir():
    autoencoder = path / VAE
  if autoencoder is None:
    return source
  # the side of the images follows from the latents
  return with_autoencoder(source, _open_network(autoencoder, None, LATENT_IMAGE_SIZE, None))


def _open_network(
  path: Path, group: str | None, image_size: int | None, architecture: str | None
) -> Source:
  if not path.exists():
    raise UserError(f"{path}: no such file or folder")
  if is_diffusers(path):
    return read_folder(path, image_size)
  if path.name.startswith(IN_FOLDER) and is_diffusers(path.parent):
    return read_folder(path.parent, image_size, path)
  path = _newest_checkpoint(path)
  read = read_weights(path)
  tensors, chosen = _group_of(read, group)
  entry = _entry_of(path, tensors, architecture)
  where = f"{path}" if chosen is None else f"{path} ({chosen})"
  facts = {**read.facts, **_numbers(read)}
  described = entry.describe(Content(tensors, facts, image_size, where))
  layout = described.layout or entry.layout
  file = {path.name: {"sha256": read.sha256, "bytes": path.stat().st_size}}
  origin = {"format": read.format, "architecture": layout.name, "files": file}
  origin |= {} if chosen is None else {"group": chosen}
  return Source(layout, described, tensors, origin, where)


def _newest_checkpoint(path: Path) -> Path:
  """Return the file of the highest step in a folder of numbered checkpoints; else the path."""
  files = sorted(path.iterdir()) if path.is_dir() else []
  steps = [(int(found[1]), file) for file in files if (found := NUMBERED.fullmatch(file.name))]
  return max(steps)[1] if steps else path


def _entry_of(path: Path, tensors: Tensors, architecture: str | None) -> FileLayout:
  """Return the layout that the user names, or the first that recognises the names of tensors."""
  known = ", ".join(entry.layout.name for entry in FILE_LAYOUTS)
  for entry in FILE_LAYOUTS:
    if architecture == entry.layout.name:
      return entry
    if architecture is None and entry.recognises(tensors.keys()):
      return entry
  if architecture is not None:
    raise UserError(f"--architecture={architecture}: must be one of {known}")
  first = ", ".join(list(tensors)[:3])
  raise UserError(
    f"{path}: an unknown architecture (its first tensors are {first}); known are {known}, and "
    "folders of diffusers"
  )


def _numbers(read: WeightFile) -> dict[str, Any]:
  """Return the outermost entries that are arrays of one number, as JAX's states have them."""
  return {name: array.item() for name, array in read.arrays.items() if array.shape == ()}


def _group_of(read: WeightFile, group: str | None) -> tuple[Tensors, str | None]:
  """Return the arrays to read and the key of their group, None for all of the file."""
  groups: Mapping[str, Tensors] = {name: found for name, found in read.groups.items() if found}
  groups = with_named_average(groups, str(read.path))
  if group is not None:
    if group not in groups:
      known = f"; it has {', '.join(groups)}" if groups else ", and no groups at all"
      raise UserError(f"--group={group}: {read.path} has no such group{known}")
    return groups[group], group
  for name in AVERAGES:
    if name in groups:
      return groups[name], name
  return read.arrays, None
