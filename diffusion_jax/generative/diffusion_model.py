"""A diffusion model: the parts of a config in training, sampling and measuring."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion_jax.core import rng
from diffusion_jax.core.pixels import from_levels
from diffusion_jax.core.rng import Stream
from diffusion_jax.core.shapes import checked_loss
from diffusion_jax.generative.augmentation import Augmentation
from diffusion_jax.generative.base import ModelBase, loss_keys
from diffusion_jax.generative.conditioning import Conditioning
from diffusion_jax.likelihood import Spectrum
from diffusion_jax.losses import Loss
from diffusion_jax.models import Network
from diffusion_jax.parallel.spread import gathering
from diffusion_jax.processes import (
  MAX_PRIOR_BITS,
  Denoiser,
  PredictionName,
  Process,
  prior_bits,
)
from diffusion_jax.samplers import (
  Guidance,
  GuidingModel,
  LinearSampler,
  Sampler,
  checked_samples,
  editing,
)
from diffusion_jax.samplers.base import Denoise
from diffusion_jax.types import (
  UNCONDITIONAL,
  Aux,
  Batch,
  Condition,
  Estimate,
  Examples,
  GenerativeModel,
  ImageSpec,
  Key,
  Keys,
  Likelihood,
  LossOutput,
  Params,
  Samples,
  SpectrumEstimate,
  UserError,
)


def far_from_noise(process: Process) -> str | None:
  """Return a warning if a process ends too far from noise to start sampling there, or None.

  It is not an error: bounds include this cost and stay correct, training may move a learned
  endpoint, and older runs must still open.
  """
  bits = prior_bits(process.bind(process.init(jax.random.key(0))))
  if bits <= MAX_PRIOR_BITS:
    return None
  field, direction = process.noisier
  change = f"set a {direction} `process.{field}=VALUE`" if field else "take another process"
  return (
    f"the process ends {bits:.2g} bits/dim from noise (its prior term; up to {MAX_PRIOR_BITS} is "
    f"noise), and samples start from noise: they will be off; {change}"
  )


class Bound(NamedTuple):
  """A model for given parameters: its denoiser, and the loss's own parameters."""

  denoiser: Denoiser
  loss_params: Params


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionModel(ModelBase):
  """A network with its process, loss, sampler, guidance and likelihood estimators.

  Attributes:
    spec: shape of the data.
    process: the forward process, not yet bound to parameters of a learned schedule.
    backbone: the network.
    prediction, sigma_data: meaning of its output.
    learned_variance: True if it also gives variance logits.
    objective: the loss.
    sampler, guidance: settings of sampling.
    conditioning: the network's inputs for each example besides data and time.
    augmentation: augmentation of the training images.
    estimators: likelihood estimators by name.
    spectrum: the loss by log-SNR.
  """

  kind = "diffusion"

  spec: ImageSpec
  process: Process
  backbone: Network
  prediction: PredictionName
  sigma_data: float
  learned_variance: bool
  objective: Loss
  sampler: Sampler
  guidance: Guidance
  conditioning: Conditioning
  augmentation: Augmentation
  estimators: Mapping[str, Any]
  spectrum: Spectrum

  @property
  def capabilities(self) -> frozenset[str]:
    of_sampler = {"edit"} if isinstance(self.sampler, LinearSampler) else set()
    of_sampler |= {"trajectory"} if self.sampler.keeps_estimates else set()
    of_sampler |= set() if self.sampler.gives_end_time else {"loss_by_log_snr"}
    return frozenset({"denoise", "guide"} | of_sampler)

  @property
  def needs_average(self) -> bool:
    return self.objective.needs_average

  @property
  def num_levels(self) -> int | None:
    return self.spec.num_levels

  @property
  def num_classes(self) -> int:
    return self.conditioning.num_classes

  @property
  def fields(self) -> tuple[str, ...]:
    return tuple(self.conditioning.fields)

  @property
  def likelihoods(self) -> Mapping[str, Likelihood]:
    return {
      name: functools.partial(self._likelihood, estimator)
      for name, estimator in self.estimators.items()
    }

  @property
  def described_likelihoods(self) -> Mapping[str, Any]:
    return self.estimators

  def init(self, key: Key) -> tuple[Params, Aux]:
    """Return the network's parameters; under "network" if process or loss also have some."""
    others = {
      "process": self.process.init(rng.stream(key, Stream.SCHEDULE)),
      "loss": self.objective.init(rng.stream(key, Stream.LOSS)),
    }
    others = {name: params for name, params in others.items() if params}
    network = self.backbone.init(rng.stream(key, Stream.NETWORK))
    params = {"network": network, **others} if others else network
    process = self.process.bind(others.get("process", {}))
    return params, self.objective.initial_state(process)

  def bind(self, params: Params) -> Bound:
    """Return the model with given parameters, in the layout of `init`."""
    groups = params if "network" in params else {"network": params}
    network = functools.partial(gathering(self.backbone.apply), groups["network"])
    process = self.process.bind(groups.get("process", {}))
    options = self.prediction, self.sigma_data, self.learned_variance
    return Bound(Denoiser(network, process, *options), groups.get("loss", {}))

  def loss(
    self,
    params: Params,
    loss_state: Aux,
    key: Key,
    batch: Batch,
    *,
    train: bool,
    average: Params | None = None,
    batch_mean: Array | None = None,
  ) -> LossOutput:
    del batch_mean
    step, keys, dropout_key = loss_keys(key, batch, train)
    x0 = from_levels(batch.image, self.spec.num_levels)
    x0, augmentation_labels = self.augmentation.training(keys, x0, dropout_key is not None)
    condition = self.conditioning.in_training(keys, batch, dropout_key)
    condition = condition._replace(augmentation=augmentation_labels)
    examples = Examples(
      x0, condition, jnp.asarray(batch.index), batch.mask, step, self.spec.num_levels
    )
    denoiser, loss_params = self.bind(params)
    output = self.objective(
      denoiser,
      examples,
      keys,
      average=self._averaged(params if average is None else average),
      state=loss_state,
      loss_params=loss_params,
      dropout_key=dropout_key,
    )
    return checked_loss(output, len(x0))

  def _averaged(self, params: Params) -> Denoiser | None:
    """Return the teacher or target network, for a loss that uses one."""
    if not self.objective.needs_average:
      return None
    return self.bind(jax.lax.stop_gradient(params)).denoiser

  def _likelihood(self, estimator: Any, params: Params, keys: Keys, batch: Batch) -> Estimate:
    """Return the likelihood of each example given its condition."""
    return estimator.estimate(*self._measured(params, batch), keys)

  def loss_by_log_snr(self, params: Params, keys: Keys, batch: Batch) -> SpectrumEstimate:
    return self.spectrum(*self._measured(params, batch), keys)

  def _measured(self, params: Params, batch: Batch) -> tuple[Denoiser, Examples]:
    """Return the arguments of an estimator except its keys."""
    x0 = from_levels(batch.image, self.spec.num_levels)
    condition = self.conditioning.given(batch)
    examples = Examples(x0, condition, num_levels=self.spec.num_levels)
    return self.bind(params).denoiser, examples

  def denoise(
    self, params: Params, xt: Array, t: Array, condition: Condition = UNCONDITIONAL
  ) -> Array:
    condition = self.conditioning.complete(condition, len(xt))
    return self.bind(params).denoiser.denoise(xt, t, condition)

  def sample(self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL) -> Samples:
    return self._sample(params, keys, condition)

  def sample_guided(
    self,
    params: Params,
    keys: Keys,
    condition: Condition,
    guide: GenerativeModel,
    guide_params: Params,
  ) -> Samples:
    def guide_denoise(xt: Array, t: Array, condition: Condition) -> Array:
      known = {name: condition.fields[name] for name in guide.fields}
      return guide.denoise(guide_params, xt, t, condition._replace(fields=known))

    return self._sample(params, keys, condition, guide=guide_denoise)

  def trajectory(
    self, params: Params, keys: Keys, condition: Condition = UNCONDITIONAL
  ) -> Float[Array, "S N ..."]:
    estimates = self._sample(params, keys, condition, keep_estimates=True).estimates
    if estimates is None:
      self._refuse("trajectory")
    return estimates

  def _sample(
    self,
    params: Params,
    keys: Keys,
    condition: Condition,
    keep_estimates: bool = False,
    guide: GuidingModel | None = None,
  ) -> Samples:
    model = self.bind(params).denoiser
    denoise = self._guided(model, condition, len(keys), guide)
    shape = (len(keys), *self.spec.shape)
    samples = self.sampler.sample(denoise, model.process, keys, shape, keep_estimates)
    samples = checked_samples(samples, shape)
    return samples._replace(
      images=decoded(self.sampler, model.process, samples.images),
      num_evaluations=self._evaluations(model.process, samples),
    )

  def _guided(
    self, model: Denoiser, condition: Condition, num_images: int, guide: GuidingModel | None = None
  ) -> Denoise:
    """Return the guided denoiser of a batch; missing conditions become null conditions."""
    if self.guidance.against == "model" and guide is None and self.guidance.weight != 1.0:
      raise UserError(
        "guidance.against=model needs the run of an inferior model: python -m "
        "diffusion_jax.sample --guide_workdir=DIR, or set `guidance.against=null_class`"
      )
    condition = self.conditioning.complete(condition, num_images)
    null_condition = self.conditioning.null(condition) if self.conditioning.droppable else None
    needs_variance = self.sampler.needs_variance
    return self.guidance.bind(model, condition, null_condition, guide, needs_variance)

  def _evaluations(self, process: Process, samples: Samples):
    """Return evaluations per image; outside guidance's interval each step counts once."""
    times = self.sampler.evaluation_times(process)
    if self.guidance.everywhere or times is None:
      return samples.num_evaluations * self.guidance.num_evaluations
    return self.guidance.count(process, times)

  def inpaint(
    self, params: Params, keys: Keys, condition: Condition, x0: Array, is_known: Array
  ) -> Samples:
    model, sampler = self.bind(params).denoiser, self._editor()
    denoise = self._guided(model, condition, len(keys))
    samples = editing.inpaint(denoise, model.process, keys, x0, is_known, sampler)
    return samples._replace(images=decoded(self.sampler, model.process, samples.images))

  def to_noise(self, params: Params, x0: Array, condition: Condition = UNCONDITIONAL) -> Array:
    model, sampler = self.bind(params).denoiser, self._editor()
    denoise = self._unguided(model, condition, len(x0))
    return editing.encode(denoise, model.process, x0, sampler)

  def from_noise(self, params: Params, noise: Array, condition: Condition = UNCONDITIONAL) -> Array:
    model, sampler = self.bind(params).denoiser, self._editor()
    denoise = self._unguided(model, condition, len(noise))
    x = editing.decode(denoise, model.process, noise, sampler)
    return decoded(self.sampler, model.process, x)

  def _editor(self) -> LinearSampler:
    """Return the sampler if it can edit; otherwise raise a UserError."""
    if not isinstance(self.sampler, LinearSampler):
      self._refuse("edit")
    return self.sampler

  def _unguided(self, model: Denoiser, condition: Condition, num_images: int) -> Denoise:
    condition = self.conditioning.complete(condition, num_images)
    return functools.partial(model.denoise, condition=condition)


def decoded(sampler: Sampler, process: Process, x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
  """Return examples on the scale of the data from the sampler's final states.

  A state at min_time is divided by its alpha. This is the most likely x0 under q(x_t | x0), and its
  nearest level is then VDM's decoder.
  """
  end = sampler.end_time(process)
  if end is None:
    return x
  alpha, _ = process.alpha_sigma(np.asarray([end]))
  return x / jnp.asarray(alpha[0], x.dtype)
