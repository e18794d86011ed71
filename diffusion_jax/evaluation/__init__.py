"""Measure a model: passes over a split, sets of samples, figures and their protocol."""

from diffusion_jax.evaluation.held_out_pass import (
  Figure,
  baseline_bits,
  flatten,
  held_out,
  summarize,
)

__all__ = ["Figure", "baseline_bits", "flatten", "held_out", "summarize"]
