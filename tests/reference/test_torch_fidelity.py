"""The Inception network, its weights' file and the metrics against torch-fidelity, live."""

import io
import json
from importlib.util import find_spec

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
if find_spec("torch_fidelity") is None:
  pytest.skip("torch-fidelity is not installed", allow_module_level=True)

import make_inception_fixture as peer  # noqa: E402

from diffusion_jax import metrics  # noqa: E402
from diffusion_jax.models.inception import network, torch_port  # noqa: E402
from diffusion_jax.models.inception import weights as inception_weights  # noqa: E402
from diffusion_jax.weight_files.torch_file import read_state_dict  # noqa: E402

cases = peer.inception_cases


@pytest.fixture(scope="module")
def state():
  return cases.random_torch_state(cases.SEED)


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "weights.pth"
  peer.save_state(state, path)
  return path


@pytest.fixture(scope="module")
def params(path):
  """Through the file that torch wrote."""
  return jax.device_put(inception_weights.load_weights(path, expected=None).params)


@pytest.fixture(scope="module")
def extract(params):
  run = jax.jit(network.apply)
  return lambda images: {k: np.asarray(v) for k, v in run(params, images)._asdict().items()}


def error(found, expected):
  return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", cases.SHAPES)
def test_features(name, path, extract):
  images = cases.batch(name)
  expected, found = peer.features(peer.network(path), images), extract(images)
  errors = {kind: error(found[kind], expected[kind]) for kind in found}
  print(name, errors)
  assert max(errors.values()) < 1e-5


def test_the_graphs_are_equal_in_float64(path, state, monkeypatch):
  """What is left in float32 is rounding: with 53 bits nothing is. No resize: torch-fidelity's
  places are float32 in one program and float64 in the other."""
  images = cases.batch("full")[:2]
  net = peer.network(path).double()
  net.feature_extractor_internal_dtype = torch.float64
  expected = peer.features(net, images)
  monkeypatch.setattr(torch_port, "_float32", lambda x: np.array(x, np.float64))
  with jax.enable_x64(True):
    found = jax.jit(network.apply)(torch_port.from_torch(state), images)._asdict()
    errors = {kind: error(np.asarray(found[kind]), expected[kind]) for kind in found}
  print(errors)
  assert found["pool"].dtype == np.float64
  assert max(errors.values()) < 1e-12


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80), (512, 340), (1, 1)])
def test_resize(size):
  peer.import_torch_fidelity()
  from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as interpolate,
  )

  images = cases.image("noise", 1, *size)[None]
  whole = peer.as_torch(images).float()
  expected = interpolate(whole, size=(299, 299), align_corners=False)
  found = np.asarray(network.resize(jax.numpy.asarray(images, np.float32)))
  np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_the_fixture_is_what_its_script_makes(path):
  with np.load(peer.FIXTURE) as file:
    expected = dict(file)
  net = peer.network(path)
  for name in cases.SHAPES:
    for kind, found in peer.features(net, cases.batch(name)).items():
      assert error(found, expected[f"{name}/{kind}"]) < 1e-5
  about = json.loads(str(expected["about"]))
  for name, value in peer.metrics(path).items():
    np.testing.assert_allclose(value, about["metrics"][name], rtol=1e-3)


def test_metrics_end_to_end(path, extract):
  expected = peer.metrics(path)
  x, y = extract(cases.samples()), extract(cases.reference())
  moments = [metrics.add(metrics.zeros(2048), f["pool"]) for f in (x, y)]
  fid = metrics.gaussian_distance(*(part for m in moments for part in (m.mean, m.covariance)))
  settings = cases.SETTINGS
  kid = metrics.kernel_distance(
    x["pool"], y["pool"], settings["kid_subsets"], settings["kid_subset_size"]
  )
  score = metrics.inception_score(x["logits"], settings["isc_splits"])
  balls = metrics.precision_recall(y["pool"], x["pool"], settings["prc_neighborhood"])
  found = {
    "frechet_inception_distance": fid,
    "kernel_inception_distance_mean": kid.value,
    "kernel_inception_distance_std": kid.standard_deviation,
    "inception_score_mean": score.mean,
    "inception_score_std": score.standard_deviation,
    "precision": balls[0],
    "recall": balls[1],
  }
  print({name: (value, expected[name]) for name, value in found.items()})
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-3)
  np.testing.assert_allclose(fid, nuclear_frechet(x["pool"], y["pool"]), rtol=1e-6)


def nuclear_frechet(x, y):
  """The float64 nuclear-norm form, in torch."""
  x, y = torch.tensor(x).double(), torch.tensor(y).double()
  rx, ry = ((a - a.mean(0)) / (len(a) - 1) ** 0.5 for a in (x, y))
  shared = torch.linalg.svdvals(rx @ ry.T).sum()
  squares = (x.mean(0) - y.mean(0)).square().sum() + rx.square().sum() + ry.square().sum()
  return float(squares - 2 * shared)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_torch_writes(zipped):
  base = torch.arange(24.0).reshape(2, 3, 4)
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
  module |= {
    "view": base[:, 1:], "transposed": base.permute(2, 0, 1), "one": torch.tensor(2.5),
    "empty": torch.zeros(0, 3), "long": torch.arange(3), "half": torch.ones(2).half(),
    "double": torch.rand(2).double(), "bool": torch.tensor([True, False]),
  }  # fmt: skip
  file = io.BytesIO()
  torch.save(module, file, _use_new_zipfile_serialization=zipped)
  found = read_state_dict(file.getvalue(), "file")
  expected = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
  assert list(found) == list(expected)
  for name, tensor in expected.items():
    np.testing.assert_array_equal(found[name], tensor.numpy())
    assert found[name].dtype == tensor.numpy().dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_the_whole_network(zipped, state):
  file = io.BytesIO()
  tensors = {name: torch.from_numpy(array) for name, array in state.items()}
  torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
  found = read_state_dict(file.getvalue(), "file")
  assert found.keys() == state.keys()
  for name, array in state.items():
    np.testing.assert_array_equal(found[name], array)
