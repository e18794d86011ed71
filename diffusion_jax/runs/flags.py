"""Parse and check the flags that several programs share."""

import re

from diffusion_jax.types import UserError


def parse_step(text: str, flag: str = "step") -> int | None:
  """Parse --step: None for "latest", else the number.

  Raises:
    UserError: the text is neither.
  """
  if text != "latest" and not re.fullmatch("[0-9]+", text):
    raise UserError(f"--{flag}={text}: must be latest or a number, e.g. --{flag}=1000")
  return None if text == "latest" else int(text)


def check_seed(seed: int) -> None:
  """Raise an error for a --seed from which no key can be made."""
  if not 0 <= seed < 2**31:
    raise UserError(f"--seed={seed}: must be between 0 and 2^31 - 1")
