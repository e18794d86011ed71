"""Statistics of other programs: Fréchet figures of their own names, and never pictures."""

import json
import pickle
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from plug_ins import MeanGap

from diffusion_jax import evaluate, metrics, stats
from diffusion_jax.data import Arrays, load_pictures
from diffusion_jax.data.source import ArraySource
from diffusion_jax.evaluation import anchors, external_images, foreign_statistics, reference
from diffusion_jax.evaluation.sample_metrics import measure_samples
from diffusion_jax.extractors import Extractor, Features
from diffusion_jax.extractors.inception_extractor import NETWORK
from diffusion_jax.metrics import (
  FeatureSet,
  create_metrics,
  frechet_standard_error,
  gaussian_distance,
  moments,
  precision_recall,
)
from diffusion_jax.report.comparison import same_protocol
from diffusion_jax.types import UserError

D, S = 5, 3
RANDOM = np.random.default_rng(0)
TRAIN = RANDOM.integers(0, 256, (60, 4, 4, 3), np.uint8)
SAMPLES = RANDOM.integers(0, 200, (40, 4, 4, 3), np.uint8)
ADM = foreign_statistics.LAYOUTS["adm"]
STAMP = {"network": NETWORK, "sha256": "ab", "resize": "none"}


def apply(params, images):
  flat = images.reshape(images.shape[0], -1).astype(jnp.float32) / 64.0
  return flat[:, :D], flat[:, :8], flat[:, D : D + S]


TINY = Extractor("inception", STAMP, jnp.zeros(()), apply)
DIGITS = TINY._replace(name="digits", stamp={**STAMP, "network": "a"}, resolution=(4, 4, 3))


def features(images):
  return Features(*(np.asarray(part) for part in apply(None, images)))


@pytest.fixture(autouse=True)
def widths(monkeypatch):
  """Stand-ins of Inception's 2048 and 2023 features."""
  monkeypatch.setattr(foreign_statistics, "WIDTHS", {"mu": D, "mu_s": S})


def arrays(names=ADM):
  """The arrays of ADM's file of the training images, its pictures a third of them."""
  pool, spatial = (np.float64(part) for part in features(TRAIN)[::2])
  there = {
    "arr_0": TRAIN[::3],
    "mu": pool.mean(0), "sigma": np.cov(pool.T),
    "mu_s": spatial.mean(0), "sigma_s": np.cov(spatial.T),
  }  # fmt: skip
  return {name: there[name] for name in names}


def written(folder, content, name="theirs.npz"):
  np.savez(folder / name, **content)
  return folder / name


def measured(path, extractor=TINY, samples=SAMPLES, chosen=None):
  """Figures and lines of a file of statistics, without a compiled network."""
  foreign = foreign_statistics.read_foreign_statistics(path)
  stamp = foreign_statistics.foreign_stamp(foreign, extractor, (4, 4, 3))
  theirs = foreign_statistics.as_reference(foreign, stamp, extractor, features)
  pool, logits, spatial = features(samples)
  sums = [moments.add(moments.zeros(part.shape[1]), part) for part in (pool, spatial)]
  sets = [FeatureSet(pool, sums[0], logits, sums[1])]
  figures, lines = measure_samples(sets, theirs, extractor, chosen or create_metrics())
  return figures, lines, stamp


def own_figures():
  """The same figures against our own statistics of the training images."""
  ours = reference.compute(ArraySource("x train", TRAIN, None, 256, 0), "train", TINY, features)
  pool, logits, spatial = features(SAMPLES)
  sums = [moments.add(moments.zeros(part.shape[1]), part) for part in (pool, spatial)]
  return measure_samples([FeatureSet(pool, sums[0], logits, sums[1])], ours, TINY,
                         create_metrics())[0]  # fmt: skip


def test_mean_and_covariance_give_the_distance_of_our_own_statistics(tmp_path):
  figures, lines, stamp = measured(written(tmp_path, arrays(("mu", "sigma"))))
  assert set(figures) == {"fid_stats_40", "is_stats_40"}  # the Inception Score has no reference
  figure = figures["fid_stats_40"]
  assert figure["value"] == pytest.approx(own_figures()["fid_40"]["value"], abs=1e-9)
  assert figure["num_reference"] is None
  assert figure["standard_error"] == pytest.approx(
    frechet_standard_error(features(SAMPLES).pool, *list(arrays().values())[1:3])
  )
  assert lines[0].startswith("sfid, kid, precision, recall, density, coverage against theirs.npz")
  assert "mean and covariance alone" in lines[0]
  assert (stamp["data"], stamp["layout"]) == ("theirs.npz", "mu, sigma")
  assert len(stamp["sha256"]) == 64


