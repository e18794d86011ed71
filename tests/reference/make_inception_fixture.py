"""Makes tests/models/inception/inception_fixture.npz: what torch-fidelity says of random weights.

  pip install -e '.[test,reference]' && python tests/reference/make_inception_fixture.py

torch-fidelity 0.4.0 runs its own Inception network on the weights and images of
tests/models/inception/inception_cases.py, and its own FID, KID, Inception Score, precision and
recall on two small image sets. Its option "float64" means float32 (a fault of 0.4.0), so none
is given.
"""

import json
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

INCEPTION = Path(__file__).parent.parent / "models" / "inception"
sys.path.insert(0, str(INCEPTION))

import inception_cases  # noqa: E402

FIXTURE = INCEPTION / "inception_fixture.npz"


def import_torch_fidelity():
  """torch-fidelity imports torchvision, which does not load beside torch's CPU build.

  Only the schemas of two operators are missing, and nothing here calls them.
  """
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
      del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_torch_fidelity.library = library  # the schemas last as long as this object
  import torch_fidelity

  return torch_fidelity


def save_state(state, file):
  """Writes a state dict as torch-fidelity's converter does."""
  torch.save({name: torch.from_numpy(array) for name, array in state.items()}, file)


def network(path):
  """torch-fidelity's Inception network in evaluation mode, with the weights of a file."""
  import_torch_fidelity()
  from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

  return FeatureExtractorInceptionV3(
    "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
  )


def as_torch(images):
  """uint8 N H W C to N C H W."""
  return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def features(net, images):
  """pool, spatial and logits of the network, in its own float type."""
  kept = {}
  hooks = [
    net.AvgPool.register_forward_hook(lambda m, i, o: kept.update(pool=o.flatten(1))),
    net.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, o: kept.update(spatial=o)),
  ]
  with torch.no_grad():
    net(as_torch(images))
    logits = kept["pool"] @ net.fc.weight.T
  for hook in hooks:
    hook.remove()
  spatial = kept["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)  # channels innermost
  return {"pool": kept["pool"].numpy(), "spatial": spatial.numpy(), "logits": logits.numpy()}


class Images(torch.utils.data.Dataset):
  """Images as torch-fidelity takes them: one uint8 tensor C H W each."""

  def __init__(self, images):
    self.images = as_torch(images)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    return self.images[index]


def metrics(path):
  """torch-fidelity's metrics of the two image sets, end to end."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return import_torch_fidelity().calculate_metrics(
      input1=Images(inception_cases.samples()),
      input2=Images(inception_cases.reference()),
      feature_extractor="inception-v3-compat",  # of precision and recall too: by default VGG
      feature_extractor_weights_path=str(path), isc=True, fid=True, kid=True, prc=True,
      cuda=False, cache=False, verbose=False, batch_size=8, rng_seed=2020,
      **inception_cases.SETTINGS,
    )  # fmt: skip


def main():
  state = inception_cases.random_torch_state(inception_cases.SEED)
  arrays = {}
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.pth"
    save_state(state, path)
    net = network(path)
    for name in inception_cases.SHAPES:
      found = features(net, inception_cases.batch(name))
      arrays |= {f"{name}/{kind}": array for kind, array in found.items()}
    figures = metrics(path)
  versions = {name: metadata.version(name) for name in ("torch", "torch-fidelity", "numpy")}
  about = {"metrics": figures, "settings": inception_cases.SETTINGS, "versions": versions}
  np.savez_compressed(FIXTURE, about=json.dumps(about, default=float), **arrays)
  print(
    f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes\n{json.dumps(about, indent=1, default=float)}"
  )


if __name__ == "__main__":
  main()
