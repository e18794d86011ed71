"""Measuring a model: full passes over a split, sample sets, figures and their protocol."""

from diffusion_jax.evaluation.held_out_pass import (
  Figure,
  baseline_bits,
  flatten,
  held_out,
  summarize,
)

__all__ = ["Figure", "baseline_bits", "flatten", "held_out", "summarize"]
