"""What the backward pass keeps under each policy of rematerialisation; nothing is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models import NETWORKS
from diffusion_jax.types import Condition, ImageSpec

POLICIES = ["block", "dots_with_no_batch_dims_saveable", "offload_dot_with_no_batch_dims"]


def saved(net, remat, image=(8, 8, 3)):
  """The shapes of all that the forward pass of two images keeps for the backward pass."""
  network = dataclasses.replace(net, remat=remat).create(ImageSpec(*image, 256, 0), 0)
  params = jax.eval_shape(network.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
  time = jax.ShapeDtypeStruct((2,), jnp.float32)
  pull = lambda p, x, t: jax.vjp(lambda p: network.apply(p, x, t, Condition()), p)[1]  # noqa: E731
  return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(pull, params, x, time))]


NETS = [
  pytest.param(NETWORKS["dit"](depth=1, hidden=24, heads=3), 16, id="dit"),
  pytest.param(
    NETWORKS["unet"](channels=8, multipliers=(1,), num_blocks=1, num_heads=2), 64,
    id="unet", marks=pytest.mark.costly,
  ),
  pytest.param(
    NETWORKS["vdm_unet"](channels=8, num_blocks=1), 64, id="vdm", marks=pytest.mark.costly
  ),
]  # fmt: skip


@pytest.mark.parametrize(("net", "tokens"), NETS)
def test_no_policy_keeps_attentions_scores(net, tokens):
  """Without rematerialisation the weights of all pairs of tokens are kept."""
  scores = lambda shapes: [s for s in shapes if s[-2:] == (tokens, tokens)]  # noqa: E731
  assert scores(saved(net, "none"))
  for remat in POLICIES:
    assert not scores(saved(net, remat)), remat
