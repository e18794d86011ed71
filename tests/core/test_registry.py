"""Registries and contracts: what is missing is said once, and entries from outside are found."""

import abc
import dataclasses
import sys
import types
from typing import ClassVar, Protocol

import pytest
from plug_ins import declared

from diffusion_jax.auditing.rows import Row, audit_entries
from diffusion_jax.core import registry
from diffusion_jax.core.registry import Registry, broken_contract
from diffusion_jax.types import UserError


class Cake(Protocol):
  """A cake."""

  @property
  def layers(self) -> int:
    """Number of layers, at least 1."""
    ...

  def bake(self, minutes: int, *, heat: float) -> str:
    """Return the cake."""
    ...


@dataclasses.dataclass(frozen=True)
class Sponge:
  layers: int = 2

  def bake(self, minutes: int, *, heat: float, fan: bool = False) -> str:
    return f"{minutes} {heat} {fan}"


@dataclasses.dataclass(frozen=True)
class Flat:
  def bake(self, minutes: int) -> str:
    return str(minutes)


@dataclasses.dataclass(frozen=True)
class Odd:
  bake: int = 3

  def layers(self) -> int:
    return 1


@pytest.fixture
def cakes():
  return Registry("cake", Cake, {"sponge": Sponge})


@pytest.fixture
def outside(monkeypatch):
  module = types.ModuleType("my_cakes")
  for cls in (Sponge, Flat):
    own = dataclasses.make_dataclass(cls.__name__, [], bases=(cls,), frozen=True)
    own.__module__ = "my_cakes"  # from Python 3.12 on it would be this file
    setattr(module, cls.__name__, own)
  monkeypatch.setitem(sys.modules, "my_cakes", module)
  return module


def test_an_entry_is_found_by_name_and_named_again(cakes):
  assert cakes.find("sponge", "config.cake.name") is Sponge
  assert cakes.name_of(Sponge) == "sponge"


def test_what_keeps_a_contract_has_no_faults():
  assert broken_contract(Sponge, Cake) is None


def test_every_fault_is_said_at_once_with_what_the_member_must_be():
  assert broken_contract(Flat, Cake) == (
    "layers is missing (Number of layers, at least 1); bake must take (self, minutes: int, *, "
    f"heat: float) -> str (Return the cake); see {__name__}.Cake."
  )


def test_a_method_is_no_value_and_a_field_no_method():
  fault = broken_contract(Odd, Cake)
  assert fault is not None
  assert "layers must be a value or a property, not a method" in fault
  assert "bake must be a method, not a field" in fault


class Baker(abc.ABC):
  """A base class whose own abstract method belongs to the contract of its subclasses."""

  layers = 1

  def bake(self, minutes: int, *, heat: float) -> str:
    return self.dough(minutes)

  @abc.abstractmethod
  def dough(self, minutes: int, rest: int = 0) -> str:
    """Return the dough."""


@dataclasses.dataclass(frozen=True)
class NoRest(Baker):
  def dough(self, minutes: int) -> str:
    return str(minutes)


@dataclasses.dataclass(frozen=True)
class OtherName(Baker):
  def dough(self, minutes: int, pause: int = 0) -> str:
    return str(minutes + pause)


@dataclasses.dataclass(frozen=True)
class DoughField(Baker):
  dough: str = "rye"  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]


@dataclasses.dataclass(frozen=True)
class Described(Cake):
  """The Protocol itself: its stubs say what is wanted, and are none of it."""


@dataclasses.dataclass(frozen=True)
class Measured:
  layers: ClassVar[int] = 1

  @property
  def bake(self) -> str:
    return ""


@pytest.mark.parametrize(
  ("cls", "words"),
  [
    (NoRest, "dough must take (self, minutes: int, rest: int = 0) -> str (Return the dough)"),
    (OtherName, "dough must take (self, minutes: int, rest: int = 0)"),
    (DoughField, "dough must be a method, not a field (Return the dough)"),
    (Described, "layers is missing (Number of layers, at least 1); bake is missing"),
    (Measured, "bake must be a method, not a property"),
  ],
)
def test_signatures_of_all_members_are_the_contract(cls, words):
  assert words in (broken_contract(cls, Cake) or "")


