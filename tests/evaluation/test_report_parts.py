"""What a report shows besides its own figures: files, other steps, real images by class."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.core.files import write_png
from diffusion_jax.data import ArraySource
from diffusion_jax.data.base import About
from diffusion_jax.evaluation import report_parts, sample_grids
from diffusion_jax.evaluation.context import EvaluationContext


def metrics_at(step, value=3.0):
  return {
    "schema": 1,
    "model": {"step": step, "workdir": "runs/a", "data": {"classes": ["cat", "dog"]}},
    "samples": {"folder": "samples/abc"},
    "figures": {"fd": {"value": value, "standard_error": 0.1, "better": "lower"}},
  }


def evaluated(workdir, name, metrics):
  folder = workdir / "eval" / name
  folder.mkdir(parents=True)
  (folder / "metrics.json").write_text(json.dumps(metrics))
  return folder


def test_links_lead_to_what_exists(tmp_path):
  folder = evaluated(tmp_path, "5", metrics_at(5))
  links = report_parts.make_links(folder, tmp_path, metrics_at(5), False)
  assert [link.href for link in links] == ["metrics.json"]
  (folder / "samples/abc").mkdir(parents=True)
  (tmp_path / "metrics.jsonl").write_text("")
  (tmp_path / "tensorboard").mkdir()
  links = report_parts.make_links(folder, tmp_path, metrics_at(5), True)
  assert {link.text: link.href for link in links} == {
    "metrics.json": "metrics.json",
    "samples": "samples/abc/",
    "training log": "../../metrics.jsonl",
    "TensorBoard": "../../tensorboard/",
    "all steps": "../report.html",
  }
  for link in links[:-1]:
    assert (folder / link.href).exists()
  assert links[3].command == f"tensorboard --logdir={tmp_path}/tensorboard"


def test_links_of_an_outcome_elsewhere_and_of_odd_names_are_addresses(tmp_path):
  workdir, folder = tmp_path / "a #1?", tmp_path / "elsewhere/5"
  workdir.mkdir()
  folder.mkdir(parents=True)
  (workdir / "metrics.jsonl").write_text("")
  links = report_parts.make_links(folder, workdir, metrics_at(5), False)
  assert links[1].href == "../../a%20%231%3F/metrics.jsonl"


def test_other_steps_are_those_of_the_same_average_and_whole(tmp_path):
  folder = evaluated(tmp_path, "100", metrics_at(100))
  for name, metrics in {
    "5": metrics_at(5),
    "50": metrics_at(50),
    "60-raw": metrics_at(60),
    "70": {**metrics_at(70), "figures": ["fd"]},
    "80": {"schema": 2},
    "100~1": metrics_at(100),
    "90": {**metrics_at(90), "model": {"step": None}},
  }.items():
    evaluated(tmp_path, name, metrics)
  (tmp_path / "eval/55").mkdir()
  (tmp_path / "eval/55/metrics.json").write_text("{")
  assert [m["model"]["step"] for m in report_parts.other_steps(folder).values()] == [5, 50]
  assert list(report_parts.other_steps(tmp_path / "eval/61-raw")) == [tmp_path / "eval/60-raw"]
  assert report_parts.course_page(tmp_path / "eval/61-raw").name == "report-raw.html"


def test_the_page_of_all_steps_is_beside_their_folders(tmp_path):
  folder = evaluated(tmp_path, "100", metrics_at(100))
  report_parts.write_all_steps(folder, metrics_at(100), {})
  assert not (tmp_path / "eval/report.html").exists()
  evaluated(tmp_path, "5", metrics_at(5, 9.0))
  report_parts.write_all_steps(folder, metrics_at(100), report_parts.other_steps(folder))
  page = (tmp_path / "eval/report.html").read_text()
  assert 'href="5/report.html"' in page
  assert 'href="100/report.html"' in page
  assert "step 5: 9.00 ± 0.10" in page


def test_samples_of_another_run_come_with_the_names_of_their_classes(tmp_path):
  folder = evaluated(tmp_path, "5", metrics_at(5))
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2}\n')
  (folder / "samples/abc").mkdir(parents=True)
  images = np.zeros((20, 8, 8, 1), np.uint8)
  labels = np.array([0, 1, -1] + [0] * 17)
  np.savez(folder / "samples/abc/000000.npz", images=images, labels=labels)
  (run,) = report_parts.find_compared([tmp_path])
  (part,) = run.samples.rows[0].parts
  assert list(part.captions[:3]) == ["cat", "dog", ""]
  assert len(part.images) == report_parts.SHOWN
  assert run.training == [{"step": 1, "train/loss": 2}]


def test_without_its_samples_another_run_is_shown_by_its_grid(tmp_path):
  folder = evaluated(tmp_path, "5", metrics_at(5))
  (run,) = report_parts.find_compared([tmp_path])
  assert run.samples is None
  write_png(folder / "samples.png", np.zeros((8, 8, 3), np.uint8))
  (run,) = report_parts.find_compared([tmp_path])
  assert run.samples.image.shape == (8, 8, 3)
  assert not run.samples.rows


def context_of(source, classes, num_samples):
  experiment = SimpleNamespace(
    eval=SimpleNamespace(num_samples=num_samples), generative=SimpleNamespace()
  )
  return EvaluationContext(
    None, None, experiment, None, None, source, None, (), (), None, (), {}, None, 0, classes
  )


def source_of(num_classes, num=60, shape=(4, 4, 1)):
  """Images whose pixels are their label."""
  labels = np.arange(num, dtype=np.int32) % num_classes
  images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (num, *shape))
  names = tuple(f"name {i}" for i in range(num_classes))
  return ArraySource("train", images.copy(), labels, 256, num_classes, About(classes=names))


@pytest.mark.parametrize(
  ("num_classes", "num_samples", "rows"), [(1, 9, 1), (3, 40, 3), (1000, 5000, 20), (10, 3, 3)]
)
def test_real_images_stand_beside_samples_of_their_class(num_classes, num_samples, rows):
  source = source_of(num_classes, num=max(60, 2 * num_classes))
  context = context_of(source, list(range(num_classes)), num_samples)
  chosen = sample_grids._rows_of_classes(context)
  assert len(chosen) == rows
  samples = {i: np.full((4, 4, 1), row.label % 256, np.uint8) for row in chosen for i in row.places}
  assert all(i % num_classes == row.label for row in chosen for i in row.places)
  picture = sample_grids._beside_real(context, samples, chosen)
  for row, shown in zip(chosen, picture.rows, strict=True):
    assert shown.name == f"name {row.label}"
    assert [part.heading for part in shown.parts] == ["real", "samples"]
    for part in shown.parts:
      assert 1 <= len(part.images) <= 5
      assert (part.images == row.label % 256).all()
  many = num_classes > rows and num_samples >= num_classes
  assert picture.caption.startswith("20 of 1,000 classes") == many


def test_large_images_are_fewer():
  context = context_of(source_of(10, shape=(512, 512, 1), num=20), list(range(10)), 1000)
  assert {len(row.places) for row in sample_grids._rows_of_classes(context)} == {2}


def test_a_model_without_classes_has_real_images_beside_samples_too():
  context = context_of(source_of(3), [], 7)
  (row,) = sample_grids._rows_of_classes(context)
  assert row.label is None
  samples = {i: np.zeros((4, 4, 1), np.uint8) for i in row.places}
  picture = sample_grids._beside_real(context, samples, [row])
  assert [len(part.images) for part in picture.rows[0].parts] == [7, 7]
