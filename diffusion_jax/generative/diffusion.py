"""A denoising diffusion model: process, network, loss, sampler and guidance as one model."""

import dataclasses
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from diffusion_jax.core.registry import Registry
from diffusion_jax.generative.augmentation import Augmentation
from diffusion_jax.generative.base import GenerativeConfigBase
from diffusion_jax.generative.conditioning import Conditioning, make_conditioning
from diffusion_jax.generative.diffusion_model import DiffusionModel, far_from_noise
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS, Spectrum
from diffusion_jax.likelihood.outside import likelihoods_of
from diffusion_jax.losses import DENOISING_LOSSES
from diffusion_jax.models import NETWORKS, NOISE_SCHEDULES, Network, check_takes, created_networks
from diffusion_jax.processes import (
  PROCESSES,
  UNDEFINED_AT_PURE_NOISE,
  PredictionName,
  Process,
  namespace,
)
from diffusion_jax.samplers import SAMPLERS, Guidance
from diffusion_jax.types import ImageSpec


@dataclasses.dataclass(frozen=True)
class Diffusion(GenerativeConfigBase):
  """A diffusion or flow model: a network trained to denoise.

  Attributes:
    prediction: quantity that the network predicts, see `processes.denoiser`.
    sigma_data: standard deviation of the data, for prediction=edm.
    conditional: give the network the class; needs a labelled data set.
    label_dropout: fraction of training examples with a dropped condition (the parts in `dropped`),
      which trains the unconditional model for guidance.
    fields: named arrays of the data set as network inputs, such as embedding,mask.
    dropped: parts of the condition that are dropped together: label becomes the null class, names
      of `fields` become zeros.
    augmentation: probability of each of EDM's augmentations, 0.12 there; 0: none. The network must
      take their labels, model.augmentation_labels=9.
  """

  prediction: PredictionName = "eps"
  sigma_data: float = 0.5
  conditional: bool = False
  label_dropout: float = 0.1
  augmentation: float = 0.0
  fields: tuple[str, ...] = ()
  dropped: tuple[str, ...] = ("label",)

  description: ClassVar[str] = "diffusion model"
  sections: ClassVar[ChainMap[str, Any]] = ChainMap(
    {
      "process": Registry("process", Process, PROCESSES, NOISE_SCHEDULES, base=PROCESSES.base),
      "model": NETWORKS,
      "loss": DENOISING_LOSSES,
      "sampler": SAMPLERS,
      "guidance": Guidance,
      "spectrum": Spectrum,
    },
    DIFFUSION_LIKELIHOODS,
  )

  def __post_init__(self):
    if self.sigma_data <= 0:
      raise ValueError(f"sigma_data={self.sigma_data} must be positive")
    Augmentation(self.augmentation)  # checks it
    if not 0 <= self.label_dropout < 1:
      raise ValueError(f"label_dropout={self.label_dropout} must be at least 0 and below 1")

  def warning(self, parts: Mapping[str, Any]) -> str | None:
    """Return a warning about settings that work but are hardly intended, or None."""
    return far_from_noise(parts["process"])

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> DiffusionModel:
    """Return the model made of the config's sections.

    Args:
      parts: section name -> instance, for each of `sections`.
      spec: shape of the data.

    Raises:
      ValueError: parts that do not fit each other or the data.
    """
    conditioning = make_conditioning(
      self.conditional, self.fields, self.dropped, self.label_dropout, spec
    )
    self._check(parts, spec, conditioning)
    given = spec._replace(fields=conditioning.fields)
    process = parts["process"].bind(parts["process"].init(jax.random.key(0)))
    # Estimators evaluate the network at one time.
    takes_end = "end_time" in parts["model"].takes
    found = {} if takes_end else likelihoods_of(DIFFUSION_LIKELIHOODS, parts)
    learns = parts["model"].learned_variance
    sampler = parts["sampler"].fit(learns)
    try:
      sampler.check(process)
    except ValueError as error:
      raise ValueError(f"sampler: {error}") from error
    _check_loss(parts["loss"], process)
    _check_prediction(self.prediction, process)
    _check_schedule(parts)
    num_labels = spec.num_classes + 1 if self.conditional else 0
    backbone = created_networks(Network, parts["model"], given, num_labels)
    return DiffusionModel(
      spec=spec,
      process=parts["process"],
      backbone=backbone,
      prediction=self.prediction,
      sigma_data=self.sigma_data,
      learned_variance=learns,
      objective=parts["loss"],
      sampler=sampler,
      guidance=parts["guidance"],
      conditioning=conditioning,
      augmentation=Augmentation(self.augmentation),
      estimators={name: e for name, e in found.items() if e.serves(process)},
      spectrum=parts["spectrum"],
    )

  def _check(self, parts: Mapping[str, Any], spec: ImageSpec, given: Conditioning) -> None:
    needed = {
      "label": "`generative.conditional=true`" if self.conditional else None,
      "fields": f"`generative.fields={','.join(self.fields)}`" if self.fields else None,
    }
    check_takes(parts["model"], {part: setting for part, setting in needed.items() if setting})
    _check_end_time(parts)
    if parts["loss"].needs_variance != parts["model"].learned_variance:
      _refuse_variance(parts["loss"].needs_variance)
    wanted = {
      "sampler": parts["sampler"].needs_variance,
      "vlb": parts["vlb"].variance == "learned",
    }
    _check_variances([n for n, v in wanted.items() if v], parts["model"].learned_variance)
    num_told = parts["model"].augmentation_labels
    Augmentation(self.augmentation).check(num_told, min(spec.height, spec.width))
    if self.augmentation and parts["loss"].needs_levels:
      raise ValueError(
        "this loss needs exact pixel levels, which augmented images do not have; set "
        "`generative.augmentation=0`, or `loss.name=simple`"
      )
    guided = parts["guidance"].weight != 1.0 and parts["guidance"].against == "null_class"
    if guided and not given.droppable:
      raise ValueError(
        f"guidance.weight={parts['guidance'].weight} needs a class-conditional model trained with "
        "label dropout; set `guidance.weight=1` (this model: conditional="
        f"{self.conditional}, label_dropout={self.label_dropout})"
      )


