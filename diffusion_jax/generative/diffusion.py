"""A denoising diffusion model: process, network, loss, sampler and guidance as one Generative."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax import randomness
from diffusion_jax.levels import from_levels
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS, Spectrum
from diffusion_jax.losses import DENOISING_LOSSES, Objective
from diffusion_jax.models import NETWORKS, NOISE_SCHEDULES, Network
from diffusion_jax.processes import PROCESSES, Learned, Preconditioned, Process, precondition
from diffusion_jax.samplers import SAMPLERS, Guidance, Worse, editing
from diffusion_jax.samplers.linear import Denoise
from diffusion_jax.types import (
  Aux,
  Batch,
  Editing,
  Estimate,
  Generative,
  ImageSpec,
  Key,
  Keys,
  Params,
  Samples,
  SpectrumEstimate,
  UserError,
)


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """Config of the wiring.

  Attributes:
    prediction: what the network's output means, see `processes.parameterization`.
    sigma_data: standard deviation of the data, for prediction=edm.
    conditional: give the network the class; needs a labelled data set.
    label_dropout: share of training examples whose class is hidden (the null class), so that
      guidance has an unconditional model to push away from.
  """

  prediction: Literal["eps", "x0", "v", "score", "velocity", "edm"] = "eps"
  sigma_data: float = 0.5
  conditional: bool = False
  label_dropout: float = 0.1

  sections: ClassVar[Mapping[str, Any]] = {
    "process": {**PROCESSES, **NOISE_SCHEDULES},
    "model": NETWORKS,
    "loss": DENOISING_LOSSES,
    "sampler": SAMPLERS,
    "guidance": Guidance,
    "spectrum": Spectrum,
    **DIFFUSION_LIKELIHOODS,
  }

  def __post_init__(self):
    if self.sigma_data <= 0:
      raise ValueError(f"sigma_data={self.sigma_data} must be positive")
    if not 0 <= self.label_dropout < 1:
      raise ValueError(f"label_dropout={self.label_dropout} must be at least 0 and below 1")

  def create(self, parts: Mapping[str, Any], spec: ImageSpec) -> Generative:
    """Wires the built sections into a Generative.

    Args:
      parts: section name -> instance, for each of `sections`.
      spec: of the data set.

    Raises:
      ValueError: parts that do not fit each other or the data.
    """
    self._check(parts, spec)
    spectrum, schedule = parts["spectrum"], _schedule(parts["process"])
    process = schedule.at(schedule.init(jax.random.key(0)))
    estimators = [e for e in (parts[n] for n in DIFFUSION_LIKELIHOODS) if e.serves(process)]
    parts["sampler"].check(process)
    _check_loss(parts["loss"], process)
    wiring = _Wiring(
      spec=spec,
      schedule=schedule,
      backbone=parts["model"].create(spec, spec.num_classes + 1 if self.conditional else 0),
      prediction=self.prediction,
      sigma_data=self.sigma_data,
      learned_variance=_learns_variance(parts["model"]),
      objective=parts["loss"].objective(process),
      sampler=parts["sampler"],
      guidance=parts["guidance"],
      null_label=spec.num_classes if self.conditional else None,
      label_dropout=self.label_dropout,
    )
    return Generative(
      init=wiring.init,
      loss=lambda *args: _loss(wiring, *args),
      sample=lambda *args: _sample(wiring, *args),
      likelihoods={e.figure_name: functools.partial(_likelihood, wiring, e) for e in estimators},
      spectrum=lambda *args: _spectrum(wiring, spectrum, *args),
      trajectory=lambda *args: _trajectory(wiring, *args),
      denoise=lambda *args: _denoise(wiring, *args),
      sample_against=lambda *args: _sample_against(wiring, *args),
      editing=_editing(wiring),
      num_levels=spec.num_levels,
      num_classes=spec.num_classes if self.conditional else 0,
    )

  def _check(self, parts: Mapping[str, Any], spec: ImageSpec) -> None:
    if parts["loss"].needs_variance != _learns_variance(parts["model"]):
      _refuse_variance(parts["loss"].needs_variance)
    if self.conditional and not spec.num_classes:
      raise ValueError(
        "generative.conditional is true but the data set has no labels; "
        "set --config.generative.conditional=false"
      )
    guided = parts["guidance"].weight != 1.0 and parts["guidance"].against == "null_class"
    if guided and not (self.conditional and self.label_dropout > 0):
      raise ValueError(
        f"guidance.weight={parts['guidance'].weight} needs a class-conditional model trained with "
        "label dropout; set --config.guidance.weight=1 (this model: conditional="
        f"{self.conditional}, label_dropout={self.label_dropout})"
      )


def _check_loss(loss: Any, process: Process) -> None:
  if loss.needs_derivative and process.num_timesteps is not None:
    raise ValueError(
      "this loss needs a process in continuous time; use --config.process.name=vp, cosine, edm or "
      "flow, or --config.loss.name=min_snr"
    )


def _learns_variance(model: Any) -> bool:
  return getattr(model, "learned_variance", False)


def _refuse_variance(wanted: bool) -> None:
  if wanted:
    raise ValueError(
      "this loss learns the variances of the steps, and model.learned_variance is false; set "
      "--config.model.learned_variance=true (unet and dit have it) or --config.loss.name=simple"
    )
  raise ValueError(
    "model.learned_variance=true doubles the network's channels, and this loss does not learn "
    "variances; set --config.loss.name=hybrid or --config.model.learned_variance=false"
  )


class _Schedule(NamedTuple):
  """A process that may have parameters: key -> params, and params -> the process."""

  init: Callable[[Key], Params]
  at: Callable[[Params], Process]


def _schedule(config: Any) -> _Schedule:
  if not getattr(config, "learned", False):
    process = config.create()
    return _Schedule(lambda key: {}, lambda params: process)
  schedule = config.create()

  def at(params: Params) -> Process:
    return Learned(functools.partial(schedule.gamma, params), config.gamma_min, config.gamma_max)

  return _Schedule(schedule.init, at)


class _Bound(NamedTuple):
  """A model for one set of parameters: the network's own, the loss's own, and what they fix."""

  network: Preconditioned
  process: Process
  params: Params
  own: Params


class _Wiring(NamedTuple):
  spec: ImageSpec
  schedule: _Schedule
  backbone: Network
  prediction: str
  sigma_data: float
  learned_variance: bool
  objective: Objective
  sampler: Any
  guidance: Guidance
  null_label: int | None
  label_dropout: float

  def init(self, key: Key) -> tuple[Params, Aux]:
    """The network's parameters; under "network" where the process or the loss has some too."""
    others = {
      "process": self.schedule.init(jax.random.fold_in(key, 1)),
      "loss": self.objective.init(jax.random.fold_in(key, 2)),
    }
    others = {name: params for name, params in others.items() if params}
    network = self.backbone.init(key)
    return {"network": network, **others} if others else network, self.objective.memory

  def bind(self, params: Params) -> _Bound:
    """The model with these parameters, as `init` laid them out."""
    parts = params if "network" in params else {"network": params}
    process = self.schedule.at(parts.get("process", {}))
    network = precondition(
      self.backbone.apply, process, self.prediction, self.sigma_data, self.learned_variance
    )
    return _Bound(network, process, parts["network"], parts.get("loss", {}))


