"""Data sets of Hugging Face without their library; tests/reference has those with it."""

import importlib.util

import pytest

from diffusion_jax.data import HuggingFace
from diffusion_jax.types import UserError


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="it is installed")
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"streaming": True, "image_size": 8}])
def test_the_missing_library_is_named_with_what_to_install(options):
  data = HuggingFace(dataset="ylecun/mnist", **options)
  with pytest.raises(UserError, match="data sets of Hugging Face need their library: pip"):
    data.look()
