"""Network and samplers against the independent implementation in diffusers (PyTorch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.checksum import named_leaves
from diffusion_jax.models import UNet
from diffusion_jax.processes import CosineVP, LinearVP
from diffusion_jax.samplers import DDIM, Ancestral
from diffusion_jax.types import ImageSpec

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

RENAMED = {
  "norm1/group": "norm1", "norm2/group": "norm2", "conv1/conv": "conv1", "conv2/conv": "conv2",
  "embed": "time_emb_proj", "shortcut": "conv_shortcut", "norm/group": "group_norm",
  "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0",
}  # fmt: skip
TOP = {
  "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2",
  "conv_in/conv": "conv_in", "norm_out/group": "conv_norm_out", "conv_out/conv": "conv_out",
}  # fmt: skip


def torch_name(name, num_levels):
  """diffusers' name of one of our parameters."""
  path, _, leaf = name.rpartition("/")
  leaf = "bias" if leaf == "bias" else "weight"
  if path in TOP:
    return f"{TOP[path]}.{leaf}"
  place, _, part = path.partition("/")
  kind, _, rest = place.partition("_")
  kind, level = kind.rstrip("0123456789"), int(kind.strip("adeilmnopuw") or 0)
  if kind == "up":
    level = num_levels - 1 - level
  stem = "mid_block" if kind == "middle" else f"{kind}_blocks.{level}"
  if rest == "half":
    return f"{stem}.downsamplers.0.conv.{leaf}"
  if rest == "double":
    return f"{stem}.upsamplers.0.conv.{leaf}"
  if rest.endswith("attention"):
    number = rest.removeprefix("block").removesuffix("_attention") if "_" in rest else 0
    return f"{stem}.attentions.{number}.{RENAMED[part]}.{leaf}"
  return f"{stem}.resnets.{rest.removeprefix('block')}.{RENAMED[part]}.{leaf}"


def torch_value(value, shape):
  """Kernels H W I O as O I H W, dense ones I O as O I; a dense shortcut as a 1x1 convolution."""
  order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
  return torch.from_numpy(np.ascontiguousarray(value.transpose(order))).reshape(shape)


@pytest.fixture(scope="module")
def both():
  """The same random weights in DDPM's CIFAR-10 network and in diffusers' of the same name."""
  config = UNet(
    channels=128, multipliers=(1, 2, 2, 2), num_blocks=2, attention_resolutions=(16,), dropout=0.1
  )
  ours = config.create(ImageSpec(32, 32, 3, 256, 0), 0)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: (rng.normal(size=leaf.shape) * 0.03 + (len(leaf.shape) == 1)).astype(np.float32),
    jax.eval_shape(ours.init, jax.random.key(0)),
  )
  theirs = diffusers.UNet2DModel(
    sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    norm_eps=1e-6, norm_num_groups=32,
  ).eval()  # fmt: skip
  shapes = {name: value.shape for name, value in theirs.state_dict().items()}
  state = {
    (name := torch_name(ours_name, 4)): torch_value(value, shapes[name])
    for ours_name, value in named_leaves(params).items()
  }
  theirs.load_state_dict(state, strict=True)  # every parameter has its partner
  return ours, params, theirs


def test_the_ddpm_network_has_every_parameter_of_diffusers(both):
  _, params, theirs = both
  assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
  assert sum(p.size for p in jax.tree.leaves(params)) == 35_746_307


def test_the_ddpm_network_computes_what_diffusers_computes(both):
  ours, params, theirs = both
  x = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
  time = np.array([0, 17, 999])
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(time)).sample
  expected = expected.numpy().transpose(0, 2, 3, 1)
  found = jax.jit(ours.apply)(params, x, jnp.asarray(time, jnp.float32), None)
  error = np.abs(found - expected).max() / expected.std()
  print(f"largest difference {error:.1e} of the output's standard deviation {expected.std():.2f}")
  assert error < 1e-4


def scheduler(cls, process, **options):
  """One of diffusers' schedulers with its float32 tables replaced by float64 ones."""
  betas = 1 - process.alphas_cumprod[1:] / process.alphas_cumprod[:-1]
  theirs = cls(num_train_timesteps=len(betas), trained_betas=betas, **options)
  theirs.betas, theirs.alphas = torch.from_numpy(betas), torch.from_numpy(1 - betas)
  theirs.alphas_cumprod = torch.from_numpy(process.alphas_cumprod[1:])
  theirs.one = theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
  return theirs


PROCESSES = {"linear": LinearVP().create(), "cosine": CosineVP().create()}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_every_ancestral_step_is_that_of_ddpm_scheduler(process, variance):
  theirs = scheduler(
    diffusers.DDPMScheduler, process, variance_type=variance, clip_sample=True,
    prediction_type="sample",
  )  # fmt: skip
  steps = Ancestral(steps=1000, variance=variance).coefficients(process)
  rng = np.random.default_rng(0)
  for row in range(0, 1000, 37):
    x, x0 = rng.normal(size=(2, 1, 3, 4, 4))
    n = round(steps.t[row] * 1000)
    noise = torch.randn(
      (1, 3, 4, 4), generator=torch.Generator().manual_seed(row), dtype=torch.float64
    )
    expected = theirs.step(
      torch.from_numpy(x0), n - 1, torch.from_numpy(x),
      generator=torch.Generator().manual_seed(row),
    ).prev_sample  # fmt: skip
    found = (
      steps.x0[row] * np.clip(x0, -1, 1) + steps.xt[row] * x + steps.noise[row] * noise.numpy()
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_ddim_step_is_that_of_ddim_scheduler(process, spacing, eta):
  theirs = scheduler(
    diffusers.DDIMScheduler, process, clip_sample=True, prediction_type="sample",
    timestep_spacing=spacing, set_alpha_to_one=True,
  )  # fmt: skip
  theirs.set_timesteps(50)
  steps = DDIM(steps=50, eta=eta, spacing=spacing).coefficients(process)
  np.testing.assert_array_equal(np.round(steps.t * 1000) - 1, theirs.timesteps.numpy())
  rng = np.random.default_rng(0)
  for row, time in enumerate(theirs.timesteps):
    x, x0, noise = rng.normal(size=(3, 1, 3, 4, 4))
    expected = theirs.step(
      torch.from_numpy(x0), int(time), torch.from_numpy(x), eta=eta,
      use_clipped_model_output=True, variance_noise=torch.from_numpy(noise),
    ).prev_sample  # fmt: skip
    found = steps.x0[row] * np.clip(x0, -1, 1) + steps.xt[row] * x + steps.noise[row] * noise
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-9)


def test_the_noised_image_is_add_noise_of_diffusers():
  process = LinearVP().create()
  theirs = scheduler(diffusers.DDPMScheduler, process)
  x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3, 4, 4)).astype(np.float32)
  n = np.array([1, 2, 300, 999, 1000])
  alpha, sigma = process.alpha_sigma(jnp.asarray(n / 1000, jnp.float32))
  found = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
  args = (torch.from_numpy(a) for a in (x0.astype(np.float64), eps.astype(np.float64), n - 1))
  np.testing.assert_allclose(found, theirs.add_noise(*args).numpy(), rtol=1e-6, atol=1e-6)
