"""The expected time is the first batch and the second times all others, by a clock of the test."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.data.source import ArraySource
from diffusion_jax.evaluation import bits_per_dim, drawing, expected_time, reference
from diffusion_jax.evaluation.context import EvaluationContext, FeatureSpace, SamplerSetting
from diffusion_jax.evaluation.expected_time import Work, expected_seconds
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.evaluating import Evaluating


class Clock:
  """Time that passes only as the test says: the first batch of a part compiles for 100 s."""

  def __init__(self):
    self.sec, self.compiled = 0.0, set()

  def __call__(self):
    return self.sec

  def spend(self, part, sec):
    self.sec += sec + 100 * (part not in self.compiled)
    self.compiled.add(part)


def test_the_second_batch_stands_for_all_others():
  clock, ran = Clock(), []

  def run(part, sec):
    return lambda number: (ran.append((part, number)), clock.spend(part, sec))

  works = [
    Work("samples", [3, 4, 5, 6, 7], run("samples", 7)),
    Work("features", [2], run("features", 2)),
    Work("features", [2, 3, 4], run("features", 2), more=10),
    Work("likelihoods", [0, 1, 2], run("elbo", 1)),
    Work("likelihoods", [0, 1, 2], run("flow", 5)),
    Work("likelihoods", [], run("done before", 5)),
  ]
  assert expected_seconds(works, clock) == {
    "samples": 107 + 4 * 7, "features": 102 + 2 + 12 * 2, "likelihoods": 101 + 2 * 1 + 105 + 2 * 5,
  }  # fmt: skip
  assert ran[:3] == [("samples", 3), ("samples", 4), ("features", 2)]


@pytest.fixture
def work(tmp_path, monkeypatch):
  """A context of 3 seeds of 100 samples, 32 at a time, one sweep setting and 70 test images."""
  monkeypatch.setattr(drawing, "sampled_fields", lambda *_: {})
  monkeypatch.setattr(expected_time.anchors, "num_to_extract", lambda context: 70)
  clock, calls = Clock(), {"draw": 0, "extract": 0, "estimate": 0}

  def spend(name, sec):
    calls[name] += 1
    clock.spend(name, sec)

  def draw(params, labels, num, seed, first=0, fields=None):
    del params, labels, seed, first, fields
    spend("draw", 10)
    return np.zeros((num, 4, 4, 1), np.float32)

  def extract(images):
    spend("extract", 2)
    return Features(np.zeros((len(images), 3), np.float32), np.zeros((len(images), 0), np.float32))

  def estimate(params, seed, repeat, batch):
    del params, seed, repeat
    spend("estimate", 1)
    return {"bits_per_dim": batch.index * 0.0}

  options = Evaluating(num_samples=100, num_seeds=3, batch_size=32, likelihood_repeats=2)
  test = ArraySource("made test", np.zeros((70, 4, 4, 1), np.uint8))
  setting = SamplerSetting({}, None, draw, {"steps": 1})
  generative = SimpleNamespace(num_classes=0, described_likelihoods={}, num_levels=256, fields={})
  space = FeatureSpace(Extractor("made", {"sha256": "0"}, None, None), extract, None)
  blank = dict.fromkeys(EvaluationContext._fields)
  experiment = SimpleNamespace(eval=options, sections={}, to_dict=dict)
  context = EvaluationContext(**{
    **blank, "experiment": experiment, "setting": setting, "test": test, "train": test, "seed": 0,
    "sweep": [setting._replace(overrides={"sampler.steps": "9"}, facts={"steps": 9})],
    "feature_spaces": [space], "estimates": {"elbo": estimate}, "classes": (),
    "generative": generative, "mesh": sharding.create_mesh(sharding.MeshShape()),
  })  # fmt: skip
  checkpoint = drawing.CheckpointUnderTest(
    None, drawing.Average(), None, 4, "w", {}, tmp_path, {}, {}
  )
  return context, checkpoint, clock, calls


def test_the_counts_are_those_of_the_evaluation(work, capsys):
  context, checkpoint, clock, calls = work
  works = expected_time.works_of(context, checkpoint)
  assert [(w.part, len(w.missing)) for w in works] == [
    *[("samples", 4), ("features", 4)] * 3,
    ("samples of the sweep", 4), ("features of the sweep", 4),
    ("likelihoods", 2 * 3),
  ]  # fmt: skip
  assert [w.more for w in works] == [0, math.ceil(70 / 32), *[0] * 7]  # of the anchors
  expected_time.tell_expected_time(context, checkpoint, clock)
  # 12 batches of 10 s and 12 + 3 of 2 s, 6 of 1 s; each program compiles for 100 s, once
  assert capsys.readouterr().out == (
    "step 4: expected time about 8m24s (samples 3m40s, features 2m10s, samples of the sweep 40s, "
    "features of the sweep 8s, likelihoods 1m46s)\n"
  )
  assert calls == {"draw": 8, "extract": 8, "estimate": 2}


def test_what_was_computed_for_the_estimate_is_not_computed_again(work, capsys):
  context, checkpoint, clock, calls = work
  expected_time.tell_expected_time(context, checkpoint, clock)
  capsys.readouterr()
  drawing.sample_features(context, checkpoint, context.setting, 0)
  assert calls["draw"] == 8 + 2
  assert calls["extract"] == 8 + 2
  assert "100 of 100 samples, " in (out := capsys.readouterr().out)
  assert "drawn before" not in out  # by an earlier command
  split = expected_time.measure.likelihood_split(context, checkpoint, "elbo")
  bits_per_dim.estimate_split(context.estimates["elbo"], split, lambda num, is_new: None)
  assert (calls["estimate"], split.chunks.num_restored) == (6, 0)


def test_a_finished_part_is_not_in_the_line(work, capsys):
  context, checkpoint, clock, _ = work
  for setting, seed in [(context.setting, 0), (context.setting, 1), (context.setting, 2)]:
    drawing.sample_features(context, checkpoint, setting, seed)
  capsys.readouterr()
  expected_time.tell_expected_time(context._replace(sweep=()), checkpoint, clock)
  assert capsys.readouterr().out.endswith("expected time about 1m46s (likelihoods 1m46s)\n")


def test_the_time_of_a_reference_is_that_of_a_batch_times_their_number():
  clock, sizes = Clock(), []
  extract = lambda images: (sizes.append(len(images)), clock.spend("extract", 3))  # noqa: E731
  source = ArraySource("made train", np.zeros((650, 4, 4, 1), np.uint8))
  assert reference._expected_sec(source, extract, clock) == 3 * math.ceil(650 / 64)
  assert sizes == [64, 64]


def test_evenly_spaced_images_of_a_split():
  images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
  few = bits_per_dim.EvenlySpaced(ArraySource("made test", images), 4)
  assert (len(few), few.name) == (4, "made test")
  assert few.gather(np.arange(4))[0].ravel().tolist() == [0, 3, 6, 9]
  assert len(bits_per_dim.EvenlySpaced(ArraySource("made test", images), 99)) == 10
