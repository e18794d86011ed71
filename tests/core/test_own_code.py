"""What a user's own part raises is one line; what this package's parts raise passes through."""

import dataclasses

import pytest
from broken_parts import LossRaises, PropertyOfASampler, ScalarLoss

from diffusion_jax.core.own_code import describe_error, is_own, own_code, own_refusal
from diffusion_jax.losses import Simple
from diffusion_jax.types import UserError


def test_a_part_is_own_if_its_class_is_from_elsewhere():
  assert is_own(ScalarLoss())
  assert is_own(ScalarLoss)
  assert not is_own(Simple())
  assert not is_own(None)


def test_an_exception_names_section_class_text_and_place():
  with (
    pytest.raises(UserError) as caught,
    own_code({"loss": Simple(), "sampler": PropertyOfASampler()}),
  ):
    _ = PropertyOfASampler().order
  assert str(caught.value).startswith(
    "config.sampler (broken_parts:PropertyOfASampler): RuntimeError: boom in two lines "
    "(broken_parts.py, line "
  )
  assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_part_whose_file_raised_is_named():
  @dataclasses.dataclass(frozen=True)
  class Here:
    pass

  parts = {"model": Here(), "loss": LossRaises()}
  line = r"^config.loss \(broken_parts:LossRaises\): AttributeError: "
  with pytest.raises(UserError, match=line), own_code(parts):
    LossRaises().error(None, None, None)
  line = r"^config.model \(.*Here\): KeyError: 'a' \(test_own_code.py"
  with pytest.raises(UserError, match=line), own_code(parts):
    raise KeyError("a")


@pytest.mark.parametrize("error", [UserError("a line"), MemoryError("full"), KeyError("a")])
def test_other_errors_pass_through(error):
  parts = {"loss": Simple()} if isinstance(error, KeyError) else {"loss": ScalarLoss()}
  with pytest.raises(type(error)) as caught, own_code(parts):
    raise error
  assert caught.value is error


def test_expected_refusals_pass_and_are_explained_if_the_part_raised_them():
  with pytest.raises(ValueError, match=r"^no$"), own_code({"loss": ScalarLoss()}, (ValueError,)):
    raise ValueError("no")
  assert own_refusal({"loss": ScalarLoss()}, ValueError("no traceback")) is None


def test_a_long_text_is_cut_and_an_empty_one_left_out():
  assert describe_error(AssertionError()) == "AssertionError"
  assert len(describe_error(TypeError("a " * 1000))) < 330
