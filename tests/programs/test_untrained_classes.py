"""Classes without a training image are neither sampled nor measured."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import MODEL

from diffusion_jax import edit, evaluate, sample, train
from diffusion_jax.checkpoints import store
from diffusion_jax.data import Arrays, Synthetic
from diffusion_jax.data.source import About, ArraySource, DecodedSource, trained_classes
from diffusion_jax.evaluation import context as contexts
from diffusion_jax.evaluation import drawing
from diffusion_jax.generative import ModelBase
from diffusion_jax.inference import draw, restore
from diffusion_jax.train_loop import setup
from diffusion_jax.types import Batch, ImageSpec, UserError

LABELS = np.array([3, 8] * 20)


NAMES = [f"\u732b{i}" for i in range(9)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """Forty grey images of the classes 3 and 8, ten of them held out, one of class 5."""
  path = tmp_path_factory.mktemp("data") / "two.npz"
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
  held_out = np.where(np.arange(10) == 4, 5, LABELS[30:])
  np.savez(path, train_images=images[:30], train_labels=LABELS[:30],
           test_images=images[30:], test_labels=held_out)  # fmt: skip
  return path


def test_the_source_says_which_labels_have_images(file):
  source = Arrays(path=str(file)).load("train")
  assert source.spec.num_classes == 9  # the size of the embedding
  assert source.about.counts == [0, 0, 0, 15, 0, 0, 0, 0, 15]
  assert trained_classes(source) == [3, 8]
  assert trained_classes(Synthetic(num_classes=4).load("train")) == [0, 1, 2, 3]
  unknown = DecodedSource("x", ImageSpec(1, 1, 1, 256, 3), 5, lambda _: None)
  assert trained_classes(unknown) == [0, 1, 2]
  assert trained_classes(ArraySource("x", np.zeros((2, 1, 1, 1), np.uint8), None, 256, 0)) == []


def test_labels_in_turn_are_the_trained_ones():
  assert draw.choose_labels(None, 5, [3, 8]).tolist() == [3, 8, 3, 8, 3]
  assert draw.choose_labels("8", 2, [3, 8]).tolist() == [8, 8]
  assert draw.choose_labels(None, 3, []) is None
  words = r"--labels=3,4: must be numbers that were trained: 1-3, 8, e\.g\. 1,2,3"
  with pytest.raises(UserError, match=words):
    draw.choose_labels("3,4", 2, [1, 2, 3, 8])
  with pytest.raises(UserError, match=r"--labels=a: must be numbers from 0 to 3, e\.g\. 0,1,2"):
    draw.choose_labels("a", 2, [0, 1, 2, 3])
  names = ["cat", "dog", "ship"]
  assert draw.choose_labels("ship,0", 3, [0, 2], names).tolist() == [2, 0, 2]
  with pytest.raises(UserError, match="dog has no training image; trained were cat, ship"):
    draw.choose_labels("cat,dog", 2, [0, 2], names)
  with pytest.raises(UserError, match="there is no class 7; give a number from 0 to 2, or a name"):
    draw.choose_labels("7", 2, [0, 2], names)
  with pytest.raises(UserError, match=r"no class is called 'shop'. Did you mean 'ship'"):
    draw.choose_labels("shop", 2, [0, 2], names)


def test_given_images_of_other_classes_get_the_null_class(capsys):
  label = np.array([3, 5, 8, 6, 5], np.int32)
  given = Batch(np.zeros((5, 2, 2, 1), np.uint8), label, np.ones(5), np.arange(5))
  found = draw.with_trained_labels(given, [3, 8], 9)
  assert found.label.tolist() == [3, 9, 8, 9, 9]
  out = capsys.readouterr().out
  assert out == ("note: 3 of 5 images have a class that was never trained (5-6); they get the null "
                 "class\n")  # fmt: skip
  assert draw.with_trained_labels(given, range(9), 9) is given
  assert not capsys.readouterr().out


def bench(classes, number):
  """An evaluation of a model with this number of classes."""

  class Conditional(ModelBase):
    num_classes = number

  model = Conditional()
  blank = dict.fromkeys(contexts.EvaluationContext._fields)
  return contexts.EvaluationContext(**{**blank, "generative": model, "classes": classes})


def run_on(splits, feed=None):
  """A training run on these splits."""
  blank = dict.fromkeys(setup.Job._fields)
  found = {"train": splits[0], "test": splits[1], "feed": feed or splits[0]}
  return setup.Job(**{**blank, **found})


def test_an_evaluation_draws_the_trained_ones():
  two = bench([3, 8], 9)
  assert drawing.labels_of(two, 1, 4).tolist() == [8, 3, 8, 3]
  assert drawing.named_labels(two) == "classes 3,8 in turn"
  every = bench([0, 1, 2], 3)
  assert drawing.labels_of(every, 4, 3).tolist() == [1, 2, 0]
  assert drawing.named_labels(every) == "classes in turn"  # what was sampled before is found again
  none = bench((), 0)
  assert drawing.labels_of(none, 0, 4) is None
  assert drawing.named_labels(none) is None


def test_the_start_block_names_them(file):
  rows = setup.describe_splits(run_on([Arrays(path=str(file)).load(s) for s in ("train", "test")]))
  assert ("classes", "3 (15), 8 (15); 7 of 9 have no image, and are neither sampled nor "
          "measured") in rows  # fmt: skip
  assert ("held out", f"10 images, test_images of {file}") in rows
  assert ("note", "held-out classes without a training image: 5") in rows


def test_latents_know_the_labels_of_images_that_are_not_in_memory(file):
  images = Arrays(path=str(file)).load("train")
  unread = DecodedSource("x", images.spec, len(images), lambda _: None, About(["a"] * 9))
  both = run_on([unread, None], images)
  assert setup.sampled_classes(both) == [3, 8]
  assert ("classes", "a (15), a (15); 7 of 9 have no image, and are neither sampled nor "
          "measured") in setup.describe_splits(both)  # fmt: skip


@pytest.mark.costly
class TestPrograms:
  @pytest.fixture(scope="class")
  def run(self, file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "two"
    config = Path(__file__).parents[2] / "configs/smoke.py"
    named = workdir.with_name("two.npz")
    with np.load(file) as arrays:
      np.savez(named, allow_pickle=False, class_names=np.array(NAMES), **dict(arrays))
    train.main([
      f"--config={config}", *MODEL, "--config.data.name=arrays", f"--config.data.path={named}",
      "--config.training.num_steps=2", "--config.process.num_timesteps=20",
      "--config.logging.num_samples=4", "--config.logging.tensorboard=false",
      f"--workdir={workdir}",
    ])  # fmt: skip
    return workdir

  def test_sample_finds_them_in_the_run(self, run, call, tmp_path, monkeypatch):
    flags = (f"--workdir={run}", "--num=4", f"--out={tmp_path}/a.npz")
    assert call(sample.main, *flags)[0] == 0
    with np.load(tmp_path / "a.npz") as drawn:
      assert drawn["labels"].tolist() == [3, 8, 3, 8]
      assert drawn["class_names"].tolist() == NAMES
    code, _, err = call(sample.main, *flags, "--labels=3,4")
    assert (code, err.count("\n")) == (2, 1)
    assert "--labels=3,4: \u732b4 has no training image; trained were \u732b3, \u732b8" in err
    assert restore.stored_class_names(run / "checkpoints", None) == NAMES
    named = (*flags[:2], f"--out={tmp_path}/b", "--labels=\u732b8,3")
    assert call(sample.main, *named)[0] == 0
    assert sorted(p.name for p in (tmp_path / "b").iterdir() if p.suffix) == [
      "000000_\u732b8.png", "000001_\u732b3.png", "000002_\u732b8.png", "000003_\u732b3.png",
    ]  # fmt: skip
    # a run of an older version does not say
    read = store.read_meta

    def older(*args):
      meta = read(*args)
      meta["data"].pop("trained_classes")
      meta["data"].pop("classes")
      return meta

    monkeypatch.setattr(store, "read_meta", older)
    assert restore.stored_classes(run / "checkpoints", None) == list(range(9))
    assert restore.stored_class_names(run / "checkpoints", None) == []

  def test_edit_tells_the_model_no_other(self, run, call, tmp_path, monkeypatch):
    told, make = [], draw.make_inpaint

    def watched(*args):
      fill = make(*args)
      return lambda params, labels, *rest: told.append(labels) or fill(params, labels, *rest)

    monkeypatch.setattr(draw, "make_inpaint", watched)
    flags = (f"--workdir={run}", "--inpaint=left", "--num=6", f"--out={tmp_path}/a.png")
    code, out, err = call(edit.main, *flags)
    assert code == 0, err
    assert "note: 1 of 6 images have a class that was never trained (5)" in out
    assert np.concatenate(told).tolist() == [3, 8, 3, 8, 9, 8]
    one = tmp_path / "one"
    one.mkdir()
    Image.new("L", (8, 8)).save(one / "a.png")
    flags = (f"--workdir={run}", "--inpaint=left", "--num=1", f"--out={tmp_path}/b.png")
    code, out, err = call(edit.main, *flags, f"--images={one}")
    assert code == 0, err
    assert "note:" not in out

  def test_evaluate_measures_no_other(self, run, call, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = shutil.copytree(run, tmp_path / "run")
    flags = ("--inception=none", "--features=none", "--config.eval.num_samples=8",
             "--config.eval.likelihoods=", "--config.eval.spectrum_images=0",
             "--config.eval.batch_size=8")  # fmt: skip
    code, _, err = call(evaluate.main, f"--workdir={copy}", *flags)
    assert code == 0, err
    metrics = json.loads((copy / "eval/2/metrics.json").read_text())
    assert metrics["samples"]["labels"] == "classes 3,8 in turn"
    (chunk,) = copy.glob("eval/2/samples/*/*.npz")
    with np.load(chunk) as drawn:
      assert drawn["labels"].tolist() == [3, 8] * 4
