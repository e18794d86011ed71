"""Sample metrics on features: NumPy and SciPy, float64, on the host, no jax.

Features are one row an image. Where a metric takes samples and reference separately its docstring
says which comes first; those that are symmetric take them in either order. Every function raises
ValueError, one sentence, for features that are not finite or too few.
"""

from diffusion_jax.metrics.frechet import (
  Extrapolation,
  frechet_distance,
  frechet_infinity,
  frechet_standard_error,
)
from diffusion_jax.metrics.kernel import KernelDistance, kernel_distance
from diffusion_jax.metrics.memorization import Copying, Distances, copying
from diffusion_jax.metrics.moments import Moments, add, merge, zeros
from diffusion_jax.metrics.neighbours import (
  Nearest,
  density_coverage,
  nearest,
  precision_recall,
)
from diffusion_jax.metrics.scores import Score, inception_score

__all__ = [
  "Copying",
  "Distances",
  "Extrapolation",
  "KernelDistance",
  "Moments",
  "Nearest",
  "Score",
  "add",
  "copying",
  "density_coverage",
  "frechet_distance",
  "frechet_infinity",
  "frechet_standard_error",
  "inception_score",
  "kernel_distance",
  "merge",
  "nearest",
  "precision_recall",
  "zeros",
]