def _loss(wiring: _Wiring, params, aux, key, batch: Batch, train: bool):
  example_key, dropout_key = jax.random.split(key)
  dropout_key = jax.random.fold_in(dropout_key, batch.index[0])  # another for each microbatch
  keys = randomness.example_keys(example_key, batch.index)
  model = wiring.bind(params)
  return wiring.objective.loss(
    *model,
    aux,
    keys,
    from_levels(batch.image, wiring.spec.num_levels),
    _training_labels(wiring, keys, batch.label, train),
    dropout_key if train else None,
  )


def _training_labels(
  wiring: _Wiring, keys: Keys, labels: Int[Array | np.ndarray, "B"], train: bool
) -> Int[Array | np.ndarray, "B"] | None:
  """None for an unconditional model; some hidden behind the null class while training."""
  if wiring.null_label is None:
    return None
  if not train:
    return labels
  hidden = randomness.uniform(randomness.fold_in(keys, 2)) < wiring.label_dropout
  return jnp.where(hidden, wiring.null_label, labels)


def _likelihood(
  wiring: _Wiring, estimator: Any, params: Params, keys: Keys, batch: Batch
) -> Estimate:
  """Of a class-conditional model, the figure given the label."""
  return estimator(*_measured(wiring, params, keys, batch), wiring.spec.num_levels)


