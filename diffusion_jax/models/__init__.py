"""Networks. The only room that knows flax; each becomes a pure function here."""

from diffusion_jax.models.classifier import Classifier, ClassifierNetwork
from diffusion_jax.models.decoders import Bernoulli, DiscretizedLogistic, Gaussian
from diffusion_jax.models.unet import Network, UNet
from diffusion_jax.models.vae import ConvVAE, VAENetworks

NETWORKS = {"unet": UNet}
VAES = {"conv_vae": ConvVAE}
DECODERS = {
  "bernoulli": Bernoulli,
  "gaussian": Gaussian,
  "discretized_logistic": DiscretizedLogistic,
}

__all__ = [
  "DECODERS",
  "NETWORKS",
  "VAES",
  "Bernoulli",
  "Classifier",
  "ClassifierNetwork",
  "ConvVAE",
  "DiscretizedLogistic",
  "Gaussian",
  "Network",
  "UNet",
  "VAENetworks",
]
