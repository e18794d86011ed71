"""Restore averaged weights: a tracked average, or one reconstructed from stored averages.

`--ema` names the average: `decay:0.999` is a tracked decay, `0.1` a relative width sigma_rel, and
`half_life_images:500000` the power function that gives the last 500,000 images half the weight.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.changes import of_another_run
from diffusion_jax.training import train_state
from diffusion_jax.training.power_function_ema import (
  MAX_WIDTH,
  Combination,
  combine,
  exponent_of,
  exponent_of_half_life,
  rounding_of,
  width_of,
)
from diffusion_jax.types import GenerativeModel, ImageSpec, Params, UserError

Leaves = Mapping[str, Any]
Tree = Callable[[Leaves], dict[str, Any]]

MAX_ERROR = 0.1
"""Largest relative error of a reconstructed profile; larger ones are refused."""

NEGLIGIBLE = 1e-9
"""Smallest weight of a stored average that is read."""

EMA_HELP = (
  "averaged weights: a relative width such as 0.1, decay:D of a tracked decay, or "
  "half_life_images:N; by default those of ema.decay"
)


class Average(NamedTuple):
  """The average to restore.

  Attributes:
    kind: ema (the run's first average), decay, profile or half_life_images.
    value: the decay, the relative width, or the number of images.
  """

  kind: str = "ema"
  value: float = 0.0

  @property
  def name(self) -> str:
    """Return the name of the average in the state, e.g. "decay:0.999" or "profile:0.1"."""
    return "ema" if self.kind == "ema" else f"{self.kind}:{self.value}"

  @property
  def label(self) -> str:
    """Return the name of the weights in metrics, e.g. "ema" or "ema profile:0.1"."""
    return "ema" if self.kind == "ema" else f"ema {self.name}"

  @property
  def suffix(self) -> str:
    """Return the suffix of its folder, e.g. "-ema-profile-0.1"; empty for the first average."""
    return "" if self.kind == "ema" else f"-ema-{self.name.replace(':', '-')}"


class Weights(NamedTuple):
  """Restored weights.

  Attributes:
    params: parameters on the mesh, split as in training.
    step: training step of the checkpoint or snapshot.
    meta: metadata saved with it.
    facts: JSON values that identify the weights: equal exactly if the weights are.
    made: record of how a reconstructed average was made; None for a stored one.
  """

  params: Params
  step: int
  meta: Mapping[str, Any]
  facts: Mapping[str, Any]
  made: Mapping[str, Any] | None


class Stored(NamedTuple):
  """A checkpoint or snapshot that holds averages of one step.

  Attributes:
    directory, step: location of the checkpoint or snapshot.
    updates: number of parameter updates so far.
    as_offsets: True if the run stored them as differences, see `EMA.update`.
  """

  directory: store.Place
  step: int
  updates: int
  as_offsets: bool


def parse_average(text: str | None) -> Average:
  """Parse --ema; None is the run's first average.

  Raises:
    UserError: the text names no average.
  """
  if text is None:
    return Average()
  kind, _, width = text.rpartition(":")
  try:
    average = Average(kind or "profile", float(width))
  except ValueError:
    average = Average()
  ranges = {
    "decay": 0 <= average.value < 1,
    "profile": 0 < average.value <= MAX_WIDTH,
    "half_life_images": 0 < average.value < float("inf"),
  }
  if not ranges.get(average.kind):
    raise UserError(
      f"`ema={text}`: must be a relative width above 0 and at most {MAX_WIDTH}, decay:D or "
      "half_life_images:N, e.g. `ema=0.1` or `ema=decay:0.999`"
    )
  return average


def folder_of(workdir: Path, step: int | None, average: Average) -> store.Place:
  """Return the folder that holds a step: the checkpoints, or else the snapshots of averages."""
  checkpoints, snapshots = (checkpoint_folder(workdir, n) for n in ("checkpoints", "ema_snapshots"))
  steps = parallel.broadcast_object([store.saved_steps(d) for d in (checkpoints, snapshots)])
  only_there = step not in steps[0] and step in steps[1]
  return snapshots if only_there and average.kind not in ("ema", "decay") else checkpoints


def restore_weights(
  workdir: Path, step: int | None, mesh: Mesh, generative: GenerativeModel, average: Average
) -> Weights:
  """Restore the averaged weights of a step onto a mesh's devices.

  Args:
    workdir: the run's folder.
    step: step to restore; None: the newest readable checkpoint.
    mesh: the devices.
    generative: the model.
    average: the average, from `parse_average`.

  Raises:
    UserError: as `store.restore_checkpoint`; or the average is neither tracked nor reconstructible.
  """
  directory = folder_of(workdir, step, average)
  meta = store.read_meta(directory, step)
  names, ema = tracked(meta), meta["config"]["ema"]
  first = None if ema.get("half_life_steps") else ema["decay"]
  if average == Average() or (first is not None and average == Average("decay", first)):
    return _restore_one(directory, step, mesh, generative, average, "ema")
  if average.name in names:
    return _restore_one(directory, step, mesh, generative, average, average.name)
  profiles = [n for n in names if n.startswith("profile:")]
  if average.kind == "decay":
    decays = [n for n in ([] if first is None else [f"decay:{first}"]) + names if n not in profiles]
    there = ", ".join(f"`ema={n}`" for n in decays) or "none; leave `ema` out to use ema.decay"
    raise UserError(f"`ema={average.name}`: this run did not track that average; tracked: {there}")
  if not profiles:
    raise UserError(
      f"`ema={average.name}`: this run tracked no power-function averages; leave `ema` out, or "
      "train with `ema.profiles=0.05,0.1` `ema.snapshot_every_steps=N`"
    )
  return _put_together(workdir, directory, step, mesh, generative, average, profiles)


def tracked(meta: Mapping[str, Any]) -> list[str]:
  """Return the names of the averages in a checkpoint other than the first."""
  paths = (name.split("/") for name in meta["leaves"])
  names = dict.fromkeys(path[1] for path in paths if path[0] in ("averages", "offsets"))
  return [name for name in names if name != "ema"]


def _restore_one(
  directory: store.Place,
  step: int | None,
  mesh: Mesh,
  generative: GenerativeModel,
  average: Average,
  name: str,
) -> Weights:
  restored = _read(directory, step, mesh, _tree([name], generative))
  params, meta = _averages(restored.state, [name])[name], restored.meta
  what = "" if average.kind == "ema" else f" {average.name}"
  print(f"restored the EMA weights{what} of step {restored.step:,} on {mesh.size} device(s)")
  return Weights(params, restored.step, meta, _leaves(meta, [name]), None)


def _put_together(
  workdir: Path, directory: store.Place, step: int | None, mesh: Mesh, generative: GenerativeModel,
  average: Average, profiles: Sequence[str],
) -> Weights:  # fmt: skip
  tree, count = _tree(profiles, generative), jax.ShapeDtypeStruct((), jnp.int32)
  counts = {"step": count, "num_skipped": count}
  newest = _read(directory, step, mesh, lambda leaves: {**tree(leaves), **counts})
  meta = newest.meta  # read together with the state: a running job may have deleted both by now
  updates = int(newest.state["step"]) - int(newest.state["num_skipped"])
  gamma = _exponent(average, updates, meta["config"]["training"]["batch_size"])
  target = Stored(directory, newest.step, updates, _tracked_as_offsets(meta))
  stored = [*snapshots_before(checkpoint_folder(workdir, "ema_snapshots"), target), target]
  while True:
    mixture = _mix(average, stored, profiles, gamma)
    at_hand = _averages(newest.state, profiles)
    params, damaged = _sum(stored, mixture, at_hand, profiles, mesh, tree)
    if damaged is None:
      break
    stored = [unit for unit in stored if unit != damaged]
  made = _describe(average, stored, mixture, gamma)
  print(f"put the EMA weights {average.name} of step {newest.step:,} together from "
        f"{len(stored)} x {len(profiles)} averages: their profile is within "
        f"{mixture.error:.2g} of it, relative, and float32 adds an error of about "
        f"{mixture.rounding:.1g} of a parameter")  # fmt: skip
  facts = {
    "average": average.name,
    "step": newest.step,
    "stored": {
      str(s.step): _leaves(meta if s is target else store.read_meta(*s[:2]), profiles)
      for s in stored
    },
  }
  return Weights(params, newest.step, meta, facts, made)


def snapshots_before(directory: store.Place, target: Stored) -> list[Stored]:
  """Return the earlier snapshots in order; print and skip those that cannot be read."""
  readable = []
  for step in store.saved_steps(directory):
    try:
      meta = store.read_meta(directory, step) if step < target.step else {"updates": 0}
    except UserError as error:
      print(f"snapshot {step} is left out: {error}")
      continue
    if 0 < meta["updates"] < target.updates:
      readable.append((step, meta["updates"], _tracked_as_offsets(meta)))
  return [Stored(directory, *row) for row in parallel.broadcast_object(readable)]


def _exponent(average: Average, updates: int, batch_size: int) -> float:
  if average.kind == "profile":
    return exponent_of(average.value)
  images = updates * batch_size
  if average.value > images / 2:
    raise UserError(
      f"`ema={average.name}`: the run has seen {images:,} images; a half-life must be at most "
      f"half of that, e.g. `ema=half_life_images:{images // 10}`"
    )
  return exponent_of_half_life(average.value, float(images))


def _mix(
  average: Average, stored: Sequence[Stored], profiles: Sequence[str], gamma: float
) -> Combination:
  """Return the weights of [stored, profiles], flattened, that best fit the profile.

  Raises:
    UserError: the fitted profile differs too much from that of `gamma`.
  """
  gammas = [exponent_of(float(name.partition(":")[2])) for name in profiles]
  times = np.repeat([float(unit.updates) for unit in stored], len(profiles))
  rounding = [rounding_of(unit.updates, g, unit.as_offsets) for unit in stored for g in gammas]
  end = float(stored[-1].updates)
  mixture = combine(times, np.tile(gammas, len(stored)), end, gamma, np.asarray(rounding))
  if mixture.error > MAX_ERROR:
    widths = ", ".join(f"`ema={name.partition(':')[2]}`" for name in profiles)
    raise UserError(
      f"`ema={average.name}`: {len(stored) - 1} snapshots before step {stored[-1].step:,} are too "
      f"few: their profile would be off by {100 * mixture.error:.0f} %, at most "
      f"{100 * MAX_ERROR:.0f} % is allowed; use {widths}, which are tracked, or train with a "
      "smaller `ema.snapshot_every_steps=N`"
    )
  return mixture


def _sum(
  stored: Sequence[Stored], mixture: Combination, newest: Mapping[str, Params],
  profiles: Sequence[str], mesh: Mesh, tree: Tree,
) -> tuple[Params, Stored | None]:  # fmt: skip
  """Return the weighted sum of the stored averages, or the first damaged unit."""
  weights = mixture.weights.reshape(len(stored), len(profiles))
  total = None
  for unit, row in zip(stored[::-1], weights[::-1], strict=True):  # the newest is already in memory
    if total is not None and np.abs(row).max() < NEGLIGIBLE:
      continue
    try:
      read = lambda unit=unit: _averages(_read(*unit[:2], mesh, tree).state, profiles)  # noqa: E731
      averages = newest if total is None else read()
    except UserError as error:
      print(f"snapshot {unit.step} is left out: {error}")
      return None, unit
    total = _add(total, [averages[name] for name in profiles], jnp.asarray(row, jnp.float32))
  return total, None


@jax.jit
def _add(total: Params | None, averages: Sequence[Params], weights: jax.Array) -> Params:
  def add(*leaves: jax.Array) -> jax.Array:
    return jnp.tensordot(weights, jnp.stack(leaves), 1, precision="highest")

  added = jax.tree.map(add, *averages)
  return added if total is None else jax.tree.map(jnp.add, total, added)


def _describe(
  average: Average, stored: Sequence[Stored], mixture: Combination, gamma: float
) -> dict[str, Any]:
  return {
    "ema": average.name,
    "sigma_rel": width_of(gamma),
    "num_snapshots": len(stored) - 1,
    "profile_error": mixture.error,
    "rounding_error": mixture.rounding,
  }


def _tree(names: Sequence[str], generative: GenerativeModel) -> Tree:
  """Return a function from stored leaves to the part of the state with these averages."""
  params = jax.eval_shape(lambda: generative.init(jax.random.key(0))[0])

  def tree(leaves: Leaves) -> dict[str, Any]:
    if _has_offsets(leaves):
      return {"params": params, "offsets": dict.fromkeys(names, params)}
    others = dict.fromkeys([name for name in names if name != "ema"], params)
    return ({"ema": params} if "ema" in names else {}) | ({"averages": others} if others else {})

  return tree


def _averages(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Params]:
  """Return the averages by name from a state read with `_tree`."""
  if "offsets" in tree:
    return {name: train_state.average(tree["params"], tree["offsets"][name]) for name in names}
  return {name: tree["ema"] if name == "ema" else tree["averages"][name] for name in names}


def _has_offsets(leaves: Leaves) -> bool:
  return any(name.startswith("offsets/") for name in leaves)


def _tracked_as_offsets(meta: Mapping[str, Any]) -> bool:
  return _has_offsets(meta["leaves"]) or train_state.AS_OFFSETS.items() <= meta.items()


def _read(directory: store.Place, step: int | None, mesh: Mesh, tree: Tree) -> store.Restored:
  def target(leaves: Leaves) -> Any:
    shapes = tree(leaves)
    return sharding.as_target(shapes, sharding.state_shardings(mesh, shapes))

  restored = store.restore_checkpoint(directory, target, step, _foreign(directory.parent))
  for damage in restored.damaged:
    print(f"checkpoint {damage.step} is damaged ({damage.reason}); using an older one")
  return restored


def _foreign(workdir: store.Place) -> store.Foreign:
  """Return a function that raises if a checkpoint belongs to another run (by config.json)."""
  try:
    config = json.loads((workdir / "config.json").read_text())
    return functools.partial(of_another_run, config) if isinstance(config, dict) else _no_check
  except (OSError, ValueError):
    return _no_check


def _no_check(meta: Mapping[str, Any]) -> None:
  del meta


def _leaves(meta: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
  """Return the stored leaves that these averages consist of."""
  prefixes = [prefix for name in names for prefix in (f"averages/{name}/", f"offsets/{name}/")]
  prefixes += ["ema/"] * ("ema" in names) + ["params/"] * _has_offsets(meta["leaves"])
  return {name: leaf for name, leaf in meta["leaves"].items() if name.startswith(tuple(prefixes))}


def stored_classes(checkpoints: store.Place, step: int | None) -> list[int]:
  """Return the labels with training images; all labels for a run of an older version."""
  data = store.read_meta(checkpoints, step)["data"]
  return data.get("trained_classes", list(range(data["spec"]["num_classes"])))


def stored_class_names(checkpoints: store.Place, step: int | None) -> list[str]:
  """Return the names of all classes; none for a run of an older version, or nameless classes."""
  return list(store.read_meta(checkpoints, step)["data"].get("classes", ()))


def stored_spec(checkpoints: store.Place, step: int | None) -> ImageSpec:
  """Return the image spec stored with the checkpoints; the data set itself is not needed."""
  return ImageSpec.from_json(store.read_meta(checkpoints, step)["data"]["spec"])
