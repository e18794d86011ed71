"""Anchors: the figures of real images, beside which noise is seen to be noise."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.data.source import ArraySource
from diffusion_jax.evaluation import anchors, metrics_json, reference, sample_metrics
from diffusion_jax.evaluation import context as contexts
from diffusion_jax.extractors import make_extract, train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path
from diffusion_jax.metrics import create_metrics
from diffusion_jax.parallel import sharding
from diffusion_jax.report import views

NUM_TRAIN, NUM_TEST = 192, 96
METRICS = create_metrics(("kid", "precision", "fid", "is"))


def pictures(seed, num):
  """Discs of one colour on a plain ground, at random places."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:16, :16]
  images = np.full((num, 16, 16, 3), 40, np.uint8)
  for image in images:
    inside = (y - rng.uniform(4, 12)) ** 2 + (x - rng.uniform(4, 12)) ** 2 < rng.uniform(6, 16)
    image[inside] = rng.integers(120, 256, 3)
  return images


def noise(num):
  """Noise with the colours and neighbours alike of real pictures."""
  plain = np.random.default_rng(9).normal(size=(num, 16, 16, 3))
  smooth = sum(np.roll(plain, s, a) for s in (0, 1, 2) for a in (1, 2)) / np.sqrt(6)
  return np.clip(80 + 50 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def splits():
  sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
  return [ArraySource(f"discs {name}", pictures(num, num)) for name, num in sizes.items()]


@pytest.fixture
def context(splits, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  train, test = splits
  extractor = train_domain(train, test, default_features_path(train), Recipe())
  extract = make_extract(extractor, sharding.create_mesh(sharding.MeshShape()), 64)
  space = contexts.FeatureSpace(
    extractor, extract, reference.compute(train, "train", extractor, extract)
  )
  options = SimpleNamespace(num_samples=64, reference_split="train")
  blank = dict.fromkeys(contexts.EvaluationContext._fields)
  return contexts.EvaluationContext(**{
    **blank, "train": train, "test": test, "feature_spaces": [space], "metrics": METRICS,
    "experiment": SimpleNamespace(eval=options),
  })  # fmt: skip


def figures_of(context, images):
  (space,) = context.feature_spaces
  sets = [sample_metrics.gather([space.extract(images)])]
  return sample_metrics.measure_samples(sets, space.reference, space.extractor, METRICS)[0]


def test_noise_is_far_from_the_anchor_and_real_pictures_are_not(context):
  figures = figures_of(context, noise(64))
  assert set(figures) == {
    "kd_random_discs_64", "precision_random_discs_64", "fd_random_discs_64",
  }  # fmt: skip
  found, missing = anchors.measure_anchors(context, figures)
  assert (set(found), missing) == (set(figures), [])
  kd, anchor = figures["kd_random_discs_64"], found["kd_random_discs_64"]
  assert anchor["images"] == "held-out images against training images"
  assert (anchor["num_images"], anchor["num_reference"]) == (64, NUM_TRAIN)
  assert kd["value"] - anchor["value"] > 20 * (kd["standard_error"] + anchor["standard_error"])
  real = figures_of(context, pictures(5, 64))["kd_random_discs_64"]
  assert abs(real["value"] - anchor["value"]) < 4 * (
    real["standard_error"] + anchor["standard_error"]
  )
  assert figures["precision_random_discs_64"]["value"] < 0.2
  assert found["precision_random_discs_64"]["value"] > 0.8
  # told on the terminal, on the card and in the table
  metrics = {"figures": figures, "anchors": found}
  (line,) = [n for n in metrics_json.lines(metrics) if n.startswith("precision")]
  assert f"(real images {found['precision_random_discs_64']['value']:.4f}" in line
  rows = views.figure_rows(metrics)
  assert all(row.anchor.startswith("held-out images: ") for row in rows)
  assert any(card.anchor for card in views.cards(rows, []))


def test_they_are_kept_with_the_reference(context, monkeypatch):
  figures = figures_of(context, noise(64))
  first = anchors.measure_anchors(context, figures)
  monkeypatch.setattr(anchors, "_extract", lambda *_: pytest.fail("computed again"))
  assert anchors.measure_anchors(context, figures) == first
  (file,) = reference.statistics_folder().glob("discs-anchors-*.json")
  assert set(json.loads(file.read_text())) == {"kid", "precision", "fid"}
  monkeypatch.undo()
  file.write_text("{cut of")
  assert len(anchors.measure_anchors(context, figures)[0]) == 3


def test_fewer_held_out_images_than_samples_are_said(context):
  context.experiment.eval.num_samples = 500
  figures = figures_of(context, noise(500))
  found, _ = anchors.measure_anchors(context, figures)
  assert {a["num_images"] for a in found.values()} == {NUM_TEST}
  rows = views.figure_rows({"figures": figures, "anchors": found})
  assert all(row.anchor.endswith("(only 96 images)") for row in rows)


def test_without_held_out_images_there_is_a_line(context):
  found, missing = anchors.measure_anchors(context._replace(test=None), {})
  assert found == {}
  assert missing == ["discs train has no held-out images, so its figures have no anchors"]
