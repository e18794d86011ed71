"""Forward processes q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) and network predictions."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.processes.base import (
  ContinuousProcess,
  Data,
  Process,
  ProcessBase,
  VariancePreserving,
  namespace,
)
from diffusion_jax.processes.boundary_terms import (
  MAX_PRIOR_BITS,
  end_kl,
  first_time,
  prior_bits,
  reconstruction,
)
from diffusion_jax.processes.denoiser import (
  PREDICTIONS,
  UNDEFINED_AT_PURE_NOISE,
  Denoiser,
  Noised,
  Predicted,
  Prediction,
  PredictionName,
  State,
  check_inputs,
)
from diffusion_jax.processes.discrete_vp import CosineVP, DiscreteVP, LinearVP
from diffusion_jax.processes.learned import Learned, LearnedSchedule
from diffusion_jax.processes.posterior import (
  ReverseSteps,
  bound_term,
  decoder_log_prob,
  divergence,
  log_ratio,
  prior_kl,
  reverse_steps,
)
from diffusion_jax.processes.unscaled import EDMProcess, Flow, VarianceExploding
from diffusion_jax.processes.variance_preserving import (
  ContinuousCosineVP,
  ContinuousLinearVP,
  ContinuousSigmoidVP,
  LinearLogSNR,
  SubVP,
)

PROCESSES = Registry(
  "process",
  Process,
  {
    "linear_vp": LinearVP,
    "cosine_vp": CosineVP,
    "vp": ContinuousLinearVP,
    "cosine": ContinuousCosineVP,
    "sigmoid": ContinuousSigmoidVP,
    "linear_log_snr": LinearLogSNR,
    "sub_vp": SubVP,
    "ve": VarianceExploding,
    "edm": EDMProcess,
    "flow": Flow,
  },
  base=ProcessBase,
)
"""Processes with a fixed noise schedule by name: values of `process.name`."""

__all__ = [
  "MAX_PRIOR_BITS",
  "PREDICTIONS",
  "PROCESSES",
  "UNDEFINED_AT_PURE_NOISE",
  "ContinuousCosineVP",
  "ContinuousLinearVP",
  "ContinuousProcess",
  "ContinuousSigmoidVP",
  "CosineVP",
  "Data",
  "Denoiser",
  "DiscreteVP",
  "EDMProcess",
  "Flow",
  "Learned",
  "LearnedSchedule",
  "LinearLogSNR",
  "LinearVP",
  "Noised",
  "Predicted",
  "Prediction",
  "PredictionName",
  "Process",
  "ProcessBase",
  "ReverseSteps",
  "State",
  "SubVP",
  "VarianceExploding",
  "VariancePreserving",
  "bound_term",
  "check_inputs",
  "decoder_log_prob",
  "divergence",
  "end_kl",
  "first_time",
  "log_ratio",
  "namespace",
  "prior_bits",
  "prior_kl",
  "reconstruction",
  "reverse_steps",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
