"""Fused attention against the plain form: values, gradients, and where each kernel is taken."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.kernels import attention
from diffusion_jax.models import DiT
from diffusion_jax.parallel.placement import placed_on
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.types import Condition, ImageSpec, UserError


def inputs(num, width, batch=2, dtype=jnp.float32):
  draws = np.random.default_rng(0).normal(size=(4, batch, num, width))
  return [jnp.asarray(x, dtype) for x in draws]


def of_heads(function, num_heads):
  """Return the function of [B N H D] as one of [B N D], as a network calls it."""

  def whole(*arrays):
    heads = [x.reshape(*x.shape[:2], num_heads, -1) for x in arrays]
    return function(*heads).reshape(arrays[0].shape)

  return whole


def assert_equal(found, expected, tolerance):
  scale = np.abs(np.asarray(expected, np.float32)).max()
  error = np.abs(np.asarray(found, np.float32) - np.asarray(expected, np.float32)).max()
  assert error <= tolerance * scale, f"{error} of {scale}"


@pytest.mark.costly
@pytest.mark.parametrize(
  ("num", "num_heads", "width", "dtype", "tolerance"),
  [
    (128, 1, 8, jnp.float32, 2e-6),
    (49, 3, 16, jnp.float32, 2e-6),  # an odd length, padded
    (130, 2, 72, jnp.bfloat16, 2e-2),  # two blocks; half precision keeps 8 bits
  ],
)
def test_splash_equals_the_plain_form(num, num_heads, width, dtype, tolerance):
  *arrays, cotangent = inputs(num, num_heads * width, dtype=dtype)
  splash = functools.partial(attention._splash_local, interpret=True)
  found, pull = jax.vjp(of_heads(splash, num_heads), *arrays)
  expected, pull_plain = jax.vjp(lambda *x: attention._plain(*x, num_heads), *arrays)
  assert found.dtype == dtype
  assert_equal(found, expected, tolerance)
  for ours, theirs in zip(pull(cotangent), pull_plain(cotangent), strict=True):
    assert_equal(ours, theirs, tolerance)


@pytest.mark.costly
@pytest.mark.parametrize("shape", [MeshShape(data=4, fsdp=2), MeshShape(data=2, tensor=4)])
def test_splash_is_split_over_a_mesh(shape):
  """Each device computes its own examples (and heads); no score crosses devices."""
  mesh, num_heads = create_mesh(shape), 4
  *arrays, _ = inputs(24, num_heads * 8, batch=8)
  splash = functools.partial(attention._splash, interpret=True)
  with placed_on(mesh):
    whole = of_heads(lambda *heads: splash(heads), num_heads)
    compiled = jax.jit(whole).lower(*arrays).compile()
  assert_equal(compiled(*arrays), attention._plain(*arrays, num_heads), 2e-6)
  assert "all-reduce" not in compiled.as_text()


@pytest.fixture
def on_gpu(monkeypatch):
  """Let JAX lower for a GPU of Hopper's generation on a machine without one."""
  import jax._src.cudnn.fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(attention, "nvidia_capability", lambda: attention.HOPPER)


def lowered_calls(function, *arrays):
  """Return the custom calls of a function and of its gradient, lowered for NVIDIA GPUs."""
  loss = lambda *x: function(*x).astype(jnp.float32).sum()  # noqa: E731
  traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  return re.findall(r"custom_call @(\S+?)\(", text), text


@pytest.mark.parametrize(("num", "num_heads"), [(256, 1), (49, 2)])
def test_cudnn_computes_value_and_gradient_on_nvidia_gpus(on_gpu, num, num_heads):
  arrays = inputs(num, 64 * num_heads, dtype=jnp.bfloat16)[:3]
  attend = functools.partial(attention.attend, num_heads=num_heads)
  calls, text = lowered_calls(attend, *arrays)
  assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
  assert not re.search(rf"{num}x{num}x", text)  # no score is stored
  assert ("PADDING" in text) == bool(num % attention.CUDNN_UNIT)


def test_auto_takes_the_plain_form_where_the_kernel_refuses(on_gpu):
  calls, _ = lowered_calls(functools.partial(attention.attend, num_heads=1), *inputs(16, 64)[:3])
  assert not calls  # float32
  narrow = inputs(16, 12, dtype=jnp.bfloat16)[:3]
  assert not lowered_calls(functools.partial(attention.attend, num_heads=1), *narrow)[0]


def test_code_that_needs_forward_derivatives_gets_the_plain_form(on_gpu):
  arrays = inputs(16, 64, dtype=jnp.bfloat16)[:3]
  attend = functools.partial(attention.attend, num_heads=1)
  with attention.plain_only():
    value, tangent = jax.jvp(attend, tuple(arrays), tuple(arrays))
  assert value.shape == tangent.shape == arrays[0].shape
  assert attention._chosen(*arrays[:2], 1, "auto") == "cudnn"  # and only inside the block


@pytest.mark.parametrize(
  ("implementation", "dtype", "width", "message"),
  [
    ("cudnn", jnp.bfloat16, 64, "needs an NVIDIA GPU since Ampere, and the devices are of 'cpu'"),
    ("splash", jnp.bfloat16, 64, "needs a TPU, and the devices are of 'cpu'"),
  ],
)
def test_a_kernel_of_other_devices_is_refused(implementation, dtype, width, message):
  arrays = inputs(16, width, dtype=dtype)[:3]
  with pytest.raises(UserError, match=f"`model.attention={implementation}` {message}"):
    attention.attend(*arrays, 1, implementation)


def test_a_kernel_refuses_what_it_cannot_compute(on_gpu):
  for dtype, width, message in (
    (jnp.float32, 64, "needs bfloat16, and the network computes in float32"),
    (jnp.bfloat16, 12, "heads of at most 256 channels in multiples of 8, not 12"),
  ):
    with pytest.raises(UserError, match=message):
      attention.attend(*inputs(16, width, dtype=dtype)[:3], 1, "cudnn")


def test_a_network_passes_its_setting_on(on_gpu):
  spec = ImageSpec(8, 8, 3, 256, 0)
  calls = {}
  settings: tuple[attention.Implementation, ...] = ("auto", "xla")
  for setting in settings:
    config = DiT(depth=1, hidden=64, heads=1, dtype="bfloat16", attention=setting)
    network = config.create(spec, 0)
    params = jax.eval_shape(network.init, jax.random.key(0))
    apply = lambda p, x, network=network: network.apply(p, x, jnp.zeros(2), Condition())  # noqa: E731
    traced = jax.jit(apply).trace(params, jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))
    calls[setting] = "fmha" in traced.lower(lowering_platforms=("cuda",)).as_text()
  assert calls == {"auto": True, "xla": False}
