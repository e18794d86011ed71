"""Words of messages: flags on the command line, arguments in Python."""

import pytest

from diffusion_jax.core.wording import in_python, with_flags
from diffusion_jax.types import UserError


def test_a_librarys_message_names_flags_on_the_command_line():
  text = "steps=0 must be at least 1; try `sampler.steps=50` or `sampler.name=ddim`"
  assert with_flags(text) == (
    "steps=0 must be at least 1; try --config.sampler.steps=50 or --config.sampler.name=ddim"
  )
  assert with_flags("the file `a.png` and `x = 1`") == "the file `a.png` and `x = 1`"


@pytest.mark.parametrize(
  ("flags", "python"),
  [
    (
      "--config.sampler.steps=0: set --config.sampler.steps=5",
      "sampler.steps=0: set sampler.steps=5",
    ),
    ("--workdir=runs/x: no run there", "workdir=runs/x: no run there"),
    ("a -- b, x--y", "a -- b, x--y"),
  ],
)
def test_errors_of_the_library_name_arguments(flags, python):
  with pytest.raises(UserError) as caught, in_python():
    raise UserError(flags)
  assert str(caught.value) == python
