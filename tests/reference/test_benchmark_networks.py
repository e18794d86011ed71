"""The networks of the benchmarks: the peers' in torch have as many parameters as ours."""

import jax
import pytest

from diffusion_jax.core import config
from diffusion_jax.planning import compiled
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import ImageSpec

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("name", ["ddpm_cifar", "dit_b4", "dit_xl2"])
def test_peers_have_as_many_parameters(root, monkeypatch, name):
  pytest.importorskip("diffusers")
  monkeypatch.syspath_prepend(root / "benchmarks")
  monkeypatch.syspath_prepend(root / "benchmarks" / "workers")
  import networks
  import torch
  import torch_peers

  network = networks.NETWORKS[name]
  overrides = [config.parse_override(text) for text in network.overrides(False)]
  experiment = load_experiment(str(root / "configs" / f"{network.config}.py"), overrides)
  spec = ImageSpec(*network.image, 256, network.classes)
  program = compiled.build_program(experiment, spec, jax.devices()[:1])
  params = jax.eval_shape(lambda key: program.generative.init(key)[0], jax.random.key(0))
  ours = sum(leaf.size for leaf in jax.tree.leaves(params))
  options = {"shape": network.shape, "image": network.image, "classes": network.classes}
  make = torch_peers.network if name == "ddpm_cifar" else torch_peers.transformer
  monkeypatch.setattr(torch_peers, "DEVICE", "meta")
  with torch.device("meta"):
    theirs = sum(p.numel() for p in make({**options, "remat": False}).parameters())
  assert ours == theirs
