"""The commands of a page: its `sh` blocks, checked as they are typed, and with tiny sizes."""

import importlib
import re
import shlex
import tomllib
from typing import NamedTuple

import tiny
from site_hooks import ROOT

from diffusion_jax.__main__ import OWN, PROGRAMS
from diffusion_jax.runs.stored import load_experiment

BLOCK = re.compile(r"^(?:<!-- not run: (.+?) -->\n)?```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^```python title="(.+?)"\n(.*?)^```', re.MULTILINE | re.DOTALL)

TRAIN = [
  *tiny.MODEL, "--config.training.num_steps=2", "--config.training.batch_size=8",
  "--config.checkpoint.every_steps=1", "--config.logging.num_samples=4",
  "--config.logging.sample_every_steps=none", "--config.process.num_timesteps=40",
  "--config.sampler.steps=4",
]  # fmt: skip
SIZES = {
  "train": [*TRAIN, "--profile=1:1"],
  "sample": ["--num=4", "--guide_step=1"],
  "evaluate": [
    "--config.eval.num_samples=24", "--config.eval.num_seeds=1", "--config.eval.batch_size=16",
    "--config.eval.likelihood_repeats=1", "--config.eval.spectrum_images=8",
  ],
}  # fmt: skip
"""Program -> flags that make it cheap, in place of those of the page."""

ONLY_IF_TYPED = ("--profile", "--guide_step", "--config.eval.num_seeds", "--num")
KEPT_OF_THE_MODEL = ("--config.model.dtype",)
WRITTEN_BEFORE = "mine.py"
"""Config file that an earlier command of a page writes."""
ELSEWHERE = ("kubectl", "source", "ssh", "tensorboard")


class Command(NamedTuple):
  """One line of a page.

  Attributes:
    words: words of the line, without variables of the environment before them.
    not_run: reason given on the page for not running it; "" to run it.
  """

  words: list[str]
  not_run: str


def commands(text: str) -> list[Command]:
  """Return the commands of a page, in order."""
  found = []
  for reason, code in BLOCK.findall(text):
    for line in code.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
      if words:
        found.append(Command(words, reason))
  return found


def files(text: str) -> dict[str, str]:
  """Return the files that a page shows: name -> content."""
  return dict(FILE.findall(text))


def check_as_typed(words: list[str]) -> None:
  """Raise an error for a command, a flag, a field or a file that is not there."""
  name = words[0].removeprefix(".venv/bin/")
  if name == "diffusion-jax":
    assert words[1] in (*PROGRAMS, *OWN), words[1]
    if words[1] in PROGRAMS:
      _check_flags(words[1], words[2:])
  elif name in ("python", "python3"):
    assert words[1] == "-m" or (ROOT / words[1]).is_file(), words
    if words[1] == "launch/local.py":
      first = next(i for i, word in enumerate(words) if word in PROGRAMS)
      _check_flags(words[first], words[first + 1 :])
  elif name == "pip":
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for listed in re.findall(r"\.\[(.+?)\]", " ".join(words)):
      assert set(listed.split(",")) <= set(extras["optional-dependencies"]), listed
  elif name == "sbatch":
    script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    assert (ROOT / words[script]).is_file()
    _check_flags("train", words[script + 1 :])
  elif name not in ELSEWHERE:
    assert (ROOT / name).is_file(), f"{words}: what is this?"
  for word in words[1:]:
    assert not word.startswith(("launch/", "benchmarks/")) or (ROOT / word).is_file(), word


def _check_flags(program: str, flags: list[str]) -> None:
  args, overrides = importlib.import_module(f"diffusion_jax.{program}").parser().parse(flags)
  config = getattr(args, "config", None)
  if config is not None and config != WRITTEN_BEFORE and program in ("train", "plan"):
    load_experiment(str(ROOT / config) if "/" in config else config, overrides)


def tiny_flags(program: str, flags: list[str]) -> list[str]:
  """Return the flags with tiny sizes in place of theirs, and one value of each sweep."""
  if "--dry_run" in flags:
    return flags
  typed = {flag.partition("=")[0] for flag in flags}
  small = [
    flag
    for flag in SIZES.get(program, [])
    if flag.partition("=")[0] in typed or not flag.startswith(ONLY_IF_TYPED)
  ]
  if "--data" in typed or f"--config={WRITTEN_BEFORE}" in flags:  # its recipe has continuous time
    small = [flag for flag in small if not flag.startswith("--config.process.")]
  replaced = {flag.partition("=")[0] for flag in small}
  kept = [f for f in flags if f.partition("=")[0] not in replaced and not _of_the_model(program, f)]
  return [*(re.sub("^(--sweep=.*?),.*", r"\1", flag) for flag in kept), *small]


def _of_the_model(program: str, flag: str) -> bool:
  return program == "train" and flag.startswith("--config.model.") and not flag.startswith(
    KEPT_OF_THE_MODEL
  )  # fmt: skip
