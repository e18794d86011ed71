"""List runs with their figures and the config fields in which they differ.

  diffusion-jax runs                                  those in runs/
  diffusion-jax runs runs/sweep --sort=fd_digits      the smallest first; -fd_digits: the largest
  diffusion-jax runs --format=csv > runs.csv          every figure and every differing field

It needs no service. Damaged folders, and folders that hold no run, have a line too.
"""

import argparse
import csv
import dataclasses
import errno
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.runs.run_facts import UNDECIDED, Figure, RunFacts, find_runs

MOST_FIGURES, MOST_FIELDS = 4, 6
"""Largest number of columns for figures and fields in a table; csv and json have all."""

FACTS: dict[str, Callable[[RunFacts], Any]] = {
  "name": lambda run: run.name,
  "kind": lambda run: run.kind or None,
  "state": lambda run: run.state,
  "step": lambda run: run.step,
  "num_steps": lambda run: run.num_steps,
  "held_out_loss": lambda run: run.loss,
  "eval_step": lambda run: run.eval_step,
}
"""The columns that every run has."""


class UsageError(Exception):
  """Raised for wrong arguments; the message is one line."""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise UsageError(f"runs: {message}; see diffusion-jax runs --help")


def parser() -> argparse.ArgumentParser:
  flags = _Parser(
    "diffusion-jax runs", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  flags.add_argument("folder", nargs="?", default="runs", metavar="DIR",
                     help="a folder with runs, or a run; gs://... too [default: runs]")  # fmt: skip
  flags.add_argument("--sort", default="name", metavar="FIELD",
                     help="a column or section.field; -FIELD reverses [default: name]")  # fmt: skip
  flags.add_argument("--format", choices=["table", "csv", "json"], default="table",
                     help="the output [default: table]")  # fmt: skip
  return flags


def table_of_runs(argv: Sequence[str]) -> str:
  """Return the table for the arguments of the command.

  Raises:
    UsageError: there is no such folder, flag or column.
  """
  args = parser().parse_args(argv)
  folder = Path(args.folder).expanduser()
  try:
    runs = _runs_in_bucket(args.folder) if "://" in args.folder else find_runs(folder)
  except OSError as error:
    raise UsageError(
      f"{folder}: no folder with runs ({error.strerror}); give one, as diffusion-jax runs DIR"
    ) from error
  if not runs and args.format == "table":
    return f"{folder}: no runs yet; to begin: diffusion-jax train --config=ddpm_digits"
  runs = sort_runs(runs, args.sort)
  return {"table": _as_table, "csv": _as_csv, "json": _as_json}[args.format](runs)


def _runs_in_bucket(url: str) -> list[RunFacts]:
  """Return the facts about the runs at an address, of which only small files are downloaded.

  Raises:
    UsageError: it cannot be used on this machine.
    OSError: nothing is there.
  """
  from diffusion_jax.core.bucket_files import check_address  # other tables do without JAX
  from diffusion_jax.runs import bucket_table
  from diffusion_jax.types import UserError

  try:
    check_address(url)
    folder = bucket_table.copy_facts(url)
  except UserError as error:
    raise UsageError(str(error)) from error
  if not any(folder.iterdir()):
    raise FileNotFoundError(errno.ENOENT, "the bucket has no such folder")
  runs = find_runs(folder)
  is_run = [run.name for run in runs] == [folder.name]
  stopped = [run.name for run in runs if run.state == "stopped"]
  alive = bucket_table.running(url.rpartition("/")[0] if is_run else url, stopped)
  return [dataclasses.replace(r, state="running") if r.name in alive else r for r in runs]


def sort_runs(runs: Sequence[RunFacts], field: str) -> list[RunFacts]:
  """Return the runs sorted by a column: numbers, then texts, then runs without a value.

  Raises:
    UsageError: no run has such a column.
  """
  name, is_descending = field.removeprefix("-"), field.startswith("-")
  known = {*FACTS, *(n for run in runs for n in (*run.figures, *run.config))}
  if runs and name not in known:
    shown = [*FACTS, *_figure_names(runs), *differing_fields(runs)]
    raise UsageError(f"--sort={field}: no such column.{spelling_hint(name, shown)}")
  values = {id(run): _plain(_value(run, name)) for run in runs}
  with_value = [run for run in runs if values[id(run)] is not None]
  key = lambda run: _order(values[id(run)])  # noqa: E731
  without = [run for run in runs if values[id(run)] is None]
  return [*sorted(with_value, key=key, reverse=is_descending), *without]


def _value(run: RunFacts, name: str) -> Any:
  if name in FACTS:
    return FACTS[name](run)
  return run.figures.get(name, run.config.get(name))


def _plain(value: Any) -> Any:
  return value.value if isinstance(value, Figure) else value


def _order(value: Any) -> tuple[bool, Any]:
  is_number = isinstance(value, int | float)
  return (not is_number, value if is_number else json.dumps(value))


def differing_fields(runs: Sequence[RunFacts]) -> list[str]:
  """Return the config fields, as section.field, that differ between runs.

  The sections in UNDECIDED do not count. A field that a config lacks counts if its section is
  another part, e.g. another sampler; otherwise an older version, which did not have it, wrote it.
  """
  configs = [run.config for run in runs if run.config]
  names = list(dict.fromkeys(name for config in configs for name in config))
  decided = [name for name in names if name.partition(".")[0] not in UNDECIDED]
  return [name for name in decided if _differs(configs, name)]


def _differs(configs: Sequence[Mapping[str, Any]], name: str) -> bool:
  part = f"{name.partition('.')[0]}.name"
  having = [config for config in configs if name in config]
  parts = [config.get(part) for config in having]
  lacking = any(part in c and c[part] not in parts for c in configs if name not in c)
  return lacking or len({json.dumps(config[name]) for config in having}) > 1


def _table_fields(runs: Sequence[RunFacts]) -> list[str]:
  """Return the differing fields for a table; if a part is another one, only its name."""
  fields = differing_fields(runs)
  other = {name.partition(".")[0] for name in fields if name.endswith(".name")}
  return [n for n in fields if n.endswith(".name") or n.partition(".")[0] not in other]


def _figure_names(runs: Sequence[RunFacts]) -> list[str]:
  """Return the names of all figures, those with a place among the report's cards first."""
  cards = {name: figure.card for run in runs for name, figure in run.figures.items()}
  return sorted(cards, key=lambda name: (not cards[name], cards[name]))


def _as_table(runs: Sequence[RunFacts]) -> str:
  figures, fields = _figure_names(runs), _table_fields(runs)
  shown, differing = figures[:MOST_FIGURES], fields[:MOST_FIELDS]
  head = ["name", "kind", "step", "state", "held_out_loss", "eval_step", *shown, *differing]
  rows = [_table_row(run, shown, differing) for run in runs]
  used = [i for i in range(len(head)) if i < 4 or any(len(row) > i and row[i] for row in rows)]
  widths = {i: max(len(line[i]) for line in (head, *rows)) for i in used}
  lines = ["  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in (head, *rows)]
  hidden = [*figures[MOST_FIGURES:], *(n for n in differing_fields(runs) if n not in differing)]
  if hidden:
    lines.append(f"{len(hidden)} more columns by --format=csv: {_listed(hidden)}")
  return "\n".join(lines)


def _listed(names: Sequence[str], most: int = 5) -> str:
  return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def _table_row(run: RunFacts, figures: Sequence[str], fields: Sequence[str]) -> list[str]:
  state = f"{run.state}: {run.problem}" if run.problem else run.state
  steps = "" if run.step is None else f"{run.step:,}/{run.num_steps or 0:,}"
  evaluated = "" if run.eval_step is None else f"{run.eval_step:,}"
  measured = [_with_error(run.figures.get(name)) for name in figures]
  config = [_text(run.config[name]) if name in run.config else "" for name in fields]
  return [run.name, run.kind, steps, state, _with_error(run.loss), evaluated, *measured, *config]


def _with_error(figure: Figure | None) -> str:
  if figure is None:
    return ""
  error = "" if figure.error is None else f" ± {figure.error:.2g}"
  return f"{figure.value:.4g}{error}"


def _text(value: Any) -> str:
  if isinstance(value, list):
    return ",".join(map(str, value))
  return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _record(run: RunFacts, fields: Sequence[str]) -> dict[str, Any]:
  """Return everything about a run as JSON values."""
  facts = {name: _plain(value(run)) for name, value in FACTS.items()}
  figures = {n: {"value": f.value, "error": f.error} for n, f in run.figures.items()}
  error = run.loss.error if run.loss else None
  config = {name: run.config[name] for name in fields if name in run.config}
  return {
    **facts, "held_out_loss_error": error, "problem": run.problem or None, "figures": figures,
    "differs": config,
  }  # fmt: skip


def _as_json(runs: Sequence[RunFacts]) -> str:
  return json.dumps([_record(run, differing_fields(runs)) for run in runs], indent=2)


def _as_csv(runs: Sequence[RunFacts]) -> str:
  fields, names = differing_fields(runs), _figure_names(runs)
  heads = [*FACTS, "held_out_loss_error", "problem"]
  heads += [head for name in names for head in (name, f"{name}_error")] + fields
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(heads)
  for run in runs:
    record = _record(run, fields)
    cells: Mapping[str, Any] = {
      **record, **{name: _text(v) for name, v in record["differs"].items()},
      **{n: f["value"] for n, f in record["figures"].items()},
      **{f"{n}_error": f["error"] for n, f in record["figures"].items()},
    }  # fmt: skip
    writer.writerow(["" if cells.get(head) is None else cells[head] for head in heads])
  return text.getvalue().rstrip("\n")
