"""Estimate a training step on absent devices: memory, time, traffic."""

from diffusion_jax.planning.chips import Chip, find_chip, memory_limit
from diffusion_jax.planning.communication import Traffic, traffic
from diffusion_jax.planning.compiled import (
  DoesNotFit,
  Measured,
  Program,
  build_program,
  explain_misfit,
  measure_program,
)
from diffusion_jax.planning.fit import Fit, largest_batch, verify
from diffusion_jax.planning.image_shape import image_spec
from diffusion_jax.planning.preview import Preview, measure_preview
from diffusion_jax.planning.roofline import Roofline, roofline
from diffusion_jax.planning.table import Plan, each, plan_json, plan_text
from diffusion_jax.planning.targets import find_devices, with_slices

__all__ = [
  "Chip",
  "DoesNotFit",
  "Fit",
  "Measured",
  "Plan",
  "Preview",
  "Program",
  "Roofline",
  "Traffic",
  "build_program",
  "each",
  "explain_misfit",
  "find_chip",
  "find_devices",
  "image_spec",
  "largest_batch",
  "measure_preview",
  "measure_program",
  "memory_limit",
  "plan_json",
  "plan_text",
  "roofline",
  "traffic",
  "verify",
  "with_slices",
]