def test_adms_file_gives_its_five_figures(tmp_path):
  figures, lines, stamp = measured(written(tmp_path, {**arrays(), "arr_1": np.zeros(20, int)}))
  assert set(figures) == {f"{n}_adm_40" for n in ("fid", "sfid", "is", "precision", "recall")}
  own, theirs = own_figures(), arrays()
  for name in ("fid", "sfid"):
    assert figures[f"{name}_adm_40"]["value"] == pytest.approx(own[f"{name}_40"]["value"], abs=1e-9)
  spatial = np.float64(features(SAMPLES).spatial)
  expected = gaussian_distance(
    spatial.mean(0), np.cov(spatial.T), theirs["mu_s"], theirs["sigma_s"]
  )
  assert figures["sfid_adm_40"]["value"] == pytest.approx(expected, abs=1e-9)
  precise, recalled = precision_recall(features(TRAIN[::3]).pool, features(SAMPLES).pool, 3)
  assert figures["precision_adm_40"]["value"] == precise
  assert figures["recall_adm_40"]["value"] == recalled
  assert figures["recall_adm_40"]["num_reference"] == 20
  assert figures["fid_adm_40"]["num_reference"] is None
  assert "kid, density, coverage against theirs.npz: they are not in ADM's protocol" in lines[0]
  assert (stamp["num_pictures"], stamp["not_read"]) == (20, ["arr_1"])


def test_the_full_number_of_samples_is_not_in_the_name_and_other_weights_are(tmp_path):
  path = written(tmp_path, arrays())
  other = TINY._replace(name="inception_12345678")
  named = measured(path, other, chosen=create_metrics(["fid", "sfid"]))[0]
  assert set(named) == {"fd_inception_12345678_adm_40", "sfd_inception_12345678_adm_40"}
  many = np.tile(SAMPLES, (1250, 1, 1, 1))
  assert set(measured(path, samples=many, chosen=create_metrics(["fid"]))[0]) == {"fid_adm"}


def test_single_precision_and_its_rounding_are_taken(tmp_path):
  single = {name: array.astype(np.float32) for name, array in arrays(("mu", "sigma")).items()}
  single["sigma"][0, 1] *= 1 + 1e-6
  value = measured(written(tmp_path, single))[0]["fid_stats_40"]["value"]
  assert value == pytest.approx(own_figures()["fid_40"]["value"], rel=1e-5)


def negative(content):
  values, vectors = np.linalg.eigh(content["sigma"])
  values[0] = -0.01 * values[-1]
  return vectors @ np.diag(values) @ vectors.T


def changed(**replaced):
  """A function of the arrays that replaces some by arrays or by functions of them."""

  def change(content):
    new = {k: make(content) if callable(make) else make for k, make in replaced.items()}
    return {k: v for k, v in {**content, **new}.items() if v is not None}

  return change


