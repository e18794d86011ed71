"""Bits/dim estimators and the baselines that they must beat."""

from diffusion_jax.likelihood.baseline import (
  independent_binary_bits,
  independent_pixel_bits,
  pixel_histogram,
)

__all__ = ["independent_binary_bits", "independent_pixel_bits", "pixel_histogram"]