@pytest.mark.parametrize("cls", [int, dataclasses.make_dataclass("Open", [])])
def test_an_entry_is_a_frozen_dataclass(cls):
  assert "frozen dataclass" in (broken_contract(cls, Cake) or "")


def test_static_and_class_methods_serve():
  @dataclasses.dataclass(frozen=True)
  class Box:
    layers: ClassVar[int] = 1

    @staticmethod
    def bake(minutes: int, *, heat: float) -> str:
      return f"{minutes} {heat}"

  assert broken_contract(Box, Cake) is None


def test_an_entry_that_is_added_later_exists_in_every_union(cakes):
  both = Registry("cake", Cake, cakes, {"flat": Flat})
  cakes["odd"] = Odd
  assert set(both) == {"sponge", "flat", "odd"}
  both["more"] = Sponge
  assert "more" in cakes


def test_a_class_from_outside_is_named_by_its_place(cakes, outside):
  cls = cakes.find("my_cakes:Sponge", "config.cake.name")
  assert cls is outside.Sponge
  assert cakes.name_of(cls) == "my_cakes:Sponge"


def test_a_broken_entry_point_takes_its_own_place_alone(cakes, outside):
  with declared(bakery={"cake.gone": "no_such_cakes:A", "cake.boxed": "my_cakes:Sponge"}):
    found = dict(registry.every_entry(cakes))
    rows = list(audit_entries(cakes, Cake, "a cake", lambda name, cls: [Row(name, "", 1.0, 1.0)]))
  assert (found["sponge"], found["boxed"]) == (Sponge, outside.Sponge)
  line = "package bakery, entry point cake.gone=no_such_cakes:A: no such module"
  assert line in str(found["gone"])
  assert {row.entry: row.passed for row in rows} == {"sponge": True, "gone": False, "boxed": True}


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ("no_such_cakes:A", "package bakery, entry point cake.mine=no_such_cakes:A: no such module"),
    ("my_cakes", "package bakery, entry point cake.mine=my_cakes: it names no class; its package"),
    ("my_cakes:", "package bakery, entry point cake.mine=my_cakes:: it names no class"),
    ("my_cakes:Flat", "(package bakery, entry point cake.mine=my_cakes:Flat): layers is missing"),
  ],
)
def test_a_broken_entry_point_is_told_with_what_was_typed_and_its_package(
  cakes, outside, value, words
):
  with declared(bakery={"cake.mine": value, "cake.boxed": "my_cakes:Sponge"}):
    with pytest.raises(UserError) as caught:
      cakes.find("mine", "config.cake.name")
    assert cakes.allowed() == ["boxed", "sponge"]
    with pytest.raises(UserError, match=r"Allowed: boxed, sponge\."):
      cakes.find("pie", "config.cake.name")
  assert str(caught.value).startswith("config.cake.name=mine")
  assert words in str(caught.value)


def test_an_entry_point_may_name_the_extra_that_it_needs(cakes, outside):
  with declared(bakery={"cake.mine": "my_cakes:Sponge [icing]"}):
    assert cakes.find("mine", "config.cake.name") is outside.Sponge


def test_two_packages_may_not_declare_one_name(cakes, outside):
  mine, also = {"cake.mine": "my_cakes:Sponge"}, {"cake.mine": "my_cakes:Flat"}
  with declared(one=mine, two=also), pytest.raises(UserError, match=r"one, .* and package two, "):
    cakes.find("mine", "config.cake.name")
  with declared(one=mine, two=mine):
    assert cakes.find("mine", "config.cake.name") is outside.Sponge


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("cake.sponge", "entry point cake.sponge=my_cakes:Sponge is ignored: cake sponge is there"),
    ("cakes.mine", "entry point cakes.mine is ignored: did you mean cake.mine?"),
    ("mine", "entry point mine is ignored: a name is KIND.NAME, with KIND one of autoencoder, "),
    ("cake", "entry point cake is ignored: did you mean cake.NAME?"),
  ],
)
def test_an_entry_point_that_is_ignored_is_told_once(cakes, outside, capsys, name, words):
  with declared(bakery={name: "my_cakes:Sponge"}):
    for _ in range(2):
      assert cakes.names() == ["sponge"]
      assert cakes.find("sponge", "config.cake.name") is Sponge
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"warning: package bakery, {words}")


