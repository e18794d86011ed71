"""The diffusion transformer against the independent implementation in diffusers (PyTorch)."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.checksum import named_leaves
from diffusion_jax.models import DiT
from diffusion_jax.types import ImageSpec

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
if find_spec("torch_fidelity") is None:
  pytest.skip("needs the extra 'reference'", allow_module_level=True)
# torchvision, which diffusers' transformers import, loads beside torch's CPU build only after this.
sys.path.append(str(Path(__file__).parents[1] / "reference"))
import_module("make_inception_fixture").import_torch_fidelity()
transformers = pytest.importorskip("diffusers.models.transformers.dit_transformer_2d")

DEPTH, HEADS, HIDDEN, CLASSES = 2, 3, 24, 5
SHARED = {  # of every block there, of the network here
  "time1": "timestep_embedder.linear_1",
  "time2": "timestep_embedder.linear_2",
  "label": "class_embedder.embedding_table",
}
IN_BLOCK = {
  "modulation": "norm1.linear",
  "attention/query": "attn1.to_q",
  "attention/key": "attn1.to_k",
  "attention/value": "attn1.to_v",
  "attention/out": "attn1.to_out.0",
  "mlp_in": "ff.net.0.proj",
  "mlp_out": "ff.net.2",
}
TOP = {"patch_in": "pos_embed.proj", "modulation_out": "proj_out_1", "patch_out": "proj_out_2"}


def torch_names(name):
  """diffusers' names of one of our parameters; each of its blocks embeds time and class itself."""
  path, _, leaf = name.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if path in TOP:
    return [f"{TOP[path]}.{leaf}"]
  if path in SHARED:
    return [f"transformer_blocks.{i}.norm1.emb.{SHARED[path]}.{leaf}" for i in range(DEPTH)]
  block, _, rest = path.partition("/")
  return [f"transformer_blocks.{block.removeprefix('block')}.{IN_BLOCK[rest]}.{leaf}"]


def torch_value(name, value):
  """Dense kernels I O as O I; that of the patches as a convolution O I H W."""
  if name == "patch_in/kernel":
    value = value.reshape(2, 2, 4, HIDDEN).transpose(3, 2, 0, 1)
  elif name.endswith("kernel"):
    value = value.T
  return torch.from_numpy(np.ascontiguousarray(value))


@pytest.fixture(scope="module")
def both():
  """The same random weights in both networks, with learned variance, for latents of 8x8x4."""
  config = DiT(depth=DEPTH, hidden=HIDDEN, heads=HEADS, patch=2, learned_variance=True)
  ours = config.create(ImageSpec(8, 8, 4, None, CLASSES), CLASSES + 1)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: (rng.normal(size=leaf.shape) * 0.2).astype(np.float32),
    jax.eval_shape(ours.init, jax.random.key(0)),
  )
  theirs = transformers.DiTTransformer2DModel(
    num_attention_heads=HEADS,
    attention_head_dim=HIDDEN // HEADS,
    in_channels=4,
    out_channels=8,
    num_layers=DEPTH,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=CLASSES,
    norm_eps=1e-6,
  ).eval()
  for block in theirs.transformer_blocks:  # the paper's code has dim / 2 there, diffusers less 1
    block.norm1.emb.time_proj.downscale_freq_shift = 0
  state = {
    name: torch_value(ours_name, value)
    for ours_name, value in named_leaves(params).items()
    for name in torch_names(ours_name)
  }
  positions = {"pos_embed.pos_embed": theirs.pos_embed.pos_embed}
  theirs.load_state_dict(state | positions, strict="pos_embed.pos_embed" in theirs.state_dict())
  return ours, params, theirs


def test_every_parameter_has_its_partner(both):
  _, params, theirs = both
  used = {name for ours_name in named_leaves(params) for name in torch_names(ours_name)}
  assert used == set(dict(theirs.named_parameters()))


def test_the_transformer_computes_what_diffusers_computes(both):
  ours, params, theirs = both
  x = np.random.default_rng(1).normal(size=(3, 8, 8, 4)).astype(np.float32)
  time, labels = np.array([0, 17, 999]), np.array([0, 4, CLASSES])  # the last is the null class
  with torch.no_grad():
    expected = theirs(
      torch.from_numpy(x.transpose(0, 3, 1, 2)),
      timestep=torch.from_numpy(time),
      class_labels=torch.from_numpy(labels),
    ).sample
  expected = expected.numpy().transpose(0, 2, 3, 1)
  found = jax.jit(ours.apply)(params, x, jnp.asarray(time, jnp.float32), jnp.asarray(labels))
  error = np.abs(found - expected).max() / expected.std()
  print(f"largest difference {error:.1e} of the output's standard deviation {expected.std():.2f}")
  assert error < 1e-4
