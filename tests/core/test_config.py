"""Configs: every mistake is fatal, names what is allowed, and nothing else is."""

import dataclasses
import json
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_jax.core import config
from diffusion_jax.core.registry import Registry
from diffusion_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Small:
  width: int = 4
  rate: float = 0.5
  kind: Literal["soft", "hard"] = "soft"
  sizes: tuple[int, ...] = (1, 2)
  names: Literal["all"] | tuple[str, ...] = "all"
  limit: float | None = None
  on: bool = False
  path: str = ""

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f"width={self.width} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Large:
  width: int = 100
  depth: int = 7


SECTIONS = {"net": Registry("net", object, {"small": Small, "large": Large}), "plain": Small}


def resolve(raw, *arguments):
  return config.resolve(raw, [config.parse_override(a) for a in arguments], SECTIONS)


@pytest.mark.parametrize("number", [np.float32(0.25), np.array(0.25), np.int64(3), jnp.float32(2)])
def test_numbers_of_other_libraries_are_numbers(number):
  rate = resolve({"plain": {"rate": number}, "net": {"name": "small"}})["plain"].rate
  assert type(rate) is float
  assert rate == float(number)


@pytest.mark.parametrize(
  ("argument", "field", "value"),
  [
    ("--config.plain.width=12", "width", 12),
    ("--config.plain.rate=1e-4", "rate", 1e-4),
    ("--config.plain.rate=3", "rate", 3.0),
    ("--config.plain.kind=hard", "kind", "hard"),
    ("--config.plain.sizes=3,4,5", "sizes", (3, 4, 5)),
    ("--config.plain.sizes=(8,)", "sizes", (8,)),
    ("--config.plain.sizes=", "sizes", ()),
    ("--config.plain.sizes=none", "sizes", ()),
    ("--config.plain.names=none", "names", ()),
    ("--config.plain.names=all", "names", "all"),
    ("--config.plain.names=a,none", "names", ("a", "none")),
    ("--config.plain.limit=2.5", "limit", 2.5),
    ("--config.plain.limit=none", "limit", None),
    ("--config.plain.on=true", "on", True),
    ("--config.plain.path=a=b", "path", "a=b"),
  ],
)
def test_an_override_is_read_as_its_fields_type(argument, field, value):
  built = resolve({"net": {"name": "small"}}, argument)["plain"]
  assert getattr(built, field) == value
  assert type(getattr(built, field)) is type(value)


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--config.plain.width=4.5", ["4.5", "an integer"]),
    ("--config.plain.width=wide", ["wide", "an integer"]),
    ("--config.plain.kind=sofd", ["sofd", "soft, hard"]),
    ("--config.plain.sizes=1,x", ["1,x", "a list, each an integer"]),
    ("--config.plain.on=maybe", ["maybe", "true or false"]),
    ("--config.net.depth=4", ["'depth' with `net.name=small`; large has it. Allowed: kind, limit"]),
    ("--config.plain.widht=4", ["widht", "Did you mean 'width'?", "rate"]),
    ("--config.plian.width=4", ["plian", "Did you mean 'plain'?"]),
    ("--config.net.name=smal", ["smal", "Did you mean 'small'?", "large"]),
    ("--config.plain.width=0", ["width=0", "at least 1"]),
    ("--config.seed=1", ["--config.seed=1", "--config.section.field=value"]),
    ("--config.plain.width", ["--config.section.field=value"]),
    ("--config.a.b.c=1", ["--config.section.field=value"]),
  ],
)
def test_a_bad_override_says_what_is_allowed(argument, words):
  with pytest.raises(UserError) as error:
    resolve({"net": {"name": "small"}}, argument)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    ({"net": {"name": "small", "wdth": 1}}, ["wdth", "Did you mean 'width'?"]),
    ({"net": {"name": "small", "width": "4"}}, ["config.net.width", "'4'", "an integer"]),
    ({"net": {"name": "small", "width": True}}, ["True", "an integer"]),
    ({"net": {}}, ["needs a name", "large, small"]),
    ({"net": 3}, ["must be a section"]),
    ({"net": {"name": "small"}, "plan": {}}, ["plan", "Did you mean 'plain'?"]),
  ],
)
def test_a_bad_file_says_what_is_allowed(raw, words):
  with pytest.raises(UserError) as error:
    resolve(raw)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize("swap", [False, True])
