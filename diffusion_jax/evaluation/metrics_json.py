"""metrics.json and the report: the results, their checkpoint, and how to repeat them."""

import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import __version__
from diffusion_jax.core import buckets, files
from diffusion_jax.core.pixels import QUANTISATION
from diffusion_jax.evaluation import drawing, measure
from diffusion_jax.evaluation.context import EvaluationContext, sampled_fields
from diffusion_jax.evaluation.drawing import CheckpointUnderTest, Summary
from diffusion_jax.evaluation.foreign_statistics import reference_stamps
from diffusion_jax.evaluation.sampling_cost import PROBES, num_evaluations
from diffusion_jax.report.links import missing_reasons, missing_sentence
from diffusion_jax.runs import provenance
from diffusion_jax.runs.resumable import digest
from diffusion_jax.runs.run_facts import metric_rows
from diffusion_jax.training.train_state import count_parameters
from diffusion_jax.types import UserError

SCHEMA = 1


def compose(
  context: EvaluationContext, checkpoint: CheckpointUnderTest, measured: Summary, repeat: str
) -> Summary:
  """Return the content of metrics.json; docs/metrics_json.md describes it.

  Args:
    context, checkpoint: the run and the checkpoint that were measured.
    measured: results from `measure.evaluate_checkpoint`.
    repeat: command that repeats the measurement.
  """
  return {
    "schema": SCHEMA,
    "identity": digest(measure.identity(context, checkpoint)),
    "model": _model(context, checkpoint),
    "samples": _samples(context, checkpoint),
    "extractors": {i.extractor.name: dict(i.extractor.stamp) for i in context.feature_spaces},
    "references": reference_stamps(context.feature_spaces),
    "metrics": [metric.name for metric in context.metrics],
    **measured,
    "repeat": repeat,
    "code": {"version": __version__, "git_revision": provenance.git_revision()},
    "run": environment(checkpoint.seconds),
  }


def _model(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  config = context.experiment.to_dict()
  return {
    "workdir": buckets.with_addresses(str(context.workdir)),
    "step": checkpoint.step,
    "images_seen": checkpoint.step * context.experiment.training.batch_size,
    "weights": checkpoint.average.label,
    "weights_digest": checkpoint.weights,
    "ema": config["ema"],
    **({"put_together": dict(checkpoint.made)} if checkpoint.made else {}),
    "kind": config["generative"]["name"],
    "kind_description": context.experiment.sections["generative"].description,
    "parameters": count_parameters(checkpoint.params),
    "config": config,
    "data": dict(checkpoint.data),
  }


def _samples(context: EvaluationContext, checkpoint: CheckpointUnderTest) -> Summary:
  facts = drawing.sample_facts(context, checkpoint, context.setting, context.seed)
  return {
    "source": f"{buckets.with_addresses(str(context.workdir))} step {checkpoint.step}",
    "num": context.num_samples,
    "seeds": drawing.seeds(context),
    "sampler": facts["settings"].get("sampler"),
    "auto_spacing": facts["auto_spacing"],
    "guidance": facts["settings"].get("guidance"),
    "num_evaluations": num_evaluations(
      context.generative,
      checkpoint.params,
      context.mesh,
      context.seed,
      context.classes,
      sampled_fields(context, 0, PROBES),
    ),
    "labels": facts["labels"],
    "quantisation": QUANTISATION,
    "resolution": list(context.train.spec.shape),
    "folder": f"samples/{digest(facts)}",
  }


def environment(seconds: Mapping[str, Any]) -> Summary:
  """Return time, duration and machine, which a repetition need not share."""
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "seconds": dict(seconds),
    "devices": [str(d) for d in jax.devices()],
    "device_kind": jax.devices()[0].device_kind,
    "num_processes": jax.process_count(),
    "packages": provenance.package_versions(),
  }


def write_metrics(path: Path, metrics: Summary) -> None:
  """Write one metrics.json.

  Raises:
    UserError: the path cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, json_values(metrics))
  except OSError as error:
    raise UserError(f"--out={path} cannot be written ({error.strerror}); choose another") from error


def json_values(value: Any) -> Any:
  """Return a JSON value with null for numbers that are not finite, and lists for tuples."""
  if isinstance(value, Mapping):
    return {name: json_values(v) for name, v in value.items()}
  if isinstance(value, list | tuple):
    return [json_values(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def training_rows(workdir: Path) -> list[dict[str, Any]]:
  """Return the readable rows of metrics.jsonl that have a step; a value may be null."""
  return [row for row in metric_rows(workdir / "metrics.jsonl") if "step" in row]


def lines(metrics: Summary, report: Path | None = None) -> list[str]:
  """Format the lines for the terminal.

  Args:
    metrics: content of metrics.json.
    report: the page that tells why a figure is missing and what to do; None: the lines tell it.
  """
  anchors = metrics.get("anchors") or {}
  listed = [_figure_line(n, f, anchors.get(n)) for n, f in metrics.get("figures", {}).items()]
  for name, estimate in metrics.get("likelihoods", {}).items():
    terms = ", ".join(f"{n} {t['mean']:.4f}" for n, t in estimate["terms"].items())
    levels = f" at {estimate['num_levels']} levels" if estimate["num_levels"] else ""
    bits = f"{estimate['bits_per_dim']:.4f}{_error(estimate['standard_error'])}"
    listed.append(
      f"{name} {bits} bits/dim{levels}, "
      f"{estimate['num_images']:,} {estimate['split']} images" + (f" ({terms})" if terms else "")
    )
  for point in metrics.get("sweep", []):
    settings = " ".join(f"{n}={v}" for n, v in point["overrides"].items())
    values = ", ".join(f"{n} {f['value']:.4g}" for n, f in point["figures"].items())
    listed.append(f"{settings}: {point['num_evaluations']} evaluations, {values}")
  if "memorization" in metrics:
    estimate = metrics["memorization"]
    listed.append(f"copying test C_T {estimate['c_t']:.2f}: {estimate['verdict']}")
  reasons = missing_reasons(metrics)
  if report is None or not reasons:
    return listed + [f"not measured: {line}" for line in metrics.get("missing", [])]
  return [*listed, f"{missing_sentence(reasons)}; why, and what to do: {report}"]


def _figure_line(name: str, figure: Summary, anchor: Summary | None) -> str:
  error = figure.get("standard_deviation")
  if error is None:
    error = figure.get("standard_error")
  line = f"{name} {figure['value']:.4f}{_error(error)}"
  if anchor is None:
    return line
  few = "" if anchor["num_images"] == figure["num_samples"] else f", {anchor['num_images']:,}"
  return f"{line} (real images {anchor['value']:.4f}{_error(anchor['standard_error'])}{few})"


def _error(value: float | None) -> str:
  return "" if value is None else f" ± {value:.4f}"


def command(argv: list[str], step: int | None) -> str:
  """Return the command that repeats the measurement."""
  left_out = ("--watch", "--fresh", *["--step"] * (step is not None))
  named = [f"--step={step}"] if step is not None else []
  kept = [a for a in argv if not a.startswith(left_out)]
  return shlex.join(["python", "-m", "diffusion_jax.evaluate", *kept, *named])
