"""What networks are given besides the data and its time, and what they refuse."""

import jax
import numpy as np
import pytest
from numpy_draws import moved, normal

from diffusion_jax.core.registry import broken_contract
from diffusion_jax.models import MLP, NETWORKS, DiT, NetworkConfig, UNet
from diffusion_jax.types import Condition, FieldSpec, ImageSpec

FIELDS = {"vector": FieldSpec((3,), "float32"), "mask": FieldSpec((4, 4, 1), "uint8")}
SPEC = ImageSpec(4, 4, 1, 256, 3)
X, TIME = normal(5, 2, 4, 4, 1), np.float32([100, 500])
GIVEN = {"vector": normal(6, 2, 3), "mask": np.ones((2, 4, 4, 1), np.uint8)}
SMALL = UNet(channels=8, multipliers=(1,), num_blocks=1, attention_resolutions=())


@pytest.mark.parametrize("config", [MLP(hidden=8, depth=1), SMALL], ids=["mlp", "unet"])
def test_each_named_array_reaches_the_output_of_its_example_alone(config):
  network = config.create(SPEC._replace(fields=FIELDS), 0)
  params = moved(jax.jit(network.init)(jax.random.key(0)))
  apply = jax.jit(network.apply)
  out = np.asarray(apply(params, X, TIME, Condition(fields=GIVEN)))
  for name, value in GIVEN.items():
    other = value.copy()
    other[1] += 1
    found = apply(params, X, TIME, Condition(fields={**GIVEN, name: other}))
    changed = np.abs(np.asarray(found) - out).max((1, 2, 3))
    assert changed[0] < 1e-6
    assert changed[1] > 1e-3, name


def test_without_named_arrays_a_network_has_the_parameters_that_it_had():
  for config in (MLP(hidden=8, depth=1), SMALL):
    names = str(jax.eval_shape(config.create(SPEC, 0).init, jax.random.key(0)))
    assert "field" not in names
    assert "end_time" not in names


def test_a_second_time_is_given_to_networks_that_take_it():
  network = MLP(hidden=8, depth=1, end_time=True).create(SPEC, 0)
  params = moved(jax.jit(network.init)(jax.random.key(0)))
  apply = jax.jit(network.apply)
  out, other = (apply(params, X, TIME, Condition(end_time=np.float32([0, t]))) for t in (0, 1))
  changed = np.abs(np.asarray(out) - other).max((1, 2, 3))
  assert (changed > 1e-4).tolist() == [False, True]
  with pytest.raises(ValueError, match=r"condition\.end_time .* `model\.end_time=True`"):
    MLP().create(SPEC, 0).apply({}, X, TIME, Condition(end_time=np.float32([0, 1])))
  with pytest.raises(ValueError, match="is missing"):
    network.apply(params, X, TIME)


def test_what_a_network_cannot_take_is_refused_when_it_is_made():
  named = SPEC._replace(fields=FIELDS)
  with pytest.raises(ValueError, match=r"fields=vector,mask` needs .* DiT takes label"):
    DiT(depth=1, hidden=8, heads=1).create(named, 0)
  tokens = SPEC._replace(fields={"text": FieldSpec((5, 3), "float32")})
  with pytest.raises(ValueError, match=r"fields=text` has shape \(5, 3\)"):
    SMALL.create(tokens, 0)
  assert MLP(hidden=8, depth=1).create(tokens, 0)
  with pytest.raises(ValueError, match="fields=none: the network was made for mask, vec"):
    SMALL.create(named, 0).apply({}, X, TIME)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_the_contract(name):
  assert broken_contract(NETWORKS[name], NetworkConfig) is None