def _check_end_time(parts: Mapping[str, Any]) -> None:
  """Raise a ValueError unless loss and sampler give the second time that the network takes."""
  network, takes = type(parts["model"]).__name__, "end_time" in parts["model"].takes
  for section in ("loss", "sampler"):
    name, gives = type(parts[section]).__name__, parts[section].gives_end_time
    if takes and not gives:
      raise ValueError(
        f"the network {network} needs a second time (condition.end_time), and the {section} {name} "
        f"gives none; take a {section} of your own with gives_end_time = True, or another network "
        "(mlp: `model.end_time=false`)"
      )
    if gives and not takes:
      raise ValueError(
        f"the {section} {name} gives a second time (condition.end_time), and the network {network} "
        f"takes none; take a network that does (`model.name=mlp`, `model.end_time=true`), or "
        f"another {section}"
      )


def _check_loss(loss: Any, process: Process) -> None:
  if loss.needs_derivative and process.num_timesteps is not None:
    raise ValueError(
      "this loss needs a process in continuous time; use `process.name=vp`, cosine, edm or "
      "flow, or `loss.name=min_snr`"
    )
  if loss.needs_variance and process.num_timesteps is None:
    raise ValueError(
      "this loss learns the variances of steps, and the process has none; use "
      "`process.name=cosine_vp` or linear_vp, or `loss.name=simple` with "
      "`model.learned_variance=False`"
    )


def _check_prediction(prediction: str, process: Process) -> None:
  """Raise a ValueError if the prediction does not determine x0 where sampling starts.

  A learned schedule always has a positive alpha.
  """
  alpha, _ = process.alpha_sigma(np.asarray([1.0]))
  if prediction in UNDEFINED_AT_PURE_NOISE and namespace(alpha) is np and alpha[0] <= 0:
    raise ValueError(
      f"generative.prediction={prediction} is undefined where this process ends, at pure noise "
      "(alpha = 0 at t = 1); use `generative.prediction=velocity`, v, x0 or edm, or another "
      "process such as `process.name=vp`"
    )


def _check_schedule(parts: Mapping[str, Any]) -> None:
  if parts["process"].learned and not parts["loss"].trains_schedule:
    raise ValueError(
      "this process learns its noise schedule, but a schedule that minimises this loss is useless; "
      "set `loss.name=vdm`, or `process.name=linear_log_snr`"
    )


def _check_variances(sections: Sequence[str], learns: bool) -> None:
  for section in sections if not learns else ():
    raise ValueError(
      f"{section}.variance=learned needs a network that gives variances, and "
      f"model.learned_variance is false; set `{section}.variance=auto`, or train with "
      "`model.learned_variance=True` `loss.name=hybrid`"
    )


def _refuse_variance(wanted: bool) -> None:
  if wanted:
    raise ValueError(
      "this loss learns the variances of the steps, and model.learned_variance is false; set "
      "`model.learned_variance=True` (unet and dit have it) or `loss.name=simple`"
    )
  raise ValueError(
    "model.learned_variance=true doubles the network's channels, and this loss does not learn "
    "variances; set `loss.name=hybrid` or `model.learned_variance=False`"
  )
