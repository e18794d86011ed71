"""The evaluation report: one self-contained HTML file from the figures of one checkpoint."""

from diffusion_jax.report.html import render, write_report
from diffusion_jax.report.inline_images import Picture

__all__ = ["Picture", "render", "write_report"]
