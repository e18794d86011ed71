"""What a diffusion model does, as functions of its wiring: the built parts that it is made of."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion_jax.core import rng
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.generative.augmentation import Augmentation
from diffusion_jax.likelihood import Spectrum
from diffusion_jax.losses import Objective, Place
from diffusion_jax.models import Network
from diffusion_jax.processes import (
  MAX_PRIOR_BITS,
  Learned,
  Preconditioned,
  Process,
  precondition,
  prior_bits,
)
from diffusion_jax.samplers import Guidance, Worse, editing
from diffusion_jax.samplers.grids import last_time
from diffusion_jax.samplers.linear import Denoise, FixedStep
from diffusion_jax.types import (
  Aux,
  Batch,
  Editing,
  Estimate,
  ImageSpec,
  Key,
  Keys,
  Params,
  Samples,
  SpectrumEstimate,
  UserError,
)


class Schedule(NamedTuple):
  """A process that may have parameters: key -> params, and params -> the process."""

  init: Callable[[Key], Params]
  at: Callable[[Params], Process]


def make_schedule(config: Any) -> Schedule:
  if not getattr(config, "learned", False):
    process = config.create()
    return Schedule(lambda key: {}, lambda params: process)
  schedule = config.create()

  def at(params: Params) -> Process:
    gamma = functools.partial(schedule.gamma, params)
    interior = schedule.interior and functools.partial(schedule.interior, params)
    return Learned(gamma, config.gamma_min, config.gamma_max, interior, config.image_scale)

  return Schedule(schedule.init, at)


NOISIER = {
  "beta_end": "higher",
  "beta_max": "higher",
  "sigma_max": "higher",
  "gamma_max": "higher",
  "log_snr_min": "lower",
  "num_timesteps": "higher",
}
"""Field of a process -> how it makes x_1 noisier."""


def far_from_noise(config: Any) -> str | None:
  """Return a line where a process ends too far from noise for samples to start there, or None.

  It is no error: bounds pay for it and stay right, training may move a learned end, and older runs
  must open.
  """
  schedule = make_schedule(config)
  bits = prior_bits(schedule.at(schedule.init(jax.random.key(0))))
  if bits <= MAX_PRIOR_BITS:
    return None
  field = next((name for name in NOISIER if hasattr(config, name)), None)
  change = f"set a {NOISIER[field]} --config.process.{field}" if field else "take another process"
  return (
    f"the process ends {bits:.2g} bits/dim from noise (its prior term; up to {MAX_PRIOR_BITS} is "
    f"noise), and samples start from noise: they will be off; {change}"
  )


class Bound(NamedTuple):
  """A model for one set of parameters: the network's own, the loss's own, and what they fix."""

  network: Preconditioned
  process: Process
  params: Params
  own: Params


class Wiring(NamedTuple):
  spec: ImageSpec
  schedule: Schedule
  backbone: Network
  prediction: str
  sigma_data: float
  learned_variance: bool
  objective: Objective
  sampler: Any
  guidance: Guidance
  null_label: int | None
  label_dropout: float
  augmentation: Augmentation

  def init(self, key: Key) -> tuple[Params, Aux]:
    """The network's parameters; under "network" where the process or the loss has some too."""
    others = {
      "process": self.schedule.init(jax.random.fold_in(key, 1)),
      "loss": self.objective.init(jax.random.fold_in(key, 2)),
    }
    others = {name: params for name, params in others.items() if params}
    network = self.backbone.init(key)
    return {"network": network, **others} if others else network, self.objective.memory

  def bind(self, params: Params, told: Float[Array, "B A"] | None = None) -> Bound:
    """The model with these parameters, as `init` laid them out, told how images were augmented."""
    parts = params if "network" in params else {"network": params}
    process = self.schedule.at(parts.get("process", {}))
    apply = self.backbone.apply
    apply = apply if told is None else functools.partial(apply, augmentation=told)
    network = precondition(apply, process, self.prediction, self.sigma_data, self.learned_variance)
    return Bound(network, process, parts["network"], parts.get("loss", {}))


def loss(wiring: Wiring, params, aux, key, batch: Batch, train: bool):
  example_key, dropout_key = jax.random.split(key)
  dropout_key = jax.random.fold_in(dropout_key, batch.index[0])  # another for each microbatch
  keys = rng.example_keys(example_key, batch.index)
  x0 = from_levels(batch.image, wiring.spec.num_levels)
  x0, told = wiring.augmentation.training(keys, x0, train)
  model = wiring.bind(params, told)
  return wiring.objective.loss(
    *model,
    aux,
    Place(key, jnp.asarray(batch.index)),
    keys,
    x0,
    training_labels(wiring, keys, batch.label, train),
    dropout_key if train else None,
  )


