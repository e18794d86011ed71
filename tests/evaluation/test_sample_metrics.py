"""Figures of features: their names tell the protocol, their values are the metrics'."""

import dataclasses

import numpy as np
import pytest
from broken_parts import Divides
from plug_ins import MeanGap, declared

from diffusion_jax.evaluation import sample_metrics
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.sample_metrics import Protocol
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.metrics import METRICS, Measurement, add, create_metrics, zeros
from diffusion_jax.report import views
from diffusion_jax.types import UserError

INCEPTION = Extractor("inception", {"sha256": "0"}, {}, lambda p, x: (x, x, None))
OTHER = INCEPTION._replace(name="inception_12345678")
ALL = create_metrics()
IN_SWEEPS = [metric for metric in ALL if metric.in_sweeps]
DIGITS = Extractor("digits", {"sha256": "1"}, {}, lambda p, x: (x, x, None), (8, 8, 1))


@pytest.mark.parametrize(
  ("metric", "extractor", "split", "num", "num_reference", "name"),
  [
    ("fid", INCEPTION, "train", 50_000, 1_500, "fid"),
    ("fid", INCEPTION, "train", 5_000, 1_500, "fid_5k"),
    ("fid", INCEPTION, "train", 1_234, 1_500, "fid_1234"),
    ("fid", INCEPTION, "train", 100_000, 1_500, "fid_100k"),
    ("fid", INCEPTION, "test", 50_000, 1_500, "fid_test"),
    ("kid", INCEPTION, "test", 10_000, 1_500, "kid_test_10k"),
    ("sfid", INCEPTION, "given", 50_000, 20, "sfid_given20"),
    ("fid", INCEPTION, "given", 5_000, 20, "fid_given20_5k"),
    ("fid", OTHER, "train", 50_000, 1_500, "fd_inception_12345678"),
    ("fid", DIGITS, "train", 1_500, 1_500, "fd_digits"),
    ("fid", DIGITS, "train", 500, 1_500, "fd_digits_500"),
    ("is", DIGITS, "test", 1_000, 1_500, "is_digits_test_1k"),
  ],
)
def test_the_name_says_what_differs_from_the_protocol(
  metric, extractor, split, num, num_reference, name
):
  assert Protocol(extractor, split, num, num_reference).name(METRICS[metric]()) == name


def test_only_the_published_weights_are_called_fid():
  for metric in create_metrics():
    for extractor in (OTHER, DIGITS):
      name = Protocol(extractor, "train", 1_500, 1_500).name(metric)
      assert extractor.name in name
      assert not name.startswith(("fid", "kid", "sfid"))


def normal(seed, num, shift=0.0, dim=4):
  return (np.random.default_rng(seed).normal(size=(num, dim)) + shift).astype(np.float32)


def sample_set(pool, cuts=1):
  logits = np.tile(pool[:, :2], (1, 4))
  halves = np.array_split(np.arange(len(pool)), cuts)
  return sample_metrics.gather([Features(pool[h], logits[h]) for h in halves])


def reference_of(pool, split="train"):
  return Reference({"split": split}, add(zeros(pool.shape[1]), pool), None, pool,
                   np.arange(len(pool)))  # fmt: skip


def test_values_over_seeds_have_a_mean_and_a_spread():
  reference = reference_of(normal(0, 2000))
  sets = [sample_set(normal(seed, 200, shift=1.0)) for seed in (1, 2, 3)]
  found, missing = sample_metrics.measure_samples(sets, reference, DIGITS, ALL)
  fd = found["fd_digits_200"]
  assert fd["value"] == pytest.approx(np.mean(fd["values"]))
  assert fd["standard_deviation"] == pytest.approx(np.std(fd["values"], ddof=1))
  assert fd["value"] == pytest.approx(4.0, abs=0.3)  # |shift|^2 of four dimensions
  assert len(fd["values"]) == 3
  assert fd["num_samples"] == 200
  assert fd["num_reference"] == 2000
  assert not missing
  alone, _ = sample_metrics.measure_samples(sets[:1], reference, DIGITS, ALL)
  assert alone["fd_digits_200"]["standard_deviation"] is None


