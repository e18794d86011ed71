"""Samplers: from noise to data by a denoiser; fixed-step samplers are one `lax.scan` each."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import Facts
from diffusion_jax.samplers.adaptive import ProbabilityFlow
from diffusion_jax.samplers.ancestral import Ancestral
from diffusion_jax.samplers.base import (
  Sampler,
  SamplerBase,
  checked_samples,
  initial_states,
  keys_per_example,
)
from diffusion_jax.samplers.ddim import DDIM
from diffusion_jax.samplers.dpm_solver import DPMSolverPP2M, DPMSolverPP2MSDE, DPMSolverPP3M
from diffusion_jax.samplers.euler import Euler
from diffusion_jax.samplers.guidance import Guidance, GuidingModel
from diffusion_jax.samplers.heun import Heun
from diffusion_jax.samplers.linear import LinearSampler, StepWeights, Tableau
from diffusion_jax.samplers.unipc import UniPC

SAMPLERS = Registry(
  "sampler",
  Sampler,
  {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver_pp_2m": DPMSolverPP2M,
    "dpm_solver_pp_3m": DPMSolverPP3M,
    "dpm_solver_pp_2m_sde": DPMSolverPP2MSDE,
    "unipc": UniPC,
    "probability_flow": ProbabilityFlow,
  },
  setting_facts=Facts(may_change=True),
  base=SamplerBase,
)
"""Samplers by name: the values of `sampler.name`."""

__all__ = [
  "DDIM",
  "SAMPLERS",
  "Ancestral",
  "DPMSolverPP2M",
  "DPMSolverPP2MSDE",
  "DPMSolverPP3M",
  "Euler",
  "Guidance",
  "GuidingModel",
  "Heun",
  "LinearSampler",
  "ProbabilityFlow",
  "Sampler",
  "SamplerBase",
  "StepWeights",
  "Tableau",
  "UniPC",
  "checked_samples",
  "initial_states",
  "keys_per_example",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