WRONG = {
  "no sigma": (changed(sigma=None), "statistics of features must be mu and sigma alone, or arr_0"),
  "mu_s alone": (changed(sigma_s=None), "statistics of features must be"),
  "no pictures": (changed(arr_0=None), "statistics of features must be"),
  "other pictures": (changed(arr_0=None, images=TRAIN), "statistics of features must be"),
  "pictures and mu": (changed(mu_s=None, sigma_s=None), "statistics of features must be"),
  "capitals": (changed(mu=None, MU=np.zeros(D)), "statistics of features must be"),
  "two sets": (changed(mu_clip=np.zeros(D)), "statistics of features must be"),
  "not square": (changed(sigma=lambda c: c["sigma"][:, 1:]), r"sigma has shape \[5, 4\]; it must"),
  "one row": (changed(mu=lambda c: c["mu"][None]), r"mu has shape \[1, 5\]; it must be \[5\]"),
  "a number": (changed(mu=np.float64(1)), r"mu has shape \[\]; it must be \[5\]"),
  "DINOv2": (changed(mu=np.zeros(1024)), r"mu has 1,024 features and .* 5 \(1,024: DINOv2 ViT-L"),
  "spatial": (changed(mu_s=np.zeros(9)), "mu_s has 9 features and Inception has 3; statistics of"),
  "half": (changed(mu=lambda c: np.float16(c["mu"])), "mu is float16; it must be float32 or"),
  "complex": (changed(sigma=lambda c: c["sigma"] + 0j), "sigma is complex128; it must be float32"),
  "integers": (changed(mu=np.zeros(D, int)), "mu is int64; it must be float32"),
  "nan": (changed(sigma=lambda c: c["sigma"] * np.nan), "25 numbers of sigma are not finite"),
  "infinite": (changed(mu_s=np.full(S, np.inf)), "3 numbers of mu_s are not finite"),
  "asymmetric": (changed(sigma=lambda c: np.triu(c["sigma"])), "it differs from its transpose by"),
  "negative": (changed(sigma=negative), "sigma is no covariance: its eigenvalues are between -"),
  "zero": (changed(sigma=np.zeros((D, D))), "sigma is no covariance: its eigenvalues are between"),
  "objects": (changed(mu=np.array([None] * D)), "the array mu has Python objects"),
  "floats": (changed(arr_0=TRAIN / 255), "arr_0 is float64.*; it must be uint8"),
  "one picture": (changed(arr_0=TRAIN[:1]), "arr_0 holds 1 image; at least 2 are needed"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_another_form_is_one_line_everywhere(kind, tmp_path):
  change, message = WRONG[kind]
  path = written(tmp_path, change(arrays()))
  with pytest.raises(UserError, match=message) as error:
    external_images.load_other(external_images.Against(path))
  assert "\n" not in str(error.value)
  for flag in ("--samples", "--images"):
    with pytest.raises(UserError, match=r"holds statistics of features .* never read as images"):
      load_pictures(path, flag)
  with pytest.raises(UserError, match="is never read as images"):
    Arrays(path=str(path)).load("train")


def test_declared_fields_of_images_are_no_statistics(tmp_path):
  path = written(tmp_path, {"images": TRAIN, "mu": np.zeros((60, 2), np.float32)})
  assert Arrays(path=str(path), fields=("mu",)).load("train").spec.fields["mu"].shape == (2,)
  with pytest.raises(UserError, match=r"name arrays of one row per image: `data\.fields=\.\.\.`"):
    Arrays(path=str(path)).load("train")


def test_a_folder_of_statistics_is_no_folder_of_pictures(tmp_path):
  written(tmp_path, arrays())
  with pytest.raises(UserError, match=r"theirs\.npz holds statistics of features \(mu, mu_s, sig"):
    load_pictures(tmp_path, "--reference")


def test_a_pickle_is_refused_with_what_is_allowed(tmp_path):
  path = tmp_path / "img512.pkl"
  path.write_bytes(pickle.dumps({"fid": {"mu": np.zeros(D)}}))
  with pytest.raises(
    UserError, match=r"is a Python pickle, which is not read; allowed are an \.npz"
  ):
    external_images.load_other(external_images.Against(path))


@pytest.fixture
def flags(tmp_path, monkeypatch):
  """Flags of evaluate with the tiny network in place of Inception."""
  monkeypatch.setattr(external_images, "optional_inception", lambda *_: ([TINY], []))
  np.savez(tmp_path / "samples.npz", images=SAMPLES)
  return [f"--samples={tmp_path}/samples.npz", f"--reference={written(tmp_path, arrays())}"]


def test_the_command_of_the_page_writes_figures_and_stamp(flags, tmp_path, monkeypatch, call):
  page = (Path(__file__).parents[2] / "docs/howto/fid.md").read_text()
  (command,) = (shlex.split(line) for line in page.splitlines() if "--reference=VIRTUAL" in line)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "theirs.npz").rename("VIRTUAL_imagenet256_labeled.npz")
  code, out, err = call(evaluate.main, *command[2:])
  assert (code, err) == (0, "")
  content = json.loads((tmp_path / "metrics.json").read_text())
  assert sorted(content["figures"]) == [
    "fid_adm_40", "is_adm_40", "precision_adm_40", "recall_adm_40", "sfid_adm_40"
  ]  # fmt: skip
  assert content["figures"]["fid_adm_40"]["value"] == pytest.approx(
    own_figures()["fid_40"]["value"], rel=1e-4
  )
  stamp = content["references"]["inception_adm"]
  assert stamp["data"] == "VIRTUAL_imagenet256_labeled.npz"
  assert "TensorFlow 1's resize" in stamp["assumed"]
  assert "number of images unknown" in stamp["assumed"]
  assert any("not in ADM's protocol" in line for line in content["missing"])
  assert "fid_adm_40" in out


@pytest.mark.parametrize("kind", ["features only", "no network", "another resolution"])
def test_what_cannot_be_compared_is_one_line_and_code_2(kind, flags, tmp_path, monkeypatch, call):
  inception = ([], ["Inception weights are not there"]) if kind != "another resolution" else None
  if inception is not None:
    monkeypatch.setattr(external_images, "optional_inception", lambda *_: inception)
  monkeypatch.setattr(external_images, "load_domain", lambda path: DIGITS)
  own = [*flags, f"--features={'x' if kind == 'features only' else 'none'}", "--dinov2=none"]
  if kind == "another resolution":
    np.savez(tmp_path / "samples.npz", images=SAMPLES[:, :3])
  code, out, err = call(evaluate.main, *own, "--clip=none")
  assert (code, len(err.strip().splitlines())) == (2, 1), (out, err)
  said = {
    "features only": "needs Inception's features, and there are none: Inception weights are not "
    "there; fd_digits: theirs.npz has Inception's statistics, which other features cannot be",
    "no network": "and there are none: Inception weights are not there",
    "another resolution": "its pictures are (4, 4, 3) and the samples (3, 4, 3)",
  }
  assert said[kind] in err


def test_features_of_the_data_beside_inception_are_said_to_be_left_out(tmp_path):
  kept, lines = foreign_statistics.comparable([DIGITS, TINY], ["before"], tmp_path / "a.npz")
  assert [extractor.name for extractor in kept] == ["inception"]
  assert lines[0] == "before"
  assert lines[1].startswith("fd_digits: a.npz has Inception's statistics")


def test_stats_does_not_take_statistics_as_images(flags, tmp_path, call):
  images = flags[1].replace("--reference", "--images")
  code, _, err = call(stats.main, images, f"--out={tmp_path}/s.npz")
  assert code == 2
  assert "never read as images" in err
  assert not (tmp_path / "s.npz").exists()


def test_a_run_takes_statistics_of_others_beside_its_own_data(tmp_path):
  path = written(tmp_path, arrays())
  load = foreign_statistics.load_beside
  assert load(None, [], [], (4, 4, 3)) is None
  assert load(path, [DIGITS, TINY], [], (4, 4, 3)).layout == "adm"
  with pytest.raises(UserError, match="and there are none: Inception weights gone; fd_digits"):
    load(path, [DIGITS], ["other lines", "Inception weights gone"], (4, 4, 3))
  with pytest.raises(UserError, match="both must have one resolution"):
    load(path, [TINY], [], (8, 8, 3))
  with pytest.raises(UserError, match="a run is compared with its own data, and allowed beside a"):
    load(written(tmp_path, {"images": TRAIN}, "pictures.npz"), [TINY], [], (4, 4, 3))


def test_figures_against_others_have_no_anchors_and_a_stamp_of_their_own():
  stamps = [{"split": "train"}, {"split": "adm", "layout": "..."}]
  spaces = [SimpleNamespace(extractor=TINY, reference=SimpleNamespace(stamp=s)) for s in stamps]
  assert foreign_statistics.reference_stamps(spaces) == dict(
    zip(["inception", "inception_adm"], stamps, strict=True)
  )
  assert anchors._own_spaces(spaces) == spaces[:1]


def test_figures_against_other_files_are_not_ranked(tmp_path):
  def run(sha256):
    figure = {"extractor": "inception", "reference": "adm", "num_samples": 40}
    stamp = {"data": "a.npz", "split": "adm", "layout": "...", "sha256": sha256}
    return {"figures": {"fid_adm": figure}, "references": {"inception_adm": stamp}}

  assert same_protocol("figures", "fid_adm", run("ab"), run("ab"))
  assert not same_protocol("figures", "fid_adm", run("ab"), run("cd"))


def test_a_metric_of_ones_own_may_not_be_called_fid_adm():
  class Mine(MeanGap):
    name = "fid_adm_5k"

  assert "fid is a metric of this package" in (metrics._taken_name(Mine()) or "")
