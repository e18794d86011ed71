"""Features of a data set's own: a sample metric that needs no download.

The classifier is trained once, on one device, on the training split only. It is kept in a file in
the user's cache, so that the same network measures all runs on the same data. Its metrics are named
after the data, e.g. fd_digits, and never fid. A data set without labels has random features.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.core import files, npz, progress, rng
from diffusion_jax.core.pixels import as_pictures
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.trees import named_leaves, nested
from diffusion_jax.data import Source, TrainStream, fingerprint, full_pass
from diffusion_jax.extractors import random_features
from diffusion_jax.extractors.base import Extractor
from diffusion_jax.models import Classifier
from diffusion_jax.types import ImageSpec, Keys, UserError

FORMAT = 1


class Recipe(NamedTuple):
  """Settings of the classifier's training; they are stored in its file.

  Attributes:
    num_steps, batch_size, learning_rate: settings of Adam with a cosine schedule.
    shift: maximum random shift of each image in each direction, pixels.
    seed: seed of weights, order and shifts.
  """

  num_steps: int = 400
  batch_size: int = 128
  learning_rate: float = 2e-3
  shift: int = 1
  seed: int = 0


def data_name(source: Source) -> str:
  """Return the data set's name without its split, in letters that a metric's name may have."""
  return re.sub(r"\W+", "_", source.name.rpartition(" ")[0] or source.name).strip("_").lower()


def default_features_path(source: Source) -> Path:
  """Return the path of a training split's features: its classifier, or random convolutions."""
  made = f"draws{rng.DRAWS}" if source.spec.num_classes else f"random{random_features.VERSION}"
  name = f"{data_name(source)}-{fingerprint(source)}-{made}.npz"
  return files.cache_folder() / "features" / name


def train_domain(train: Source, test: Source | None, path: Path, recipe: Recipe) -> Extractor:
  """Train the classifier of a data set, or standardise random features, and write its file.

  Args:
    train: training split.
    test: split on which the accuracy is computed, if any.
    path: path of the file, which is replaced in one move.
    recipe: settings of the training.

  Raises:
    UserError: the file cannot be written.
  """
  if not train.spec.num_classes:
    return _write_random(train, path)
  params = _train(train, recipe)
  facts = {
    "format": FORMAT,
    "network": "classifier of the data set, last hidden layer",
    "data": data_name(train),
    "fingerprint": fingerprint(train),
    "spec": train.spec._replace(fields={}).to_json(),
    "recipe": recipe._asdict(),
    "draws": rng.DRAWS,
    "accuracy": None if test is None else _accuracy(params, test),
    "resize": "none",
    "input": "k / 127.5 - 1 of levels 0..255",
  }
  flat = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
  _write(path, flat, facts)
  return load_domain(path)


def _write_random(train: Source, path: Path) -> Extractor:
  facts = {
    "format": FORMAT,
    "network": random_features.NETWORK,
    "version": random_features.VERSION,
    "data": data_name(train),
    "fingerprint": fingerprint(train),
    "spec": train.spec._replace(fields={}).to_json(),
    "accuracy": None,
    "resize": "none",
    "input": "k / 127.5 - 1 of levels 0..255",
  }
  _write(path, random_features.random_weights(train), facts)
  return load_domain(path)


def load_domain(path: Path) -> Extractor:
  """Read a file from `train_domain`: of a classifier, or of random convolutions.

  Raises:
    UserError: the file is missing, damaged or of another kind.
  """
  if not path.is_file():
    raise UserError(
      f"--features={path}: no such file; make one: python -m diffusion_jax.features --config=..."
    )
  cure = "delete it and make it again: python -m diffusion_jax.features --config=..."
  arrays = npz.read_npz(path, f"--features={path}", cure=cure)
  try:
    facts = json.loads(str(arrays.pop("facts")))
    sha256 = arrays.pop("sha256").item()
    if facts["format"] != FORMAT or sha256 != _digest(arrays, facts):
      raise ValueError("its hash does not hold")
    spec = ImageSpec.from_json(facts["spec"])
  except Exception as error:
    raise UserError(
      f"--features={path} is not a readable file of features ({error}); {cure}"
    ) from error
  stamp = {k: v for k, v in facts.items() if k not in ("format", "spec")} | {"sha256": sha256}
  if facts["network"] == random_features.NETWORK:
    name = f"random_{facts['data']}"
    return Extractor(name, stamp, arrays, _apply_random, spec.shape)
  network = Classifier().create(spec)

  def apply(params, images):
    return (*network.apply(params, _to_input(images)), None)

  return Extractor(facts["data"], stamp, nested(arrays), apply, spec.shape)


