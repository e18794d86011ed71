"""Measure a model: passes over a split, sets of samples, figures and their protocol."""

from diffusion_jax.evaluation.held_out_pass import (
  Figure,
  as_scalars,
  baseline_bits,
  held_out,
  summary_lines,
)

__all__ = ["Figure", "as_scalars", "baseline_bits", "held_out", "summary_lines"]
