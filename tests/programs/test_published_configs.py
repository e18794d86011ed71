"""Configs that carry a recipe's name have its facts, and those of the transformer their layout."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.config import parse_override
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.models.layers import Attention
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.train_state import create_state
from diffusion_jax.types import Batch, Condition, ImageSpec

CIFAR = ImageSpec(32, 32, 3, 256, 10)
IMAGENET64 = ImageSpec(64, 64, 3, 256, 1000)
NCSNPP = [
  "--config.model.embedding=fourier",
  "--config.model.noise_multiplier=2",
  "--config.model.resample_filter=1,3,3,1",
  "--config.model.input_residual=true",
]


ROOT = Path(__file__).parents[2]


@functools.cache
def experiment(name, *overrides):
  """The config's experiment."""
  return load_experiment(f"{ROOT}/configs/{name}.py", [parse_override(o) for o in overrides])


@functools.cache
def traced(name, spec, *overrides):
  """The config's model, the shapes of its parameters, and what else it begins with."""
  model = experiment(name, *overrides).create(spec)
  return model, *jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.costly
@pytest.mark.parametrize(
  ("name", "overrides", "spec", "exact", "published"),
  [
    ("edm_cifar", [], CIFAR, 55_733_891, 55.7),
    ("edm_cifar", NCSNPP, CIFAR, 56_397_827, 56.4),
    ("edm_cifar_cond", [], CIFAR, 55_735_299, 55.7),
    ("edm_cifar_cond", NCSNPP, CIFAR, 56_400_643, 56.4),
    ("flow_cifar", [], CIFAR, 61_804_419, 61.8),
    ("dit_imagenet64", [], IMAGENET64, 674_890_032, 674.9),
    ("dit_digits", [], ImageSpec(8, 8, 1, 17, 10), 723_265, 0.7),
  ],
)
def test_the_docstrings_count_of_parameters(root, name, overrides, spec, exact, published):
  leaves = named_leaves(traced(name, spec, *overrides)[1])
  found = sum(leaf.size for n, leaf in leaves.items() if n != "fourier/frequencies")
  assert found == exact
  assert round(found / 1e6, 1) == published
  text = (root / "configs" / f"{name}.py").read_text()
  assert f"{exact:,}" in text
  assert all(override in text for override in overrides)


