"""--help of every program, and flags that it does not have."""

import importlib
import json

import pytest

from diffusion_jax.__main__ import PROGRAMS
from diffusion_jax.core import shipped

TAKE_CONFIG = [
  "train",
  "import",
  "export",
  "reproduce",
  "sample",
  "edit",
  "encode",
  "evaluate",
  "gallery",
  "stats",
  "features",
  "plan",
  "options",
]


def program(name):
  return importlib.import_module(f"diffusion_jax.{name}").main


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_the_module_and_every_flag_with_its_type_and_default(name, call, monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")
  code, out, err = call(program(name), "--help")
  assert (code, err) == (0, "")
  assert out.startswith(f"usage: python -m diffusion_jax.{name}")
  usage = out.partition("\n\n")[0]
  assert len(usage.splitlines()) <= 3
  parser = importlib.import_module(f"diffusion_jax.{name}").parser()
  for action in parser._actions:
    assert action.help, action
    assert all(flag in out for flag in action.option_strings)
    if (
      action.option_strings
      and action.nargs != 0
      and action.default not in (None, "==SUPPRESS==", [])
    ):
      assert f"[default: {action.default}]" in " ".join(out.split())
  assert ("--help_config" in out) == (name in TAKE_CONFIG)
  assert ("--config.SECTION.FIELD=VALUE" in out) == (name in TAKE_CONFIG)
  assert max(map(len, out.splitlines())) <= 100
  assert importlib.import_module(f"diffusion_jax.{name}").__doc__.partition("\n")[0] in out


@pytest.mark.parametrize(
  ("name", "flags", "expected"),
  [
    ("train", ["--config=smoke", "--wrkdir=x"], "arguments: --wrkdir=x; did you mean --workdir?"),
    ("train", ["--confg=smoke"], "did you mean --config?"),
    ("train", ["--config=smoke", "--helpfull"], "did you mean --help?"),
    ("train", ["--config=smoke", "--training.seed=1"], "did you mean --config.training.seed=1?"),
    ("train", ["--config=smoke", "training.seed=1"], "did you mean --config.training.seed=1?"),
    ("train", ["--config=smoke", "-config.training.seed=1"], "mean --config.training.seed=1?"),
    ("train", ["--config=smoke", "config.training.seed=1"], "mean --config.training.seed=1?"),
    ("train", ["ddpm_digits"], "did you mean --config=ddpm_digits?"),
    ("train", ["ddpm_digit"], "did you mean --config=ddpm_digits?"),
    ("stats", ["bad.zip"], "unrecognized arguments: bad.zip; try"),
    ("train", ["tests"], "did you mean --data=tests?"),
    ("sample", ["tests"], "unrecognized arguments: tests; try"),
    ("train", ["--config=smoke", "--zzz"], "unrecognized arguments: --zzz; try"),
    ("train", ["--config"], "argument --config: expected one argument"),
    ("audit", ["--onyl=losses"], "did you mean --only?"),
  ],
)  # fmt: skip
def test_an_unknown_flag_is_one_line_with_what_was_meant(name, flags, expected, call):
  code, out, err = call(program(name), *flags)
  assert (code, out, err.count("\n")) == (2, "", 1), err
  assert expected in err
  assert err.endswith(f"; try python -m diffusion_jax.{name} --help\n") or "did you mean" in err


@pytest.mark.parametrize("name", ["train", "plan", "features"])
def test_without_a_config_the_shipped_ones_are_named(name, call):
  code, _, err = call(program(name))
  assert (code, err.count("\n")) == (2, 1)
  assert "the following arguments are required: --config" in err
  assert all(config in err for config in shipped.configs())


def test_the_config_may_follow_a_space(call, tmp_path):
  flags = [
    "--config",
    "smoke",
    "--dry_run",
    "--workdir",
    f"{tmp_path}/run",
    "--config.training.sed=1",
  ]
  code, _, err = call(program("train"), *flags)
  assert code == 2
  assert "Did you mean 'seed'?" in err


@pytest.mark.parametrize("name", TAKE_CONFIG)
def test_help_config_needs_nothing_else(name, call):
  code, out, err = call(program(name), "--help_config=training.seed")
  assert (code, err) == (0, "")
  assert "--config.training.seed=0  (an integer)" in out


@pytest.mark.parametrize("flag", [["--help_config"], ["--help_config", "training"]])
def test_help_config_shows_a_configs_values(flag, call):
  code, out, _ = call(program("train"), "--config=ddpm_digits", "--config.training.seed=7", *flag)
  assert code == 0
  assert "--config.training.seed=7  (an integer; default: 0)" in out


def test_help_config_shows_a_runs_values(call, tmp_path, root):
  from diffusion_jax.runs.stored import load_experiment

  config = load_experiment("smoke", []).to_dict()
  config["training"]["seed"] = 5
  (tmp_path / "config.json").write_text(json.dumps(config))
  for name in ("sample", "options"):
    wanted = ["--help_config=training"] if name == "sample" else ["training"]
    code, out, _ = call(program(name), f"--workdir={tmp_path}", *wanted)
    assert code == 0
    assert "--config.training.seed=5  (an integer; default: 0)" in out


@pytest.mark.parametrize(
  ("name", "flags", "expected"),
  [
    ("train", ["--help_config=trainig"], "Did you mean 'training'?"),
    ("options", ["trainig"], "Did you mean 'training'?"),
    ("options", ["--config=ddpm_digit"], "Did you mean 'ddpm_digits'?"),
    ("options", ["--config.training.seed=1"], "--config.training.seed=1: name the config"),
    ("train", ["--help_config", "--config.training.seed=1"], "--config.training.seed=1: name the"),
  ],
)
def test_what_help_config_cannot_show_is_one_line(name, flags, expected, call):
  code, out, err = call(program(name), *flags)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert expected in err