def test_a_broken_class_from_outside_is_refused_in_one_line(cakes, outside):
  with pytest.raises(UserError, match=r"^config.cake.name=my_cakes:Flat: layers is missing"):
    cakes.find("my_cakes:Flat", "config.cake.name")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("sponje", r"config.cake.name is 'sponje'. Did you mean 'sponge'\?"),
    ("no_such_cakes:A", r"no such module; install the package"),
    ("my_cakes.inner:A", r"config.cake.name=my_cakes.inner:A: no such module"),
    ("my_cakes:Spong", r"my_cakes has no class 'Spong'. Did you mean 'Sponge'\?"),
    ("my_cakes:", r"my_cakes has no class ''"),
    (":Sponge", r"no module is named before the colon"),
  ],
)
def test_a_class_that_is_not_there_is_one_line(cakes, outside, name, message):
  with pytest.raises(UserError, match=message) as caught:
    cakes.find(name, "config.cake.name")
  assert "\n" not in str(caught.value)


def test_a_module_that_raises_is_one_line(cakes, tmp_path, monkeypatch):
  (tmp_path / "burnt_cakes.py").write_text("import a_package_that_is_missing\n")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="importing burnt_cakes raised ModuleNotFoundError"):
    cakes.find("burnt_cakes:A", "config.cake.name")


def test_entry_points_of_installed_packages_are_entries(cakes, outside):
  with declared(bakery={"cake.boxed": "my_cakes:Sponge", "data.rye": "my_breads:Rye"}):
    assert cakes.names() == ["boxed", "sponge"]
    assert cakes.name_of(cakes.find("boxed", "config.cake.name")) == "my_cakes:Sponge"
    assert dict(registry.every_entry(cakes)) == {"sponge": Sponge, "boxed": outside.Sponge}
    assert dict(registry.every_entry({"flat": Flat})) == {"flat": Flat}


def test_only_classes_that_keep_the_contract_are_proposed(cakes, outside):
  with pytest.raises(UserError, match=r"no class 'Pie'\. Allowed: Sponge\.$"):
    cakes.find("my_cakes:Pie", "config.cake.name")


@dataclasses.dataclass(frozen=True)
class Alone:
  def dough(self, minutes: int, rest: int = 0) -> str:
    return ""


@pytest.mark.parametrize(
  ("cls", "words"),
  [
    (dataclasses.make_dataclass("Empty", [], frozen=True), ", and define dough; see "),
    (Alone, "; see "),
    (dataclasses.make_dataclass("Own", [], bases=(Sponge,), frozen=True), None),
  ],
)
def test_a_class_without_the_base_is_told_to_derive_from_it(cls, words):
  found = Registry("cake", Cake, {}, base=Baker).fault(cls)
  place = f"{__name__}.Cake."
  assert found == (words and f"derive it from Baker ({__name__}){words}{place}")


@pytest.mark.parametrize(
  ("text", "path", "message"),
  [
    ("import sys\nsys.exit(3)", "mine_a:X", "importing mine_a raised SystemExit: 3"),
    ("raise RuntimeError('two\\nlines')", "mine_b:X", "raised RuntimeError: two lines"),
    ("", "mine_c:X", r"mine_c has no class 'X'\.$"),
    ("", "../mine_d.py:X", "name the module, not its file, e.g. mine_d:X"),
  ],
)
def test_a_module_that_gives_no_class_is_one_line(tmp_path, monkeypatch, text, path, message):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / f"{path[:6].strip('./')}.py").write_text(text)
  with pytest.raises(UserError, match=message):
    registry.import_class(path, "config.loss.name")
