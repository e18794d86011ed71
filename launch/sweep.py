"""Print one training command per point of a grid of overrides; starts nothing itself.

python launch/sweep.py --config=configs/ddpm_digits.py \\
  --grid=optimizer.learning_rate=1e-4,2e-4 --grid=training.seed=0,1,2 | sh

prints six commands, each with its own --workdir, and `sh` runs them one after another.
`| xargs -d '\\n' -n 1 -P 2 sh -c` instead runs two at a time, and --submit='sbatch
launch/slurm.sbatch' queues them. --config.section.field=value and all arguments after -- are added
to every command.
"""

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from diffusion_jax.core.config import Override, parse_override
from diffusion_jax.core.files import run_folder
from diffusion_jax.runs import command_line
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.runs.workdir import default_workdir
from diffusion_jax.types import UserError

MAX_NAME_LENGTH = 200
"""Maximum length of a run folder's name, characters; file systems allow 255 bytes."""

HELP = "python launch/sweep.py --help"


class Axis(NamedTuple):
  """The values of one field, as typed."""

  section: str
  field: str
  values: tuple[str, ...]

  @property
  def overrides(self) -> list[Override]:
    return [Override(self.section, self.field, value) for value in self.values]


def main(argv: list[str]) -> None:
  own, extra = split(argv)
  common = [a for a in own if a.startswith("--config.")] + extra
  fixed = [parse_override(a) for a in common if a.startswith("--config.")]
  args = parser().parse_args([a for a in own if not a.startswith("--config.")])
  points = list(itertools.product(*(axis.overrides for axis in read_grid(args.grid, fixed))))
  for point in points:
    load_experiment(args.config, [*fixed, *point])
  folders = workdirs(args.workdir or default(args.config), points)
  for point, workdir in zip(points, folders, strict=True):
    flags = [f"--config={args.config}", f"--workdir={workdir}", *(o.flag for o in point), *common]
    print(shlex.join([*args.submit, *flags]))


def parser() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    HELP.removesuffix(" --help"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  flags.error = refuse
  flags.add_argument(
    "--config", required=True, help="a shipped config's name, e.g. ddpm_digits, or a config file"
  )
  flags.add_argument("--grid", action="append", required=True, metavar="SECTION.FIELD=VALUE,VALUE",
                     help="values of one field; one --grid per field")  # fmt: skip
  flags.add_argument("--workdir", type=run_folder, help="folder of the runs' folders; "
                     "runs/<config>_sweep by default")  # fmt: skip
  flags.add_argument("--submit", type=command, help="command that starts a run, e.g. 'sbatch "
                     "launch/slurm.sbatch'; this Python with -m diffusion_jax.train by default",
                     default=[sys.executable, "-m", "diffusion_jax.train"])  # fmt: skip
  return flags


def refuse(message: str) -> NoReturn:
  """Raise argparse's error as one line."""
  raise UserError(f"{message}; try {HELP}")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Return the arguments before the first "--" and those after it.

  Raises:
    UserError: an argument after "--" sets a flag that each command sets itself.
  """
  own = list(itertools.takewhile(lambda a: a != "--", argv))
  extra = list(argv[len(own) + 1 :])
  for flag in ("--config", "--workdir"):
    if taken := next((a for a in extra if a.partition("=")[0] == flag), None):
      raise UserError(f"{taken} after --: every command has its own; give it before --")
  return own, extra


def default(config: str) -> Path:
  """Return runs/<stem of the config file>_sweep."""
  one = default_workdir(config)
  return one.with_name(f"{one.name}_sweep")


def command(text: str) -> list[str]:
  """Parse --submit, a command with its options as in a shell.

  Raises:
    UserError: it is empty, or a quote is not closed.
  """
  try:
    words = shlex.split(text)
  except ValueError as error:
    raise UserError(f"--submit={text}: {error}; quote it as in a shell") from error
  if not words:
    raise UserError("--submit= is empty; e.g. --submit='sbatch launch/slurm.sbatch'")
  return words


def read_grid(texts: Sequence[str], fixed: Sequence[Override]) -> list[Axis]:
  """Parse every --grid.

  Raises:
    UserError: a grid has no values or a value twice, or two flags set one field.
  """
  axes = [read_axis(text) for text in texts]
  taken = [(o.section, o.field) for o in fixed]
  for section, field, _ in axes:
    if (section, field) in taken:
      raise UserError(f"{section}.{field} is given twice; put its values into one --grid")
    taken.append((section, field))
  return axes


def read_axis(text: str) -> Axis:
  """Parse `section.field=value,value`; a comma inside brackets does not separate values.

  Raises:
    UserError: the text has another format, or a value is empty or repeated.
  """
  path, _, listed = text.partition("=")
  parts, values = path.split("."), tuple(split_values(listed))
  if len(parts) != 2 or not all(parts):
    raise UserError(f"--grid={text}: write --grid=section.field=value,value, e.g. "
                    "--grid=training.seed=0,1,2")  # fmt: skip
  if not all(values):
    raise UserError(f"--grid={text}: a value is empty; write --grid={path}=value,value")
  if repeated := next((v for v in values if values.count(v) > 1), None):
    raise UserError(f"--grid={text}: {repeated} is repeated; remove one")
  return Axis(parts[0], parts[1], values)


def split_values(text: str) -> Iterator[str]:
  """Split at the commas outside (...) and [...]."""
  depth, value = 0, ""
  for letter in text:
    depth += (letter in "([") - (letter in ")]")
    if letter == "," and depth == 0:
      yield value
      value = ""
    else:
      value += letter
  yield value


def workdirs(base: Path, points: Sequence[Sequence[Override]]) -> list[Path]:
  """Return a folder for each point, named after its overrides.

  Raises:
    UserError: a name would be too long, or two points have the same name.
  """
  names = [",".join(map(label, point)) for point in points]
  for name in names:
    if len(name) > MAX_NAME_LENGTH:
      raise UserError(f"{name}: longer than {MAX_NAME_LENGTH} characters, too long for a folder; "
                      "put some of it into a config file")  # fmt: skip
    if names.count(name) > 1:
      raise UserError(f"{name}: two points have this folder; write equal --grid values alike")
  return [base / name for name in names]


def label(override: Override) -> str:
  """Return section.field=text in letters that need no quotes in a folder's name."""
  text = re.sub(r"[^\w.,=+-]+", "_", override.text.strip("()[] "))
  return f"{override.section}.{override.field}={text}"


if __name__ == "__main__":
  command_line.run_main(main)