def training_labels(
  wiring: Wiring, keys: Keys, labels: Int[Array | np.ndarray, "B"], train: bool
) -> Int[Array | np.ndarray, "B"] | None:
  """None for an unconditional model; some hidden behind the null class while training."""
  if wiring.null_label is None:
    return None
  if not train:
    return labels
  hidden = rng.uniform(rng.fold_in(keys, 2)) < wiring.label_dropout
  return jnp.where(hidden, wiring.null_label, labels)


def likelihood(
  wiring: Wiring, estimator: Any, params: Params, keys: Keys, batch: Batch
) -> Estimate:
  """Of a class-conditional model, the figure given the label."""
  return estimator(*_measured(wiring, params, keys, batch), wiring.spec.num_levels)


def measure_spectrum(
  wiring: Wiring, spectrum: Spectrum, params: Params, keys: Keys, batch: Batch
) -> SpectrumEstimate:
  return spectrum(*_measured(wiring, params, keys, batch))


def _measured(wiring: Wiring, params: Params, keys: Keys, batch: Batch) -> tuple:
  """What an estimator takes: network, process, params, keys, x0 and labels."""
  model = wiring.bind(params)
  x0 = from_levels(batch.image, wiring.spec.num_levels)
  labels = None if wiring.null_label is None else batch.label
  return model.network, model.process, model.params, keys, x0, labels


def denoise(wiring: Wiring, params: Params, xt, t, labels=None):
  model = wiring.bind(params)
  return model.network.denoise(model.params, xt, t, labels)


def sample(
  wiring: Wiring,
  params: Params,
  keys: Keys,
  labels: Int[Array, "N"] | None = None,
  keep_estimates: bool = False,
  worse: Worse | None = None,
) -> Samples:
  model = wiring.bind(params)
  denoise = _guided(wiring, model, labels, len(keys), worse)
  samples = wiring.sampler(denoise, model.process, keys, wiring.spec.shape, keep_estimates)
  return samples._replace(
    images=_decoded(wiring, model.process, samples.images),
    num_evaluations=_evaluations(wiring, model.process, samples),
  )


def _decoded(wiring: Wiring, process: Process, x: Float[Array, "N H W C"]):
  """Return images at the scale of the data from states where the sampler ends.

  A state of min_time is divided by its alpha, which is the most likely x0 by q(x_t | x0): its
  nearest level is then VDM's decoder.
  """
  sampler = wiring.sampler
  if getattr(sampler, "final", "data") == "data":
    return x
  if isinstance(sampler, FixedStep):
    return x / jnp.asarray(sampler.grid(process).alpha[-1], x.dtype)
  alpha, _ = process.alpha_sigma(np.asarray([last_time(process)]))
  return x / jnp.asarray(alpha[0], x.dtype)


def _guided(
  wiring: Wiring, model: Bound, labels: Any, num: int, worse: Worse | None = None
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
  needs_variance = getattr(wiring.sampler, "needs_variance", False)
  return wiring.guidance.bind(*args, with_variance=needs_variance)


def sample_against(
  wiring: Wiring, params: Params, keys: Keys, labels: Any, worse: Any, worse_params: Params
) -> Samples:
  return sample(wiring, params, keys, labels, worse=Worse(worse, worse_params))


def make_editing(wiring: Wiring) -> Editing | None:
  """None for a sampler that chooses its own steps."""
  sampler = wiring.sampler
  if not isinstance(sampler, FixedStep):
    return None

  def inpaint(params, keys, labels, x0, is_known):
    model = wiring.bind(params)
    denoise = _guided(wiring, model, labels, len(keys))
    found = editing.inpaint(denoise, model.process, keys, x0, is_known, sampler)
    return found._replace(images=_decoded(wiring, model.process, found.images))

  def along(run, params, x):
    model = wiring.bind(params)
    labels = None if wiring.null_label is None else jnp.full(len(x), wiring.null_label)
    denoise = functools.partial(model.network.denoise, model.params, labels=labels)
    return run(denoise, model.process, x, sampler), model.process

  def decode(params, x):
    x, process = along(editing.decode, params, x)
    return _decoded(wiring, process, x)

  return Editing(inpaint, lambda params, x: along(editing.encode, params, x)[0], decode)


def _evaluations(wiring: Wiring, process: Process, samples: Samples):
  """Of one image; outside of guidance's interval the network is asked once, not twice."""
  sampler, guidance = wiring.sampler, wiring.guidance
  if guidance.everywhere or sampler.num_evaluations(process) is None:
    return samples.num_evaluations * guidance.num_evaluations
  return guidance.count(process, sampler.scheme(process).t)


def trajectory(
  wiring: Wiring, params: Params, keys: Keys, labels: Int[Array, "N"] | None = None
) -> Float[Array, "S N H W C"]:
  estimates = sample(wiring, params, keys, labels, keep_estimates=True).estimates
  assert estimates is not None
  return estimates
