"""Find, check and convert the weights of DINOv2 and CLIP.

`python -m diffusion_jax.prepare dinov2 FILE.pth` reads a PyTorch file without executing anything in
it and stores the arrays of the image network as an .npz, with the SHA-256 of the file and one of
the arrays.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import files, npz
from diffusion_jax.models.vision.transformer import CLIP, DINOV2, VisionRecipe
from diffusion_jax.models.vision.vision_keys import from_state, our_names
from diffusion_jax.types import Params, UserError
from diffusion_jax.weight_files.torch_file import read_state_dict


class PublishedFile(NamedTuple):
  """A file of weights as its authors publish it."""

  url: str
  size: int
  sha256: str


PUBLISHED_FILES: Mapping[str, PublishedFile] = {
  "dinov2": PublishedFile(
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    1_217_586_395,
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
  ),
  "clip": PublishedFile(
    "https://huggingface.co/openai/clip-vit-large-patch14-336/resolve/main/pytorch_model.bin",
    1_711_974_081,
    "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
  ),
}
"""Name of the network -> its published file; both are ViT-L/14."""

RECIPES = {recipe.name: recipe for recipe in (DINOV2, CLIP)}
MAX_BYTES = 8 * 1024**3
FACTS = "facts"


class VisionWeights(NamedTuple):
  """A network's weights and their source.

  Attributes:
    params: parameters for `vision_features`.
    sha256: SHA-256 of the PyTorch file that they come from.
    is_published: true if that is the published file.
  """

  params: Params
  sha256: str
  is_published: bool


def vision_path(recipe: VisionRecipe) -> Path:
  """Return the prepared file in the user's cache."""
  return files.cache_folder() / recipe.name / "weights.npz"


def prepare_vision(name: str, source: Path | None) -> str:
  """Convert a PyTorch file, store it in the user's cache and return a line about it.

  Args:
    name: "dinov2" or "clip".
    source: the file; required, since nothing is downloaded.

  Raises:
    UserError: no file, another network, or a cache that cannot be written.
  """
  recipe = RECIPES[name]
  if source is None:
    raise UserError(f"prepare {name} needs its file: {_cure(recipe)}")
  state, sha256 = _from_torch(source, recipe)
  from_state(state, recipe, str(source))  # raises before anything is written
  target = vision_path(recipe)
  facts = json.dumps({"source": sha256, "arrays": npz.arrays_digest(state)})
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(target) as file:
      np.savez(file, allow_pickle=False, **{FACTS: np.array(facts)}, **state)
  except OSError as error:
    raise UserError(f"{target} cannot be written ({error}); set XDG_CACHE_HOME") from error
  if sha256 == PUBLISHED_FILES[name].sha256:
    return f"{target}, from the published file (its SHA-256 agrees)"
  return (
    f"{target}; its SHA-256 {sha256} is not that of the published file, so its metrics are named "
    f"fd_{name}_{sha256[:8]}, ..."
  )


def load_vision_weights(recipe: VisionRecipe, path: Path | None = None) -> VisionWeights:
  """Read and check weights.

  Args:
    recipe: the network.
    path: the PyTorch file or the .npz made from it; None: the one in the user's cache.

  Raises:
    UserError: the file is missing, damaged, or of another network.
  """
  path = vision_path(recipe) if path is None else path
  if not path.is_file():
    raise UserError(
      f"fd_{recipe.name}: there are no weights at {path}; run diffusion-jax prepare {recipe.name} "
      "FILE"
    )
  state, sha256 = (_unpack if path.suffix == ".npz" else _from_torch)(path, recipe)
  is_published = sha256 == PUBLISHED_FILES[recipe.name].sha256
  return VisionWeights(from_state(state, recipe, str(path)), sha256, is_published)


def _from_torch(path: Path, recipe: VisionRecipe) -> tuple[dict[str, np.ndarray], str]:
  """Return a PyTorch file's arrays under our names, and its SHA-256."""
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UserError(f"{path} has more than {MAX_BYTES:,} bytes: it is another file")
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); {_cure(recipe)}") from error
  try:
    state = read_state_dict(data, str(path))
  except UserError as error:
    raise UserError(f"{error}: {_cure(recipe)}") from error
  renamed = our_names(state, recipe)
  return {n: np.ascontiguousarray(a, np.float32) for n, a in renamed.items()}, _sha256(data)


def _unpack(path: Path, recipe: VisionRecipe) -> tuple[dict[str, np.ndarray], str]:
  """Return the arrays of a prepared file, and the SHA-256 of the PyTorch file."""
  arrays = npz.read_npz(path, str(path), cure=_cure(recipe))
  try:
    facts = json.loads(str(arrays.pop(FACTS)))
    is_whole = facts["arrays"] == npz.arrays_digest(arrays)
    source = str(facts["source"])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} holds no weights of {recipe.name}; {_cure(recipe)}") from error
  if not is_whole:
    raise UserError(f"{path} is damaged: its SHA-256 does not agree; {_cure(recipe)}")
  return arrays, source


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _cure(recipe: VisionRecipe) -> str:
  file = PUBLISHED_FILES[recipe.name]
  return (
    f"run diffusion-jax prepare {recipe.name} FILE with {file.url} ({file.size:,} bytes, SHA-256 "
    f"{file.sha256})"
  )
