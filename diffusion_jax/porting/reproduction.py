"""Compare a measured figure with the published one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.porting.imported import ORIGIN
from diffusion_jax.porting.published import Figure, Published
from diffusion_jax.types import UserError


class Measured(NamedTuple):
  """A measured figure.

  Attributes:
    value: the figure.
    error: its standard error, None where it has none.
    error_words: the origin of that error.
    differs: differences from the publishers' protocol.
    name: the figure's name in metrics.json.
    is_comparable: False for a Fréchet distance on other features than the published Inception's.
  """

  value: float
  error: float | None
  error_words: str
  differs: tuple[str, ...]
  name: str
  is_comparable: bool = True


def check_origin(workdir: Path, source: str) -> bool:
  """Return whether a folder has the weights of a source; False if it is missing or empty.

  Raises:
    UserError: the folder has other weights.
  """
  if not workdir.exists() or not any(workdir.iterdir()):
    return False
  try:
    found = json.loads((workdir / ORIGIN).read_text())["source"]
  except (OSError, ValueError, KeyError, TypeError):
    raise UserError(f"{workdir} is no imported run; choose another `workdir`") from None
  if found != source:
    raise UserError(
      f"{workdir} was imported from {found}, not from {source}; choose another `workdir`"
    )
  return True


def compare_with_published(
  entry: Published, figure: Figure, metrics_file: Path, given: Sequence[str] = ()
) -> str:
  """Return the lines that compare a measured figure with the published one.

  Args:
    entry, figure: the published figure.
    metrics_file: metrics.json of the evaluation.
    given: fields that the user set, "section.field=value", each a difference from the protocol.

  Raises:
    UserError: the figure was not measured.
  """
  metrics = json.loads(metrics_file.read_text())
  found = read_figure(figure, metrics)
  if found is None:
    reasons = [line for line in metrics.get("missing", ()) if "fid" in line or figure.name in line]
    said = f" ({reasons[0]})" if reasons else ""
    raise UserError(f"{figure.name} was not measured{said}")
  unit = "" if figure.name == "fid" else " bits/dim"
  error = "" if found.error is None else f" ± {found.error:.2g} ({found.error_words})"
  rows = [
    ("published", f"{figure.value:g}{unit}, {figure.protocol}; {figure.reference}"),
    ("measured", f"{found.value:.4g}{unit}{error}"),
    ("difference", _difference(figure, found)),
    *(("differs", line) for line in (*found.differs, *_other_data(entry, metrics), *given)),
    *([("note", entry.note)] if entry.note else []),
  ]
  lines = [f"  {name:<11} {text}" for name, text in rows]
  return "\n".join([f"{entry.name}: {found.name}", *lines])


def _difference(figure: Figure, found: Measured) -> str:
  if not found.is_comparable:
    return "none: it is another figure"
  gap = found.value - figure.value
  if found.error is None:
    return f"{gap:+.4g}; without a standard error: measure with `eval.num_seeds=3`"
  if not found.error:
    return f"{gap:+.4g}"
  return f"{gap:+.4g}, {abs(gap) / found.error:.1f} standard errors"


def read_figure(figure: Figure, metrics: Mapping[str, Any]) -> Measured | None:
  """Return the figure that a metrics.json has, None if it has none."""
  if figure.name == "fid":
    return _read_fid(figure, metrics)
  found = metrics.get("likelihoods", {}).get(figure.name)
  if found is None:
    return None
  differs = _fewer(figure, found["num_images"], _split_size(metrics, found), "images")
  return Measured(
    found["bits_per_dim"], found["standard_error"], "over images and draws", differs, figure.name
  )


def _split_size(metrics: Mapping[str, Any], found: Mapping[str, Any]) -> int | None:
  """Return the size of the split where it is known: 10,000 of CIFAR-10's test split."""
  config = metrics["model"]["config"]
  is_cifar = config["data"].get("dataset") == "cifar10" and found["split"] == "test"
  return 10_000 if is_cifar else None


def _fewer(figure: Figure, num: int, whole: int | None, what: str) -> tuple[str, ...]:
  wanted = figure.num or whole
  return (f"{num:,} {what} in place of {wanted:,}",) if wanted and num != wanted else ()


def _read_fid(figure: Figure, metrics: Mapping[str, Any]) -> Measured | None:
  spaces = metrics.get("extractors", {})
  inception = {name for name in spaces if name.startswith("inception")}
  rows = metrics.get("figures", {}).items()
  found = ((n, r) for n, r in rows if r["metric"] == "fid" and r["extractor"] in inception)
  name, row = next(found, ("", None))
  if row is None:
    return None
  differs = list(_fewer(figure, row["num_samples"], None, "samples"))
  is_fid = row["extractor"] == "inception"
  if not is_fid:
    differs.append(f"{row['extractor']}: not the published Inception weights, so it is no FID")
  seeds, spread = len(row["values"]), row["standard_deviation"]
  error = None if spread is None else spread / seeds**0.5
  words = f"of the mean of {seeds} seeds"
  return Measured(row["value"], error, words, tuple(differs), name, is_fid)


def _other_data(entry: Published, metrics: Mapping[str, Any]) -> Sequence[str]:
  """Return differences of the evaluated run from the published one."""
  model = metrics["model"]
  data, lines = model["config"]["data"], []
  wanted = entry.data
  found = data["dataset"] if data["name"] == "tfds" else data["name"]
  if found != wanted:
    lines.append(f"the data are {found} in place of {wanted}")
  return lines
