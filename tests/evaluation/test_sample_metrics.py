"""Figures of features: their names tell the protocol, their values are the metrics'."""

import numpy as np
import pytest

from diffusion_jax.evaluation import sample_metrics
from diffusion_jax.evaluation.reference import Reference
from diffusion_jax.evaluation.sample_metrics import Protocol, full_protocol
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.metrics import add, zeros

INCEPTION = Extractor("inception", {"sha256": "0"}, {}, lambda p, x: (x, x, None))
OTHER = INCEPTION._replace(name="inception_12345678")
DIGITS = Extractor("digits", {"sha256": "1"}, {}, lambda p, x: (x, x, None), (8, 8, 1))


@pytest.mark.parametrize(
  ("metric", "extractor", "split", "num", "name"),
  [
    ("fd", INCEPTION, "train", 50_000, "fid"),
    ("fd", INCEPTION, "train", 5_000, "fid_5k"),
    ("fd", INCEPTION, "train", 1_234, "fid_1234"),
    ("fd", INCEPTION, "train", 100_000, "fid_100k"),
    ("fd", INCEPTION, "test", 50_000, "fid_test"),
    ("kd", INCEPTION, "test", 10_000, "kid_test_10k"),
    ("sfd", INCEPTION, "given", 50_000, "sfid_given20"),
    ("fd", INCEPTION, "given", 5_000, "fid_given20_5k"),
    ("fd", OTHER, "train", 50_000, "fd_inception_12345678"),
    ("fd", DIGITS, "train", 1_500, "fd_digits"),
    ("fd", DIGITS, "train", 500, "fd_digits_500"),
    ("is", DIGITS, "test", 1_000, "is_digits_test_1k"),
  ],
)
def test_the_name_says_what_differs_from_the_protocol(metric, extractor, split, num, name):
  full = full_protocol(extractor, 1_500)
  assert Protocol(extractor, split, num, full, 20).name(metric) == name


def test_only_the_published_weights_are_called_fid():
  for metric in sample_metrics.PUBLISHED:
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
  found, missing = sample_metrics.measure(sets, reference, DIGITS)
  fd = found["fd_digits_200"]
  assert fd["value"] == pytest.approx(np.mean(fd["values"]))
  assert fd["standard_deviation"] == pytest.approx(np.std(fd["values"], ddof=1))
  assert fd["value"] == pytest.approx(4.0, abs=0.3)  # |shift|^2 of four dimensions
  assert len(fd["values"]) == 3
  assert fd["num_samples"] == 200
  assert fd["num_reference"] == 2000
  assert not missing
  alone, _ = sample_metrics.measure(sets[:1], reference, DIGITS)
  assert alone["fd_digits_200"]["standard_deviation"] is None


def test_identical_sets_have_the_metrics_best_values():
  pool = normal(0, 400)
  found, _ = sample_metrics.measure(
    [sample_set(pool)], reference_of(pool), DIGITS, extrapolate=False
  )
  assert abs(found["fd_digits"]["value"]) < 1e-9
  assert found["precision_digits"]["value"] == 1.0
  assert found["recall_digits"]["value"] == 1.0
  assert found["density_digits"]["value"] == pytest.approx(1.0)
  assert found["coverage_digits"]["value"] == 1.0
  assert "fd_infinity_digits" not in found


def test_the_cuts_of_a_set_do_not_matter():
  pool, reference = normal(1, 300), reference_of(normal(0, 300))
  whole, _ = sample_metrics.measure([sample_set(pool)], reference, DIGITS)
  cut, _ = sample_metrics.measure([sample_set(pool, cuts=7)], reference, DIGITS)
  for name in whole:
    assert cut[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-9)


def test_an_extrapolation_needs_many_samples_a_feature():
  reference = reference_of(normal(0, 500, dim=16))
  for num, there in ((319, False), (320, True)):
    sets = [sample_set(normal(1, num, dim=16))]
    found, missing = sample_metrics.measure(sets, reference, DIGITS)
    assert (f"fd_infinity_digits_{num}" in found) == there
    line = f"fd_infinity_digits_{num} needs at least 320 samples; there are {num}"
    assert (line in missing) != there


def test_too_few_samples_leave_out_what_they_cannot_give():
  found, missing = sample_metrics.measure(
    [sample_set(normal(1, 3))], reference_of(normal(0, 300)), DIGITS
  )
  assert "fd_digits_3" in found
  assert "precision_digits_3" not in found
  assert "precision_digits_3 needs at least 4 samples; there are 3" in missing
  assert "coverage_digits_3 needs at least 6 samples; there are 3" in missing