def _spectrum(
  wiring: _Wiring, spectrum: Spectrum, params: Params, keys: Keys, batch: Batch
) -> SpectrumEstimate:
  return spectrum(*_measured(wiring, params, keys, batch))


def _measured(wiring: _Wiring, params: Params, keys: Keys, batch: Batch) -> tuple:
  """What an estimator takes: network, process, params, keys, x0 and labels."""
  model = wiring.bind(params)
  x0 = from_levels(batch.image, wiring.spec.num_levels)
  labels = None if wiring.null_label is None else batch.label
  return model.network, model.process, model.params, keys, x0, labels


def _denoise(wiring: _Wiring, params: Params, xt, t, labels=None):
  model = wiring.bind(params)
  return model.network.denoise(model.params, xt, t, labels)


def _sample(
  wiring: _Wiring,
  params: Params,
  keys: Keys,
  labels: Int[Array, "N"] | None = None,
  keep_estimates: bool = False,
  worse: Worse | None = None,
) -> Samples:
  model = wiring.bind(params)
  denoise = _guided(wiring, model, labels, len(keys), worse)
  samples = wiring.sampler(denoise, model.process, keys, wiring.spec.shape, keep_estimates)
  return samples._replace(num_evaluations=_evaluations(wiring, model.process, samples))


def _guided(
  wiring: _Wiring, model: _Bound, labels: Any, num: int, worse: Worse | None = None
) -> Denoise:
  """The guided denoiser of `num` images, without labels of the null class."""
  if wiring.guidance.against == "model" and worse is None and wiring.guidance.weight != 1.0:
    raise UserError(
      "guidance.against=model needs the run of an inferior model: sample with "
      "--guide_workdir=DIR, or set --config.guidance.against=null_class"
    )
  if wiring.null_label is not None and labels is None:
    labels = jnp.full(num, wiring.null_label)
  args = (model.network, model.params, labels, wiring.null_label, model.process, worse)
  return wiring.guidance.bind(*args)


def _sample_against(
  wiring: _Wiring, params: Params, keys: Keys, labels: Any, worse: Any, worse_params: Params
) -> Samples:
  return _sample(wiring, params, keys, labels, worse=Worse(worse, worse_params))


def _editing(wiring: _Wiring) -> Editing | None:
  """None for a sampler that chooses its own steps."""
  sampler = wiring.sampler
  if not isinstance(sampler, editing.FixedStep):
    return None

  def inpaint(params, keys, labels, x0, is_known):
    model = wiring.bind(params)
    denoise = _guided(wiring, model, labels, len(keys))
    return editing.inpaint(denoise, model.process, keys, x0, is_known, sampler)

  def along(run, params, x):
    model = wiring.bind(params)
    labels = None if wiring.null_label is None else jnp.full(len(x), wiring.null_label)
    denoise = functools.partial(model.network.denoise, model.params, labels=labels)
    return run(denoise, model.process, x, sampler)

  return Editing(
    inpaint,
    encode=functools.partial(along, editing.encode),
    decode=functools.partial(along, editing.decode),
  )


def _evaluations(wiring: _Wiring, process: Process, samples: Samples):
  """Of one image; outside of guidance's interval the network is asked once, not twice."""
  sampler, guidance = wiring.sampler, wiring.guidance
  if guidance.everywhere or sampler.num_evaluations(process) is None:
    return samples.num_evaluations * guidance.num_evaluations
  return guidance.count(process, np.asarray(sampler.scheme(process).t))


def _trajectory(
  wiring: _Wiring, params: Params, keys: Keys, labels: Int[Array, "N"] | None = None
) -> Float[Array, "S N H W C"]:
  estimates = _sample(wiring, params, keys, labels, keep_estimates=True).estimates
  assert estimates is not None
  return estimates
