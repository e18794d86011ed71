"""What --help_config prints: every field that a config may have, documented by one rule."""

import dataclasses
import re

import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.core.field_types import as_text, field_types, parse_value
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.runs import config_help as helps
from diffusion_jax.runs.experiment import COMMON
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError

SECTIONS = [*COMMON.items(), *(s for g in GENERATIVES.values() for s in g.sections.items())]
CLASSES = {
  cls: f"{name}.{entry}"
  for name, section in SECTIONS
  for entry, cls in ({"": section} if isinstance(section, type) else section).items()
}
OPENERS = r"(?i)(of|as|those|that|what|where|whether|how|by|which|see)\b"
WORN = r"\b(so many|so long|there (is|are)|lies?|stands?|asked|told|says?)\b"


@pytest.mark.parametrize("cls", CLASSES, ids=CLASSES.values())
def test_every_field_has_a_line_that_follows_the_rule(cls):
  docs, fields = helps.field_docs(cls), field_types(cls)
  for field in fields:
    line = docs.get(field, "")
    assert len(line.split()) >= 3, f"{CLASSES[cls]}: {field}: {line or 'no line'}"
    assert not re.match(OPENERS, line), f"{field}: {line}"
    assert not re.search(WORN, line), f"{field}: {line}"
    assert line.endswith((".", ")")), f"{field}: {line}"
  assert set(docs) <= set(fields), "a line of a field that is not there"


@pytest.mark.parametrize("cls", CLASSES, ids=CLASSES.values())
def test_every_entry_says_in_its_first_line_what_it_is(cls):
  first = (cls.__doc__ or "").partition("\n")[0]
  assert len(first.split()) >= 2
  assert not first.startswith(("Config of", f"{cls.__name__}("))  # what dataclass makes up
  assert not re.match(OPENERS, first)


def test_without_a_config_every_field_of_every_entry_is_there_with_its_default():
  text = helps.config_help()
  for cls, place in CLASSES.items():
    section, _, entry = place.partition(".")
    assert not entry or f"  {section}.name={entry}: " in text
    for field in dataclasses.fields(cls):
      assert f"--config.{section}.{field.name}=" in text
  assert "--config.sampler.steps=18  (an integer)" in text
  assert "--config.loss.times=uniform  (one of uniform, logit_normal)" in text or "times=" in text
  assert "[model], for generative.name=diffusion|latent_diffusion" in text
  assert "[model], for generative.name=vae" in text
  assert max(map(len, text.splitlines())) <= 100


def test_a_flag_can_be_typed_as_it_is_printed():
  for cls in CLASSES:
    for name, hint in field_types(cls).items():
      default = {f.name: f for f in dataclasses.fields(cls)}[name].default
      if default not in (dataclasses.MISSING, ""):
        assert parse_value(helps.shown(default), hint, name) == default, (cls, name)
  assert as_text(()) == ""
  assert (helps.shown(()), helps.shown(None), helps.shown("")) == ("none", "none", "''")


def test_a_configs_values_are_shown_beside_the_defaults():
  experiment = load_experiment("ddpm_digits", [parse_override("--config.training.seed=7")])
  text = helps.config_help(experiment)
  assert "--config.training.seed=7  (an integer; default: 0)" in text
  assert "--config.training.num_steps=1000  (" in text
  assert "  sampler.name=ddim: " in text
  assert "  sampler.name=heun: " not in text  # not chosen
  one = helps.config_help(experiment, "sampler")
  assert one.index("sampler.name=ddim: ") < one.index("sampler.name=ancestral: ")
  assert "[decoder]" not in text


@pytest.mark.parametrize(
  ("wanted", "there", "not_there"),
  [
    ("sampler", ["sampler.name=heun: ", "sampler.name=ddim: ", "sampler.eta=0.0"], ["training."]),
    ("sampler.heun", ["sampler.name=heun: ", "sampler.steps=18"], ["name=ddim: ", "eta"]),
    ("sampler.eta", ["sampler.name=ddim: ", "sampler.eta=0.0"], ["name=heun: ", "steps="]),
    ("training.seed", ["--config.training.seed=0  (an integer)"], ["num_steps"]),
    ("sampler.heun.steps", ["sampler.name=heun: ", "sampler.steps=18"], ["ddim: ", "s_churn"]),
    ("config.training.seed", ["--config.training.seed=0"], ["num_steps"]),
    ("loss.diffusion_jax.losses.weighted:P2", ["weighted:P2: Weight", "gamma="], ["[loss]\n\n"]),
    ("model.latent_dim", ["model.name=conv_vae: "], ["unet: "]),
    ("model.channels", ["unet: ", "conv_vae: "], ["dit: "]),
  ],
)
def test_a_part_of_it_can_be_named(wanted, there, not_there):
  text = helps.config_help(None, wanted)
  assert all(word in text for word in there)
  assert not any(word in text for word in not_there)


@pytest.mark.parametrize(
  ("wanted", "words"),
  [
    ("samplr", ["samplr: no section 'samplr'", "Did you mean 'sampler'?", "training"]),
    ("sampler.huen", ["config.sampler has no 'huen'", "Did you mean 'heun'?", "eta"]),
    ("training.os:sep", ["training.os:sep: that section is built from one class"]),
    ("loss.os:sep", ["os has no class 'sep'"]),
    ("sampler.heun.stps", ["config.sampler has no 'stps'", "Did you mean 'steps'?"]),
    ("sampler.huen.steps", ["config.sampler has no 'huen'", "Did you mean 'heun'?"]),
    ("training.sed", ["Did you mean 'seed'?"]),
  ],
)
def test_an_unknown_part_names_the_nearest(wanted, words):
  with pytest.raises(UserError) as error:
    helps.config_help(None, wanted)
  assert "\n" not in str(error.value)
  assert all(word in str(error.value) for word in words)


class Parent:
  """A base.

  Attributes:
    a: first line, which
      goes on: here.
    b, c: both.

  More prose: of no field.
  """


class Child(Parent):
  """A class that says again what it changes.

  Attributes:
    c: its own.
  """


def test_docs_are_inherited_and_shared():
  assert helps.field_docs(Child) == {
    "a": "first line, which goes on: here.", "b": "both.", "c": "its own.",
  }  # fmt: skip