@pytest.mark.parametrize("name", ["edm_cifar", "edm_cifar_cond"])
def test_edm_has_the_papers_lengths_in_images(name):
  config = experiment(name)
  batch, optimizer, ema = config.training.batch_size, config.optimizer, config.ema
  assert batch == 512
  assert config.training.num_steps * batch == 200_000_000
  assert abs(optimizer.warmup_steps * batch - 10_000_000) < batch
  assert ema.half_life_steps * batch == 500_000
  assert (ema.half_life_ramp, ema.warmup) == (0.05, False)
  rate = optimizer.rate(config.training.num_steps)
  found = [float(rate(step)) for step in (0, optimizer.warmup_steps // 3, 19_532, 390_624)]
  np.testing.assert_allclose(found, [0, 1e-3 / 3, 1e-3, 1e-3], rtol=1e-4)


@pytest.mark.parametrize("name", ["edm_cifar", "edm_cifar_cond"])
def test_edm_samples_by_the_papers_35_evaluations_and_noise_levels(name):
  config = experiment(name)
  process, sampler = config.sections["process"], config.sections["sampler"]
  assert sampler.num_evaluations(process) == 35
  assert not sampler.s_churn
  grid = sampler.grid(process)
  i = np.arange(18)  # equation 5
  exact = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(grid.sigma[:-1], exact, rtol=1e-9)
  assert grid.sigma[-1] == 0


def test_improved_ddpms_hundred_steps_are_its_respacing():
  """Of 4,000, counted from 0: 0, 40, 81, ... 3959, 3999."""
  config = experiment("iddpm_cifar", "--config.sampler.steps=100")
  grid = config.sections["sampler"].grid(config.sections["process"])
  asked = np.round(4000 * grid.t[:-1]).astype(int) - 1
  assert (len(asked), len(set(asked))) == (100, 100)
  assert asked[:2].tolist() == [3999, 3959]
  assert asked[:-5:-1].tolist() == [0, 40, 81, 121]
  assert config.sections["sampler"].spacing == "linspace"


def test_edms_two_configs_differ_by_the_class_alone():
  plain, classes = (experiment(n).to_dict() for n in ("edm_cifar", "edm_cifar_cond"))
  changes = {"conditional": True, "label_dropout": 0.0}
  assert classes == {**plain, "generative": {**plain["generative"], **changes}}
  assert plain["guidance"]["weight"] == 1.0
  assert plain["generative"]["augmentation"] == 0.12
  assert plain["data"]["flip"] is False  # the augmentation flips, and says so to the network


def test_edms_eps_makes_the_mean_over_dimensions_step_as_their_sum():
  """Gradients as small as eps, where it counts."""
  fields = {"learning_rate": 1.0, "warmup_steps": 0}
  ours = dataclasses.replace(experiment("edm_cifar").optimizer, **fields)
  found = third_update(ours, np.float32([1e-8, -3e-8, 2.0]) / CIFAR.num_dims)
  exact = third_update(Adam(**fields, eps=1e-8), np.float32([1e-8, -3e-8, 2.0]))
  np.testing.assert_allclose(found, exact, rtol=1e-4)
  assert np.abs(exact[0]) < 0.9  # eps does count here


def third_update(optimizer, gradient):
  """Of a gradient that comes three times."""
  transform = optimizer.create(100)

  def update(gradient):
    _, state = transform.update(gradient, transform.init(gradient), gradient)
    _, state = transform.update(gradient, state, gradient)
    return transform.update(gradient, state, gradient)[0]

  return np.asarray(jax.jit(update)(gradient))


def test_rectified_flows_attention_starts_at_a_tenth_of_the_variance():
  """Standard deviation sqrt(0.1 / 256) for query, key and value; for the rest of it as DDPM's."""
  recipe = experiment("flow_cifar").sections["model"].recipe
  x = np.zeros((1, 1, 1, 256), np.float32)
  params = jax.jit(Attention(recipe=recipe).init)(jax.random.key(0), x)["params"]
  for name in ("query", "key", "value"):
    kernel = np.asarray(params[name]["kernel"])
    assert np.std(kernel) == pytest.approx((0.1 / 256) ** 0.5, rel=0.02), name
    assert not np.asarray(params[name]["bias"]).any()
  assert np.std(params["out"]["kernel"]) == pytest.approx((1e-10 / 256) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("name", "scale"), [("dit_imagenet64", 1.0), ("flow_cifar", 999.0)])
def test_time_is_embedded_at_the_originals_scale(name, scale):
  """SiT embeds t itself, rectified flow 999 t."""
  sections = experiment(name).sections
  t = np.linspace(0, 1, 11)
  embedded = sections["process"].network_time(t) * sections["model"].time_scale
  np.testing.assert_allclose(embedded, scale * t, rtol=1e-12)


def test_improved_ddpm_pads_convolutions_of_stride_2_on_both_sides_and_ddpm_on_one():
  padding = [
    experiment(n).sections["model"].downsample_padding for n in ("iddpm_cifar", "ddpm_cifar")
  ]
  assert padding == [(1, 1), (0, 1)]
  assert "compute is float32" not in (ROOT / "configs" / "iddpm_cifar.py").read_text()


def test_the_transformers_digits_are_the_twin_of_ddpms():
  plain, other = (experiment(n).to_dict() for n in ("ddpm_digits", "dit_digits"))
  assert {n for n in plain if plain[n] != other[n]} == {"model"}


@pytest.mark.costly
@pytest.mark.parametrize(
  ("name", "spec"),
  [
    ("edm_cifar", CIFAR),
    ("edm_cifar_cond", CIFAR),
    ("flow_cifar", CIFAR),
    ("dit_imagenet64", IMAGENET64),
  ],
)
def test_a_configs_loss_and_samples_fit_together(name, spec):
  """Traced at full size, not computed."""
  model, params, aux = traced(name, spec)
  num = 2
  batch = Batch(np.zeros((num, *spec.shape), np.uint8), np.zeros(num, np.int32),
                np.ones(num, np.float32), np.arange(num, dtype=np.uint32))  # fmt: skip
  losses, _, _ = jax.eval_shape(
    lambda p, b: model.loss(p, aux, jax.random.key(0), b, train=True), params, batch
  )
  assert losses.shape == (num,)
  labels = jnp.zeros(num, jnp.int32) if model.num_classes else None
  keys = jax.random.split(jax.random.key(0), num)
  samples = jax.eval_shape(lambda p: model.sample(p, keys, Condition(labels)), params)
  assert samples.images.shape == (num, *spec.shape)


def test_the_large_transformer_is_split_over_fsdp_and_tensor():
  """Every large array by fsdp, heads and perceptron by tensor too, on 8 devices as 4 by 2."""
  config = experiment("dit_imagenet64")
  params = traced("dit_imagenet64", IMAGENET64)[1]
  mesh = create_mesh(MeshShape(1, 4, 2), jax.devices()[:8])
  layout = named_leaves(sharding.state_shardings(mesh, params))
  stem = "stacked_block/"
  block = {n: s.spec for n, s in layout.items() if n.startswith(stem) and "kernel" in n}
  split = {n.removeprefix(stem).removesuffix("/kernel"): tuple(s) for n, s in block.items()}
  assert split == {
    **{f"attention/{n}": (None, "fsdp", "tensor") for n in ("query", "key", "value")},
    "attention/out": (None, "tensor", "fsdp"),
    "mlp_in": (None, "fsdp", "tensor"),
    "mlp_out": (None, "tensor", "fsdp"),
    "modulation": (None, None, "fsdp"),
  }
  state = jax.eval_shape(lambda p: create_state(p, {}, config.optimizer.create(10).init(p)), params)
  rows = sharding.layout_rows(mesh, state)
  whole, here = (sum(getattr(r, n) for r in rows) for n in ("num_bytes", "bytes_per_device"))
  third = 1 / 3  # of the parameters are modulations, which tensor does not split
  assert here / whole == pytest.approx((1 - third) / 8 + third / 4, rel=0.02)
