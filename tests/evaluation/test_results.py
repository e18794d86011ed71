"""Outcomes on disk: what another evaluation would replace is said, and kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.evaluation import report_parts, results
from diffusion_jax.evaluation.context import EvaluationContext, Request, SamplerSetting
from diffusion_jax.evaluation.drawing import CheckpointUnderTest
from diffusion_jax.evaluation.results import Difference, compare_metrics
from diffusion_jax.inference.restore import Average
from diffusion_jax.metrics import create_metrics
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError

STAMP = {"data": "synthetic", "split": "train", "extractor_sha256": "ab"}


def context_of(*overrides, seed=0, sweep=(), likelihoods=("vlb",), references=None, metrics="all"):
  """An evaluation of configs/smoke.py with these settings; nothing of it is loaded."""
  flags = [parse_override(o) for o in ("--config.eval.num_samples=40", *overrides)]
  stamps = {"synthetic": STAMP} if references is None else references
  named = [
    SimpleNamespace(extractor=SimpleNamespace(name=name), reference=SimpleNamespace(stamp=stamp))
    for name, stamp in stamps.items()
  ]
  points = [SamplerSetting(point, None, None, {}) for point in sweep]
  return EvaluationContext(
    None, None, load_experiment("configs/smoke.py", flags), None, None, None, None, (),
    (), None, points, dict.fromkeys(likelihoods), None, seed, (), named, {}, True,
    create_metrics(metrics),
  )  # fmt: skip


def checkpoint(weights):
  return CheckpointUnderTest(None, Average(), None, 4, weights, {}, Path(), {}, {})


def metrics_of(context):
  """What such an evaluation writes, as far as it is compared."""
  return json.loads(json.dumps({
    "schema": 1,
    "model": {"config": context.experiment.to_dict(), "weights_digest": "w"},
    "samples": {"seeds": [context.seed], "num": context.num_samples},
    "metrics": [metric.name for metric in context.metrics],
    "references": {i.extractor.name: i.reference.stamp for i in context.feature_spaces},
    "likelihoods": {name: {} for name in context.estimates},
    "sweep": [{"overrides": setting.overrides} for setting in context.sweep],
  }))  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


def refuse(folder, name=None):
  request = Request(folder.parent, (), out=folder)
  with results.own_folder(request):
    assert folder.is_dir()
    if name:
      (folder / name).touch()
    raise UserError("the data set changed")


@pytest.mark.parametrize("name", [None, "kept.txt"])
def test_a_refused_evaluation_leaves_no_empty_folder(name, tmp_path):
  with pytest.raises(UserError, match="the data set changed"):
    refuse(tmp_path / "eval", name)
  assert (tmp_path / "eval").exists() == bool(name)


def test_an_empty_folder_of_the_users_own_stays(tmp_path):
  with pytest.raises(UserError, match="the data set changed"):
    refuse(tmp_path)
  assert tmp_path.exists()


def test_the_same_settings_lose_nothing_and_ask_for_nothing_more():
  context = context_of(sweep=[{"sampler.steps": "3"}])
  assert compare_metrics(metrics_of(context), context, checkpoint("w")) == Difference([], False)


@pytest.mark.parametrize(
  ("change", "lost"),
  [
    ({"seed": 7}, "seed: 0 -> 7"),
    ({"overrides": ["--config.eval.num_samples=50"]}, "eval.num_samples: 40 -> 50"),
    ({"overrides": ["--config.eval.num_seeds=2"]}, "eval.num_seeds: 1 -> 2"),
    ({"overrides": ["--config.sampler.steps=3"]}, "sampler.steps: 4 -> 3"),
    ({"overrides": ["--config.guidance.weight=5"]}, "guidance.weight: 2.0 -> 5.0"),
    ({"overrides": ["--config.eval.spectrum_images=8"]}, "eval.spectrum_images: 2048 -> 8"),
    ({"likelihoods": ()}, "eval.likelihoods: vlb -> none"),
    (
      {"metrics": ["fid", "kid"]},
      "eval.metrics: fid_infinity, sfid, is, precision, recall, density, coverage -> fid, kid",
    ),
    ({"sweep": ()}, "sweep: sampler.steps=3 -> none"),
    ({"references": {}}, "references: synthetic -> none"),
    (
      {"references": {"synthetic": {**STAMP, "extractor_sha256": "cd"}}},
      "another reference for synthetic (extractor_sha256)",
    ),
  ],
)
def test_what_would_be_replaced_is_named(change, lost):
  sweep = [{"sampler.steps": "3"}]
  before = metrics_of(context_of(sweep=sweep))
  change = {"sweep": sweep, **change}
  context = context_of(*change.pop("overrides", ()), **change)
  assert compare_metrics(before, context).lost == [lost]


def test_other_weights_and_other_versions_are_named():
  context = context_of()
  found = metrics_of(context)
  assert compare_metrics(found, context, checkpoint("v")).lost == ["weights: w -> v"]
  assert compare_metrics({**found, "schema": 2}, context).lost == ["schema: 2 -> 1"]
  assert compare_metrics({"schema": 1}, context).lost == ["its metrics.json lacks 'model'"]


def test_more_of_the_same_may_replace_it_and_is_measured():
  found = metrics_of(context_of(likelihoods=()))
  assert compare_metrics(found, context_of()) == Difference([], True)
  assert compare_metrics(found, context_of(likelihoods=(), sweep=[{"sampler.steps": "3"}])).added
  more = {"synthetic": STAMP, "inception": STAMP}
  assert compare_metrics(metrics_of(context_of()), context_of(references=more)) == Difference(
    [], True
  )


def test_how_it_runs_makes_no_difference():
  flags = [
    "--config.eval.batch_size=7", "--config.training.num_steps=9", "--config.logging.num_samples=1",
    "--config.optimizer.learning_rate=1", "--config.mesh.fsdp=2",
  ]  # fmt: skip
  assert compare_metrics(metrics_of(context_of()), context_of(*flags)) == Difference([], False)


def test_a_config_of_an_older_version_is_read_with_the_defaults():
  found = metrics_of(context_of())
  config = found["model"]["config"]
  config["eval"]["likelihoods"] = None
  del config["sampler"]["rho"]
  assert compare_metrics(found, context_of()) == Difference([], False)


def test_an_outcome_of_other_settings_is_kept_or_moved_aside(tmp_path):
  folder = tmp_path / "4"
  (folder / "samples" / "ab").mkdir(parents=True)
  content = json.dumps(metrics_of(context_of()))
  for name in ("metrics.json", "report.html", "samples.png"):
    (folder / name).write_text(content)
  other, tested = context_of(seed=7), checkpoint("w")
  with pytest.raises(UserError, match=r"4 holds .* \(seed: 0 -> 7\); give --out=FOLDER .* --fresh"):
    results.keep([folder], other, fresh=False)
  results.keep([folder], other, fresh=True)  # it is not that step's turn yet
  assert (folder / "metrics.json").read_text() == content
  results.keep([folder], other, fresh=True, checkpoint=tested)
  aside = tmp_path / "4.old1"
  assert {p.name for p in aside.iterdir()} == {"metrics.json", "report.html", "samples.png"}
  assert (aside / "metrics.json").read_text() == content
  assert [p.name for p in folder.iterdir()] == ["samples"]
  results.keep([folder], other, fresh=False, checkpoint=tested)


DAMAGED = {
  "cut off": '{"schema": 1, "figures": {"fid"',
  "no object": "[1]",
  "another schema": '{"schema": 2}',
  "figures of another form": '{"schema": 1, "figures": {"fid": 3}}',
  "likelihoods of another form": '{"schema": 1, "likelihoods": ["vlb"]}',
  "a sweep of another form": '{"schema": 1, "sweep": [{"overrides": 3, "figures": {}}]}',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_to_compare_with_is_one_line(tmp_path, kind):
  """Of a run, the newest step counts: an older one would be compared instead of it, unsaid."""
  for step, text in ((2, '{"schema": 1}'), (10, DAMAGED[kind])):
    (tmp_path / f"eval/{step}").mkdir(parents=True)
    (tmp_path / f"eval/{step}/metrics.json").write_text(text)
  for path in (tmp_path, tmp_path / "eval/10/metrics.json", tmp_path / "eval/10"):
    with pytest.raises(UserError, match=r"10/metrics\.json is no metrics\.json that can be") as e:
      report_parts.find_compared([path])
    assert "\n" not in str(e.value)
  (found,) = report_parts.find_compared([tmp_path / "eval/2"])
  assert found.metrics == {"schema": 1}
  assert found.samples is None


def test_a_new_metric_asks_for_more_and_an_older_outcome_had_those_of_the_package():
  found = metrics_of(context_of(metrics=["fid"]))
  assert compare_metrics(found, context_of(metrics=["fid", "kid"])) == Difference([], True)
  found = metrics_of(context_of())
  del found["metrics"], found["model"]["config"]["eval"]["metrics"]
  assert compare_metrics(found, context_of()) == Difference([], False)
