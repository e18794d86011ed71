"""Train and measure diffusion models and variational autoencoders in JAX."""

__version__ = "0.1.0"
