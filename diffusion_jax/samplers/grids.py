"""Time grids: which of a process's T steps a sampler of S steps visits. NumPy, on the host."""

from typing import Literal

import numpy as np
from jaxtyping import Int

Spacing = Literal["leading", "trailing", "linspace"]


def visited_steps(num_timesteps: int, num_steps: int, spacing: Spacing) -> Int[np.ndarray, "S"]:
  """Steps n of 1..T from the noisiest down.

  With i = 0..S-1, in the literature's numbering from 0 (n - 1):
    leading: i floor(T / S); it starts at 0 and may stop short of T - 1.
    trailing: round(T - i T / S) - 1; it starts at T - 1 and stops short of 0.
    linspace: S numbers from 0 to T - 1, rounded.
  Source: Lin et al. 2024 (arXiv 2305.08891), table 2.

  Raises:
    ValueError: more steps than the process has, or none.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise ValueError(
      f"sampler.steps={num_steps} must lie between 1 and the process's {num_timesteps}; e.g. "
      f"--config.sampler.steps={num_timesteps}"
    )
  i = np.arange(num_steps)
  if spacing == "leading":
    zero_based = (i * (num_timesteps // num_steps))[::-1]
  elif spacing == "trailing":
    zero_based = np.round(num_timesteps - i * (num_timesteps / num_steps)).astype(np.int64) - 1
  else:
    zero_based = np.round(np.linspace(0, num_timesteps - 1, num_steps)).astype(np.int64)[::-1]
  return zero_based + 1
