"""Networks as pure functions. Only this room uses flax."""

from diffusion_jax.core.registry import Registry
from diffusion_jax.models.autoencoder_kl import AutoencoderKL
from diffusion_jax.models.base import (
  Autoencoder,
  Network,
  NetworkBase,
  NetworkConfig,
  Observation,
  check_takes,
  created_networks,
)
from diffusion_jax.models.classifier import Classifier, ClassifierNetwork
from diffusion_jax.models.conv_vae import ConvVAE, VAENetworks
from diffusion_jax.models.decoders import Bernoulli, DiscretizedLogistic, Gaussian
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.noise_schedules import LearnedLinear, LearnedMonotone
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vdm_unet import VDMUNet
from diffusion_jax.processes import Process

NETWORKS = Registry(
  "model",
  NetworkConfig,
  {"unet": UNet, "vdm_unet": VDMUNet, "dit": DiT, "mlp": MLP},
  base=NetworkBase,
)
"""Networks of diffusion models by name: the values of `model.name`."""
NOISE_SCHEDULES = Registry(
  "process", Process, {"learned_linear": LearnedLinear, "learned_monotone": LearnedMonotone}
)
"""Processes with a learned noise schedule by name: values of `process.name`."""
VAES = Registry("autoencoder", Autoencoder, {"conv_vae": ConvVAE, "autoencoder_kl": AutoencoderKL})
"""Networks of VAEs by name: the values of `model.name` or `autoencoder.name`."""
DECODERS = Registry(
  "decoder",
  Observation,
  {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "discretized_logistic": DiscretizedLogistic,
  },
)
"""Observation models p(x | z) by name: the values of `decoder.name`."""

__all__ = [
  "DECODERS",
  "MLP",
  "NETWORKS",
  "NOISE_SCHEDULES",
  "VAES",
  "Autoencoder",
  "AutoencoderKL",
  "Bernoulli",
  "Classifier",
  "ClassifierNetwork",
  "ConvVAE",
  "DiT",
  "DiscretizedLogistic",
  "Gaussian",
  "LearnedLinear",
  "LearnedMonotone",
  "Network",
  "NetworkBase",
  "NetworkConfig",
  "Observation",
  "UNet",
  "VAENetworks",
  "VDMUNet",
  "check_takes",
  "created_networks",
]


def __dir__() -> list[str]:
  """Return the public names, for completion."""
  return sorted(__all__)
