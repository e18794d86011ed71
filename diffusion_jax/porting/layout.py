"""Contract of a layout: where another library keeps the parameters of one of our networks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core.stacking import restacked, unstack_layers
from diffusion_jax.core.trees import named_leaves, nested
from diffusion_jax.porting.tensors import Pair, Shape, Tensors, to_ours, to_theirs
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, Params

Sections = Mapping[str, Mapping[str, Any]]


class Content(NamedTuple):
  """Weights of a file, before their architecture is known.

  Attributes:
    tensors: arrays by name.
    facts: values of the file that are no arrays, see `weight_files.WeightFile`.
    image_size: side of the images that the user gave, pixels; None: the file must tell it.
    where: the file's name, for messages.
  """

  tensors: Tensors
  facts: Mapping[str, Any]
  image_size: int | None
  where: str


class Described(NamedTuple):
  """Facts that a source tells of its network.

  Attributes:
    sections: sections of a config; fields that are missing keep their defaults.
    spec: shape of the images; `num_classes` without the null class.
    assumed: fields ("model.num_heads") and flags of the import ("image_size", "architecture") whose
      values the source does not tell: the original's.
    layout: layout of this source, where it depends on more than the network; None: `FileLayout`'s.
    notes: sentences for the user on what the source does not have.
  """

  sections: Sections
  spec: ImageSpec
  assumed: tuple[str, ...] = ()
  layout: Any = None  # a Layout
  notes: tuple[str, ...] = ()


def _unchanged(tensors: Tensors, network: Any, of: Any) -> Tensors:
  return tensors


class Layout(NamedTuple):
  """Correspondence of an architecture's tensors and our parameters.

  Attributes:
    name: name of the architecture, as in `imported.json` and messages, e.g. "guided-diffusion".
    pairs: (network's config, shape of each of our parameters by path) -> table of pairs.
    prepared: (tensors, network's config, spec) -> tensors as `pairs` names and shapes them: old
      names renamed, a row for a null class that the original does not have added.
    restored: (tensors, network's config, number of classes in the table) -> tensors without what
      `prepared` added.
    unused: names of tensors that hold no parameters, such as fixed positions.
  """

  name: str
  pairs: Callable[[Any, Mapping[str, Shape]], Sequence[Pair]]
  prepared: Callable[[Tensors, Any, ImageSpec], Tensors] = _unchanged
  restored: Callable[[Tensors, Any, int], Tensors] = _unchanged
  unused: Collection[str] = ()


class FileLayout(NamedTuple):
  """A layout of single files, which do not name their architecture.

  Attributes:
    layout: the layout.
    recognises: names of tensors -> whether they are of this layout.
    describe: `Content` -> `Described`; raises UserError where the file is of another network.
  """

  layout: Layout
  recognises: Callable[[Collection[str]], bool]
  describe: Callable[[Content], Described]


class DiffusersLayout(NamedTuple):
  """A network of diffusers, with its config's file.

  Attributes:
    layout: the layout; its name is the class of diffusers.
    read_config: (content of config.json, file's name for messages) -> (sections, spec).
    write_config: (experiment, spec, rows of the class table) -> content of config.json.
    assumed: fields that no config of this class tells, see `Described`.
    any_side: True if the network takes images of any side, so that the user may choose another.
  """

  layout: Layout
  read_config: Callable[[Mapping[str, Any], str], tuple[Sections, ImageSpec]]
  write_config: Callable[[Experiment, ImageSpec, int], dict[str, Any]]
  assumed: tuple[str, ...] = ()
  any_side: bool = False


class Source(NamedTuple):
  """Weights of another library with their layout.

  Attributes:
    layout: their layout.
    described: what the source tells of the network.
    tensors: arrays by name.
    origin: JSON values on the source: files with their SHA-256, format, architecture.
    where: the file's name, for messages.
    autoencoder: source of the autoencoder that decodes the network's latents; None: it has images.
  """

  layout: Layout
  described: Described
  tensors: Tensors
  origin: Mapping[str, Any]
  where: str
  autoencoder: Any = None  # a Source


def network_of(experiment: Experiment) -> Any:
  """Return the config of the network that a run trains."""
  return experiment.sections.get("model") or experiment.sections["autoencoder"]


def parameters_of(source: Source, experiment: Experiment) -> Params:
  """Return the parameters of an experiment's model from a source of one network, float32.

  Raises:
    UserError: a tensor is missing, has another shape, or has no place in this network.
  """
  model = experiment.create(source.described.spec)
  wanted = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
  return parameters_like(wanted, source, network_of(experiment))


def parameters_like(wanted: Params, source: Source, network: Any) -> Params:
  """Return parameters from a source in a structure, whose leaves need only a shape.

  Raises:
    UserError: a tensor is missing, has another shape, or has no place in this network.
  """
  spec = source.described.spec
  shapes = {name: leaf.shape for name, leaf in named_leaves(unstack_layers(wanted)).items()}
  layout = source.layout
  tensors = layout.prepared(source.tensors, network, spec)
  found = to_ours(layout.pairs(network, shapes), tensors, shapes, source.where, layout.unused)
  flat = nested(found)
  return jax.tree.unflatten(jax.tree.structure(wanted), jax.tree.leaves(restacked(flat, wanted)))


def tensors_of_parameters(
  layout: Layout, params: Params, network: Any, num_labels: int
) -> dict[str, np.ndarray]:
  """Return another library's tensors by name from our parameters; inverts `parameters_of`."""
  leaves = named_leaves(unstack_layers(params))
  arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
  shapes = {name: array.shape for name, array in arrays.items()}
  return dict(
    layout.restored(to_theirs(layout.pairs(network, shapes), arrays), network, num_labels)
  )
