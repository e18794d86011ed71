"""What users of other frameworks type leads to this one's names, all of which exist."""

import importlib
import re

import pytest

from diffusion_jax.__main__ import PROGRAMS
from diffusion_jax.core import synonyms
from diffusion_jax.core.config import load_file, parse_override
from diffusion_jax.core.spelling import closest
from diffusion_jax.core.wording import with_flags
from diffusion_jax.runs import flag_help
from diffusion_jax.runs.config_help import help_on
from diffusion_jax.runs.experiment import build_experiment
from diffusion_jax.types import UserError

TRAIN = ("--config", "--workdir", "--dry_run", "--fresh", "--profile", "--help")
SAMPLE = ("--workdir", "--num", "--batch_size", "--seed", "--labels", "--out", "--step")


@pytest.fixture(scope="module")
def fields():
  """The fields of every section and entry, with what their lines say."""
  lines = help_on("", None, None, []).splitlines()
  found = (re.match(r" *--config[.](\w+[.]\w+)(.*)", line) for line in lines)
  return {match[1]: match[2] for match in found if match}


@pytest.fixture(scope="module")
def flags():
  parsers = [importlib.import_module(f"diffusion_jax.{name}").parser() for name in PROGRAMS]
  return {flag for parser in parsers for flag in parser._option_string_actions}


def test_every_meaning_is_a_field_a_flag_or_a_sentence(fields, flags):
  for meant in {meant for found in synonyms.MEANINGS.values() for meant in found}:
    if meant.startswith("--"):
      assert meant in flags
    elif synonyms.FIELD.fullmatch(meant):
      name, _, value = meant.partition("=")
      assert name in fields, meant
      assert value in fields[name], meant
    else:
      assert " " in meant, meant
  assert synonyms.EPOCHS.split("`")[1].partition("=")[0] in fields


def test_a_word_has_one_place_in_the_table():
  words = " ".join(synonyms.MEANINGS).split()
  assert sorted(set(words)) == sorted(words)


@pytest.mark.parametrize(
  ("argument", "hint"),
  [
    (["--lr=1e-4"], "did you mean --config.optimizer.learning_rate=1e-4?"),
    (["--lr", "1e-4"], "did you mean --config.optimizer.learning_rate=1e-4?"),
    (["lr=1e-4"], "did you mean --config.optimizer.learning_rate=1e-4?"),
    (["--bf16"], "did you mean --config.model.dtype=bfloat16?"),
    (["--scale=2"], "did you mean --config.guidance.weight=2?"),
    (["--dry-run"], "did you mean --dry_run?"),
    (["--dryrun"], "did you mean --dry_run?"),
    (["--epochs=10"], "did you mean --config.training.num_steps=..., which is epochs * images / "
     "training.batch_size?"),
    (["--n_steps=9"], "did you mean --config.training.num_steps=9?"),
    (["--batch-size=8"], "did you mean --config.training.batch_size=8?"),
    (["--steps=9"], "did you mean --config.training.num_steps=9 or --config.sampler.steps=9?"),
    (["--gpus=4"], "all devices are used without a flag"),
    (["--training.epochs=3"], "did you mean --config.training.num_steps=..., which is epochs"),
    (["--training.num_steps=3"], "did you mean --config.training.num_steps=3?"),
    (["--wrkdir=x"], "did you mean --workdir?"),
    (["--Learning-Rate=1"], "did you mean --config.optimizer.learning_rate=1?"),
    (["--output_dir=x"], "did you mean --workdir=x?"),
    (["--resume"], "the same command continues a run"),
  ],
)  # fmt: skip
def test_a_flag_of_another_framework_leads_to_ours(argument, hint):
  assert hint in with_flags(flag_help.explain_unknown(argument, TRAIN, True))


@pytest.mark.parametrize(
  ("argument", "hint"),
  [
    ("--num_samples=64", "did you mean --num=64?"),
    ("--batch-size=8", "did you mean --batch_size=8?"),
    ("--class=3", "did you mean --labels=3?"),
    ("--cfg_scale=3", "did you mean --config.guidance.weight=3?"),
    ("--num_inference_steps=20", "did you mean --config.sampler.steps=20?"),
    ("--ckpt=x", "did you mean --workdir=x?"),
  ],
)
def test_a_flag_of_a_sampling_program_leads_to_ours(argument, hint):
  assert hint in with_flags(flag_help.explain_unknown([argument], SAMPLE, True))


def test_a_program_without_a_config_is_not_sent_to_one():
  assert "did you mean" not in flag_help.explain_unknown(["--lr=1"], ("--out",), False)


@pytest.mark.parametrize(
  ("override", "hint"),
  [
    ("--config.lr=1", "; did you mean --config.optimizer.learning_rate=1?"),
    ("--config.training.lr=1", "Did you mean --config.optimizer.learning_rate=1?"),
    ("--config.optimizer.lr=1", "Did you mean --config.optimizer.learning_rate=1?"),
    ("--config.optim.lr=1", "Did you mean --config.optimizer.learning_rate=1?"),
    ("--config.training.epochs=5", "Did you mean --config.training.num_steps=..., which is epochs"),
    ("--config.model.attn_resolutions=8", "Did you mean --config.model.attention_resolutions=8?"),
    ("--config.sampler.num_steps=5", "Did you mean 'steps'?"),
    ("--config.guidance.scale=5", "Did you mean --config.guidance.weight=5?"),
    ("--config.training.bf16=true", "Did you mean --config.model.dtype=bfloat16?"),
    ("--config.training.num_stepz=5", "Did you mean 'num_steps'?"),
  ],
)
def test_a_field_of_another_framework_leads_to_ours(override, hint):
  with pytest.raises(UserError) as caught:
    build_experiment(load_file("ddpm_digits").to_dict(), [parse_override(override)])
  assert hint in with_flags(str(caught.value))


def test_a_misspelt_field_of_ours_is_not_taken_for_a_synonym():
  assert closest("steps", ["every_steps", "steps"]) == "steps"
  assert synonyms.hint_for_field("checkpoint", "save_last", "3", ["keep_last"]) is None