def test_another_name_starts_from_its_own_defaults_in_any_order(swap):
  arguments = ["--config.net.name=large", "--config.net.depth=3"]
  built = resolve({"net": {"name": "small", "width": 9}}, *(arguments[::-1] if swap else arguments))
  assert built["net"] == Large(width=100, depth=3)


def test_the_same_name_keeps_the_files_values():
  assert (
    resolve({"net": {"name": "small", "width": 9}}, "--config.net.name=small")["net"].width == 9
  )


def test_a_section_written_out_builds_itself_again():
  made = Small(width=3, sizes=(5,), limit=1.0)
  written = json.loads(json.dumps(config.to_dict(made, SECTIONS["net"])))
  assert written["name"] == "small"
  assert resolve({"net": written})["net"] == made


def test_load_file_runs_get_config(tmp_path):
  file = tmp_path / "c.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(text='x'):\n  return ConfigDict({'plain': {'path': text}})\n"
  )
  assert config.load_file(str(file)) == ConfigDict({"plain": {"path": "x"}})
  assert config.load_file(f"{file}:other").plain.path == "other"


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (None, ["no such file"]),
    ("x = 1", ["has no get_config(); a config is", "diffusion-jax configs"]),
    (" ", ["is empty; a config is"]),
    ("def get_config(): return 5", ["must return a ConfigDict"]),
    ("import nothing_like_this", ["ModuleNotFoundError", "nothing_like_this"]),
    ("def get_config(:", ["SyntaxError"]),
  ],
)
def test_a_bad_config_file_is_named(tmp_path, content, words):
  file = tmp_path / "c.py"
  if content is not None:
    file.write_text(content)
  with pytest.raises(UserError) as error:
    config.load_file(str(file))
  assert str(file) in str(error.value)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("cat.png", b"\x89PNG\0\0", "is no text; a config is a Python file with get_config()"),
    ("notes.txt", b"exit('it ran')", "has no get_config(); a config is"),
    ("c.json", b"{}", "has no get_config(); a config is"),
    ("config.json", b'{"generative": {}}', "is the stored config of a run; go on with `workdir="),
  ],
)
def test_other_files_are_told_from_configs_and_not_run(name, content, words, tmp_path):
  file = tmp_path / name
  file.write_bytes(content)
  with pytest.raises(UserError) as error:
    config.load_file(str(file))
  assert f"`config={file}` {words}" in str(error.value)


def test_an_empty_name_is_no_folder():
  with pytest.raises(UserError, match=r"^`config=` is empty; a config is"):
    config.load_file("")


def test_an_entry_without_fields_still_allows_its_name():
  empty = dataclasses.make_dataclass("Empty", [], frozen=True)
  sections = {"loss": Registry("loss", object, {"empty": empty})}
  with pytest.raises(UserError, match=r"no field 'nmae'. Did you mean 'name'\? Allowed: name\.$"):
    config.resolve({"loss": {"name": "empty", "nmae": 1}}, [], sections)


@pytest.mark.parametrize(
  ("text", "field"), [("get_config = lambda: {'plain': {'width': 9}}", 9), ("get_config = 5", None)]
)
def test_a_config_file_may_return_a_plain_dict(tmp_path, text, field):
  (tmp_path / "c.py").write_text(text)
  if field is None:
    with pytest.raises(UserError, match=r"has no get_config\(\)"):
      config.load_file(str(tmp_path / "c.py"))
  else:
    assert config.load_file(str(tmp_path / "c.py")).to_dict() == {"plain": {"width": field}}