def test_identical_sets_have_the_metrics_best_values():
  pool = normal(0, 400)
  found, _ = sample_metrics.measure_samples(
    [sample_set(pool)], reference_of(pool), DIGITS, IN_SWEEPS
  )
  assert abs(found["fd_digits"]["value"]) < 1e-9
  assert found["precision_digits"]["value"] == 1.0
  assert found["recall_digits"]["value"] == 1.0
  assert found["density_digits"]["value"] == pytest.approx(1.0)
  assert found["coverage_digits"]["value"] == 1.0
  assert "fd_infinity_digits" not in found


def test_the_cuts_of_a_set_do_not_matter():
  pool, reference = normal(1, 300), reference_of(normal(0, 300))
  whole, _ = sample_metrics.measure_samples([sample_set(pool)], reference, DIGITS, ALL)
  cut, _ = sample_metrics.measure_samples([sample_set(pool, cuts=7)], reference, DIGITS, ALL)
  for name in whole:
    assert cut[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-9)


def test_an_extrapolation_needs_many_samples_a_feature():
  reference = reference_of(normal(0, 500, dim=16))
  for num, there in ((319, False), (320, True)):
    sets = [sample_set(normal(1, num, dim=16))]
    found, missing = sample_metrics.measure_samples(sets, reference, DIGITS, ALL)
    assert (f"fd_infinity_digits_{num}" in found) == there
    line = f"fd_infinity_digits_{num} needs at least 320 samples; there are {num}"
    assert (line in missing) != there


def test_too_few_samples_leave_out_what_they_cannot_give():
  found, missing = sample_metrics.measure_samples(
    [sample_set(normal(1, 3))], reference_of(normal(0, 300)), DIGITS, ALL
  )
  assert "fd_digits_3" in found
  assert "precision_digits_3" not in found
  assert "precision_digits_3 needs at least 4 samples; there are 3" in missing
  assert "coverage_digits_3 needs at least 6 samples; there are 3" in missing


HERE = "plug_ins:MeanGap"


def test_a_metric_from_outside_is_one_class():
  chosen = create_metrics(("fid", HERE))
  sets = [sample_set(normal(seed, 300, shift=1.0)) for seed in (1, 2)]
  found, missing = sample_metrics.measure_samples(
    sets, reference_of(normal(0, 400)), DIGITS, chosen
  )
  assert list(found) == ["fd_digits_300", "mean_gap_digits"]
  gap = found["mean_gap_digits"]
  assert gap["value"] == pytest.approx(2.0, abs=0.2)  # a shift of 1 in four dimensions
  assert gap["better"] == "lower"
  assert "standard_error" not in gap
  assert not missing
  (fid, own) = views.figure_rows({"figures": found})
  assert (own.description, own.better) == ("distance of the mean features", "lower")
  shown = views.cards([own, fid], [])
  assert [card.key for card in shown] == ["fd_digits_300", "mean_gap_digits"]


def test_two_metrics_from_outside_with_one_name_are_refused(monkeypatch):
  monkeypatch.setitem(METRICS, "gap", MeanGap)
  with pytest.raises(UserError, match=f"{HERE}: it has the name mean_gap, as gap does"):
    create_metrics(("gap", HERE))


def test_a_metric_that_a_program_adds_is_measured_with_all(monkeypatch):
  monkeypatch.setitem(METRICS, "gap", MeanGap)
  assert create_metrics() == [*ALL, MeanGap()]


@pytest.mark.parametrize(
  ("members", "line"),
  [
    ({"name": "Mean gap"}, "name is 'Mean gap'; it must be lower-case letters"),
    ({"needs": frozenset({"logit"})}, "needs has 'logit'; allowed are logits, spatial"),
    ({"name": "fd"}, "name is 'fd', but fd is a metric of this package; give yours another name"),
    ({"name": "fid_5k"}, "name is 'fid_5k', but fid is a metric of this package"),
    ({"domain_name": "kd_test_100"}, "domain_name is 'kd_test_100', but kd is a metric of this"),
    ({"compute": 3}, "compute is not a method"),
    ({"description": None}, "description is None; it must be words for the report"),
  ],
)
def test_a_metric_that_does_not_keep_the_contract_is_one_line(members, line, monkeypatch):
  monkeypatch.setitem(METRICS, "own", dataclasses.dataclass(frozen=True)(
    type("Own", (MeanGap,), {"__annotations__": {}, **members})
  ))  # fmt: skip
  with pytest.raises(UserError) as error:
    create_metrics()
  assert line in str(error.value)
  assert str(error.value).startswith("config.eval.metrics")


