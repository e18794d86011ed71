"""Write the evaluation report: one self-contained HTML file of one checkpoint's metrics."""

from diffusion_jax.report.comparison import OtherRun
from diffusion_jax.report.course import check_course, course_of
from diffusion_jax.report.html import Beside, render, write_course, write_report
from diffusion_jax.report.inline_images import Part, Picture, Row
from diffusion_jax.report.links import Link

__all__ = [
  "Beside",
  "Link",
  "OtherRun",
  "Part",
  "Picture",
  "Row",
  "check_course",
  "course_of",
  "render",
  "write_course",
  "write_report",
]
