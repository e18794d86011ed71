"""Facts that a config field, its class or its registry declares."""

import dataclasses

import pytest

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import Facts, field_fact, fields_with, section_fact, setting


@dataclasses.dataclass(frozen=True)
class Own:
  root: str = setting("here", is_path=True, may_change=True)
  size: int = 3


@dataclasses.dataclass(frozen=True)
class Derived(Own):
  root: str = "there"
  second: str = setting("", is_path=True)


@dataclasses.dataclass(frozen=True)
class Loose(Own):
  setting_facts = Facts(may_change=True)


LOOSE = Registry("loose", object, {"own": Own}, setting_facts=Facts(may_change=True))


def test_a_setting_is_a_field_with_a_default():
  assert Own() == Own("here", 3)
  assert dataclasses.fields(Own)[0].metadata == {"is_path": True, "may_change": True}


def test_a_field_decides_before_its_class_and_that_before_the_registry():
  strict = Registry("strict", object, {"own": Own})
  assert field_fact("may_change", strict, Own, "root")
  assert not field_fact("may_change", strict, Own, "size")
  assert field_fact("may_change", strict, Loose, "size")
  assert field_fact("may_change", LOOSE, Own, "size")
  assert field_fact("affects_figures", LOOSE, Own, "size")


def test_a_registry_decides_for_a_class_of_any_package():
  assert section_fact("may_change", LOOSE, int)
  assert field_fact("may_change", LOOSE, None, "gone")
  assert not field_fact("may_change", None, None, "gone")


def test_an_entry_does_not_decide_whether_another_may_take_its_place():
  strict = Registry("strict", object, {"loose": Loose})
  assert not field_fact("may_change", strict, Loose, "name")


def test_a_subclass_with_a_new_default_keeps_the_facts():
  assert fields_with("is_path", Derived) == ["root", "second"]


def test_a_misspelt_fact_is_an_error():
  with pytest.raises(TypeError, match="may_chnge"):
    setting(0, may_chnge=True)