def test_a_name_of_this_package_is_refused_also_where_its_own_is_not_measured(monkeypatch):
  monkeypatch.setattr(MeanGap, "name", "fid")
  with pytest.raises(UserError, match=f"{HERE}: name is 'fid', but fid is a metric of this pack"):
    create_metrics((HERE,))


def test_a_metric_that_cannot_be_computed_leaves_the_others(monkeypatch):
  def compute(self, samples, reference):
    raise ValueError("the samples are too alike")

  monkeypatch.setattr(MeanGap, "compute", compute)
  sets = [sample_set(normal(1, 300))]
  chosen = create_metrics((HERE, "fid"))
  found, missing = sample_metrics.measure_samples(
    sets, reference_of(normal(0, 300)), DIGITS, chosen
  )
  assert list(found) == ["fd_digits"]
  assert missing == ["mean_gap_digits cannot be computed: the samples are too alike"]
  monkeypatch.setattr(MeanGap, "compute", lambda *_: Measurement(1.0, float("nan")))
  found, _ = sample_metrics.measure_samples(sets, reference_of(normal(0, 300)), DIGITS, chosen)
  assert found["mean_gap_digits"]["standard_error"] is None


def test_a_metric_whose_code_fails_leaves_the_others():
  """All samples are drawn by then."""
  sets = [sample_set(normal(1, 300))]
  found, missing = sample_metrics.measure_samples(
    sets, reference_of(normal(0, 300)), DIGITS, [Divides(), *create_metrics(("fid",))]
  )
  assert list(found) == ["fd_digits"]
  line = "broken_parts:Divides raised ZeroDivisionError: division by zero (broken_parts.py, line "
  assert len(missing) == 1
  assert line in missing[0]


def test_a_figure_of_an_older_version_has_its_words_by_its_name():
  names = ("fd_infinity_digits_5k", "fid_test_5k", "unknown_digits")
  rows = views.figure_rows({"figures": {name: {"value": 1.0} for name in names}})
  assert [row.description for row in rows] == [
    "Fréchet distance, extrapolated to infinitely many samples",
    "Fréchet distance on Inception features",
    "",
  ]
  assert [card.key for card in views.cards(rows, [])] == ["fid_test_5k"]


def test_a_metric_that_was_named_says_what_its_features_lack():
  sets, reference = [sample_set(normal(1, 30))], reference_of(normal(0, 30))
  chosen = create_metrics(("sfid", "fid"))
  line = "sfd_digits needs spatial features, which digits does not have"
  assert sample_metrics.measure_samples(sets, reference, DIGITS, chosen, True)[1] == [line]
  assert sample_metrics.measure_samples(sets, reference, DIGITS, chosen)[1] == []


def test_details_add_to_a_figure_and_replace_nothing(monkeypatch):
  sets, reference = [sample_set(normal(1, 300))], reference_of(normal(0, 300))
  chosen = create_metrics((HERE,))
  details = {"value": 7.0, "radius": [1.0, 2.0]}
  monkeypatch.setattr(MeanGap, "compute", lambda *_: Measurement(1.0, details=details))
  found, _ = sample_metrics.measure_samples(sets, reference, DIGITS, chosen)
  assert (found["mean_gap_digits"]["value"], found["mean_gap_digits"]["radius"]) == (
    1.0,
    [1.0, 2.0],
  )
  details["radius"] = np.ones(2)
  found, missing = sample_metrics.measure_samples(sets, reference, DIGITS, chosen)
  assert not found
  assert "mean_gap_digits cannot be computed: its details are no JSON values" in missing[0]


def test_a_metric_of_an_installed_package_is_one_of_all():
  with declared(theirs={"metric.gap": "plug_ins:MeanGap"}):
    assert [metric.name for metric in create_metrics()] == [*METRICS, "mean_gap"]
    assert create_metrics(("gap",)) == [MeanGap()]