def _apply_random(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, None]:
  """Return random features, and no logits."""
  return random_features.random_features(params, images), jnp.zeros((len(images), 0)), None


def _to_input(pictures: jax.Array) -> jax.Array:
  return pictures.astype(jnp.float32) / 127.5 - 1.0


def _train(source: Source, recipe: Recipe) -> Any:
  """Return the trained parameters; uses only the first device, so that meshes do not matter."""
  network = Classifier().create(source.spec)
  schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.num_steps)
  optimizer = optax.adamw(schedule, weight_decay=1e-2)
  stream = TrainStream(source, recipe.batch_size, recipe.seed)
  root = jax.random.key(recipe.seed)

  def loss(params, images, labels, keys):
    x = _shift(_to_input(images), keys, recipe.shift)
    losses = optax.softmax_cross_entropy_with_integer_labels(network.apply(params, x)[1], labels)
    return losses.mean()

  @jax.jit
  def step(params, state, images, labels, index, step_index):
    key = rng.numbered(rng.stream(root, Stream.TRAINING), step_index)
    examples = rng.example_keys(rng.stream(key, Stream.EXAMPLES), index)
    keys = rng.stream(examples, Stream.AUGMENTATION)
    updates, state = optimizer.update(jax.grad(loss)(params, images, labels, keys), state, params)
    return optax.apply_updates(params, updates), state

  with jax.default_device(jax.local_devices()[0]):
    params = network.init(rng.stream(rng.stream(root, Stream.INIT), Stream.NETWORK))
    state = optimizer.init(params)
    with progress.phase("training the features", recipe.num_steps, "steps") as phase:
      for step_index in range(recipe.num_steps):
        batch = stream.batch(step_index)
        pictures = as_pictures(batch.image, source.spec.num_levels)
        params, state = step(params, state, pictures, batch.label, batch.index, step_index)
        phase.advance()
      jax.block_until_ready(params)
  return jax.device_get(params)


def _shift(x: jax.Array, keys: Keys, most: int) -> jax.Array:
  """Shift each image by up to `most` pixels, repeating its border."""
  height, width = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
  corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * most + 1))(keys)

  def cut(image, corner):
    return jax.lax.dynamic_slice(image, (*corner, 0), (height, width, image.shape[-1]))

  return jax.vmap(cut)(padded, corners)


def _accuracy(params: Any, source: Source) -> float:
  """Return the accuracy on a split, a fraction."""
  network = Classifier().create(source.spec)
  predict = jax.jit(lambda images: network.apply(params, _to_input(images))[1].argmax(-1))
  right = 0.0
  with jax.default_device(jax.local_devices()[0]):
    for batch in full_pass(source, min(512, len(source))):
      pictures = as_pictures(batch.image, source.spec.num_levels)
      right += float(((np.asarray(predict(pictures)) == batch.label) * batch.mask).sum())
  return right / len(source)


def _write(path: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
      np.savez(file, allow_pickle=False, facts=json.dumps(facts, sort_keys=True),
               sha256=_digest(arrays, facts), **arrays)  # fmt: skip
  except OSError as error:
    raise UserError(f"{path} cannot be written ({error.strerror}); choose another --out") from error


def _digest(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> str:
  """Return the SHA-256 of the weights and of the facts stored with them."""
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    digest.update(np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()
