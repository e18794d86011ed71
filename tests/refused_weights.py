"""What `read_weights` says of a file that it refuses."""

import pytest

from diffusion_jax.types import UserError
from diffusion_jax.weight_files.weight_file import read_weights


def refusal(path):
  """The message: one line that begins with the path."""
  with pytest.raises(UserError) as error:
    read_weights(path)
  message = str(error.value)
  assert message.startswith(str(path))
  assert "\n" not in message
  return message
