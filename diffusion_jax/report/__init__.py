"""Write the evaluation report: one self-contained HTML file of one checkpoint's metrics."""

from diffusion_jax.report.html import render, write_report
from diffusion_jax.report.inline_images import Picture

__all__ = ["Picture", "render", "write_report"]
