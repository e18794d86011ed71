"""Facts of every field of every config: which a run may change, and what depends on it."""

import dataclasses
import functools

import pytest

from diffusion_jax.core.registry import Registry
from diffusion_jax.core.settings import fields_with, setting
from diffusion_jax.data import SOURCES, DataSetBase
from diffusion_jax.generative import GENERATIVES
from diffusion_jax.models import DECODERS, VAES
from diffusion_jax.runs.changes import differences
from diffusion_jax.runs.experiment import COMMON, SettingFacts
from diffusion_jax.samplers import SAMPLERS

ALL = object()
MAY_CHANGE = {
  "data": {
    "path",
    "test_path",
    "data_dir",
    "max_ram_gib",
    "streaming",
    "test_split",
    "test_fraction",
    "unreadable",
  },
  "model": {"attention", "dtype", "latent_scale", "remat", "scan_blocks"},
  "autoencoder": {"dtype", "latent_scale", "remat"},
  "training": {"num_steps", "accumulation_steps", "max_skipped_in_a_row"},
  "ema": {"decay", "warmup", "half_life_steps", "half_life_ramp", "snapshot_every_steps"},
  "optimizer": ALL,
  "eval": ALL,
  "checkpoint": ALL,
  "logging": ALL,
  "mesh": ALL,
  "distributed": ALL,
  "sampler": ALL,
  "guidance": ALL,
  "spectrum": ALL,
  "vlb": ALL,
  "continuous_vlb": ALL,
  "probability_flow": ALL,
  "iwae": ALL,
}
NO_FIGURES = {
  "data": {"path", "data_dir", "max_ram_gib", "streaming"},
  "eval": {
    "every_steps",
    "training_likelihoods",
    "batch_size",
    "num_samples",
    "likelihoods",
    "metrics",
    "preset",
  },
  "model": {"latent_scale", "remat", "scan_blocks"},
  "autoencoder": {"latent_scale", "remat"},
  "logging": ALL,
  "checkpoint": ALL,
  "mesh": ALL,
  "distributed": ALL,
  "training": ALL,
  "optimizer": ALL,
  "ema": ALL,
}
SAMPLED = {"generative", "process", "model", "sampler", "guidance", "autoencoder", "decoder"}


def fields_of(cls):
  return [f.name for f in dataclasses.fields(cls) if f.init]


@functools.cache
def every_field():
  """List the facts of a config, each section and field; every entry of every registry once."""
  found = []
  for kind, model in GENERATIVES.items():
    for section, built_from in {**COMMON, **model.sections}.items():
      is_registry = isinstance(built_from, Registry) and section != "generative"
      entries = built_from.items() if is_registry else [(kind, built_from)]
      if section == "generative":
        entries = [(kind, model)]
      for name, cls in entries:
        config = {"generative": {"name": kind}}
        config.setdefault(section, {"name": name})
        names = ["name"] if isinstance(built_from, Registry) else []
        facts = SettingFacts(config)
        for field in [*names, *fields_of(cls)]:
          found.append((facts, section, field))
  return found


def declared(fact, value):
  """Return section -> the fields whose fact has this value, ALL if all of them."""
  found = {}
  for facts, section, field in every_field():
    holds = facts.of_field(fact, section, field) is value
    found.setdefault(section, {}).setdefault(field, set()).add(holds)
  assert all(len(held) == 1 for fields in found.values() for held in fields.values())
  yes = {s: {f for f, held in fields.items() if held == {True}} for s, fields in found.items()}
  return {s: ALL if len(yes[s]) == len(found[s]) else yes[s] for s in found if yes[s]}


def test_the_fields_that_a_run_may_change():
  assert declared("may_change", True) == MAY_CHANGE


def test_the_fields_without_effect_on_figures():
  assert declared("affects_figures", False) == NO_FIGURES


def test_the_sections_that_samples_depend_on():
  found = {
    section for facts, section, _ in every_field() if facts.of_section("affects_samples", section)
  }
  assert found == SAMPLED


def test_the_paths_of_data_sets():
  paths = {name: fields_with("is_path", cls) for name, cls in SOURCES.items()}
  assert {name: fields for name, fields in paths.items() if fields} == {
    "tfds": ["data_dir"],
    "folder": ["path", "test_path"],
    "records": ["path", "test_path"],
    "arrays": ["path"],
    "hugging_face": ["path"],
    "latents": ["path", "data_dir"],
  }


def test_the_fields_without_effect_on_latents():
  common = {"dropout", "dtype", "remat"}
  expected = {"conv_vae": common, "autoencoder_kl": common | {"latent_scale"}}
  for name, cls in [*VAES.items(), *DECODERS.items()]:
    free = {*fields_of(cls)} - {*fields_with("affects_encoding", cls)}
    assert free == expected.get(name, set())


@dataclasses.dataclass(frozen=True)
class Elsewhere(DataSetBase):
  """A data set of another package."""

  root: str = setting("", may_change=True, is_path=True)
  crop: int = 8


@dataclasses.dataclass(frozen=True)
class Plain:
  """A sampler of another package, without the base class."""

  steps: int = 8


def config(data, sampler):
  return {"generative": {"name": "diffusion"}, "data": data, "sampler": sampler}


def test_a_class_of_another_package_declares_its_own(monkeypatch):
  monkeypatch.setattr(SOURCES, "find", lambda name, where: Elsewhere)
  monkeypatch.setattr(SAMPLERS, "find", lambda name, where: Plain)
  old = config({"name": "its:Own", "root": "/a", "crop": 8}, {"name": "its:Plain", "steps": 8})
  new = config({"name": "its:Own", "root": "/b", "crop": 9}, {"name": "its:Plain", "steps": 9})
  assert differences(old, new) == (
    ["data.crop: 8 -> 9"],
    ["data.root: /a -> /b", "sampler.steps: 8 -> 9"],
  )


def test_a_class_that_is_gone_has_the_strict_defaults():
  old = config({"name": "no_such_package:Data", "root": "/a"}, {"name": "heun", "steps": 8})
  new = config({"name": "no_such_package:Data", "root": "/b"}, {"name": "heun", "steps": 8})
  assert differences(old, new) == (["data.root: /a -> /b"], [])


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_of_either_entry_is_looked_up_where_it_is(order):
  old = config({"name": "folder", "path": "/a"}, {"name": "heun"})
  new = config({"name": "digits"}, {"name": "heun"})
  fatal, harmless = differences(*(old, new)[::order])
  assert [text.partition(":")[0] for text in fatal + harmless] == ["data.name", "data.path"]
  assert len(harmless) == 1
