"""score_sde's PyTorch checkpoints: the authors' layout written again with torch, read and run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import (  # noqa: E402
  network_of,
  parameters_of,
  tensors_of_parameters,
)
from diffusion_jax.porting.opening import open_source  # noqa: E402
from diffusion_jax.types import UserError  # noqa: E402

pytestmark = pytest.mark.reference
WIDTH, MULTIPLIERS, SIDE, BLOCKS, ATTENDED = 32, (1, 2, 2), 16, 2, (8,)
TIMES = torch.tensor([1e-3, 0.2, 0.6, 1.0])
ROOT = 0.5**0.5


def filtered(x, pads, gain=1.0):
  taps = torch.tensor([1.0, 3, 3, 1]) / 8 * gain
  kernel = (taps[:, None] * taps[None, :]).repeat(x.shape[1], 1, 1, 1)
  return F.conv2d(F.pad(x, (*pads, *pads)), kernel, groups=x.shape[1])


def halved(x, fir):
  return filtered(x, (1, 1))[..., ::2, ::2] if fir else F.avg_pool2d(x, 2)


def doubled(x, fir):
  if not fir:
    return F.interpolate(x, scale_factor=2, mode="nearest")
  wide = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
  wide[..., ::2, ::2] = x
  return filtered(wide, (2, 1), 2.0)


class NIN(nn.Module):
  """A dense layer over channels whose weight is inputs x outputs."""

  def __init__(self, inputs, outputs):
    super().__init__()
    self.W, self.b = nn.Parameter(torch.zeros(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

  def forward(self, x):
    return torch.einsum("bihw,io->bohw", x, self.W) + self.b[:, None, None]


class Block(nn.Module):
  def __init__(self, kind, inputs, outputs, resize=None):
    super().__init__()
    self.big, self.fir, self.resize = kind != "ddpm", kind == "ncsnpp", resize
    groups = lambda width: min(width // 4, 32) if self.big else 32  # noqa: E731
    self.GroupNorm_0 = nn.GroupNorm(groups(inputs), inputs, eps=1e-6)
    self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
    self.Dense_0 = nn.Linear(4 * WIDTH, outputs)
    self.GroupNorm_1 = nn.GroupNorm(groups(outputs), outputs, eps=1e-6)
    self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
    if self.big and (inputs != outputs or resize):
      self.Conv_2 = nn.Conv2d(inputs, outputs, 1)
    elif inputs != outputs:
      self.NIN_0 = NIN(inputs, outputs)

  def forward(self, x, time):
    change = (lambda h: self.resize(h, self.fir)) if self.resize else (lambda h: h)
    h = self.Conv_0(change(F.silu(self.GroupNorm_0(x))))
    h = h + self.Dense_0(F.silu(time))[:, :, None, None]
    h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
    x = change(x)
    for name in ("Conv_2", "NIN_0"):
      x = getattr(self, name)(x) if hasattr(self, name) else x
    return (x + h) * (ROOT if self.big else 1)


class Attention(nn.Module):
  def __init__(self, kind, width):
    super().__init__()
    self.scale = 1 if kind == "ddpm" else ROOT
    groups = 32 if kind == "ddpm" else min(width // 4, 32)
    self.GroupNorm_0 = nn.GroupNorm(groups, width, eps=1e-6)
    for i in range(4):
      setattr(self, f"NIN_{i}", NIN(width, width))

  def forward(self, x):
    h = self.GroupNorm_0(x)
    q, k, v = (getattr(self, f"NIN_{i}")(h).flatten(2) for i in range(3))
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5, -1)
    return (x + self.NIN_3(torch.einsum("bij,bcj->bci", weights, v).view_as(x))) * self.scale


class Strided(nn.Module):
  """A convolution that halves or doubles, as in DDPM."""

  def __init__(self, width, down):
    super().__init__()
    self.down = down
    self.Conv_0 = nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=0 if down else 1)

  def forward(self, x):
    return self.Conv_0(F.pad(x, (0, 1, 0, 1)) if self.down else doubled(x, False))


class FilteredConv(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.Conv2d_0 = nn.Conv2d(inputs, outputs, 3, stride=2)

  def forward(self, x):
    return self.Conv2d_0(filtered(x, (2, 2)))


class Fourier(nn.Module):
  def __init__(self):
    super().__init__()
    self.W = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)

  def forward(self, x):
    waves = x[:, None] * self.W * 2 * np.pi
    return torch.cat([waves.sin(), waves.cos()], -1)


class Original(nn.Module):
  """All modules in one list, applied in its order."""

  def __init__(self, kind):
    super().__init__()
    self.kind = kind
    self.register_buffer("sigmas", torch.linspace(50, 0.01, 1000))
    made = [Fourier()] if kind == "ncsnpp" else []
    made += [nn.Linear(WIDTH * (2 if made else 1), 4 * WIDTH), nn.Linear(4 * WIDTH, 4 * WIDTH)]
    made.append(nn.Conv2d(3, WIDTH, 3, padding=1))
    skips, width, image = [WIDTH], WIDTH, 3
    for level, multiplier in enumerate(MULTIPLIERS):
      for _ in range(BLOCKS):
        made.append(Block(kind, width, width := multiplier * WIDTH))
        made += [Attention(kind, width)] if SIDE >> level in ATTENDED else []
        skips.append(width)
      if level < len(MULTIPLIERS) - 1:
        made.append(Strided(width, True) if kind == "ddpm" else Block(kind, width, width, halved))
        if kind == "ncsnpp":
          made.append(FilteredConv(image, width))
          image = width
        skips.append(width)
    made += [Block(kind, width, width), Attention(kind, width), Block(kind, width, width)]
    for level, multiplier in reversed(list(enumerate(MULTIPLIERS))):
      for _ in range(BLOCKS + 1):
        made.append(Block(kind, width + skips.pop(), width := multiplier * WIDTH))
      made += [Attention(kind, width)] if SIDE >> level in ATTENDED else []
      if level:
        made.append(Strided(width, False) if kind == "ddpm" else Block(kind, width, width, doubled))
    groups = 32 if kind == "ddpm" else min(width // 4, 32)
    made += [nn.GroupNorm(groups, width, eps=1e-6), nn.Conv2d(width, 3, 3, padding=1)]
    self.all_modules = nn.ModuleList(made)

  def embed(self, time, modules):
    if self.kind == "ncsnpp":
      return next(modules)(time.log())
    frequencies = torch.exp(-np.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
    waves = time[:, None] * frequencies
    return torch.cat([waves.sin(), waves.cos()], -1)

  def forward(self, x, time):
    modules = iter(self.all_modules)
    embedding = self.embed(time, modules)
    embedding = next(modules)(embedding)
    embedding = next(modules)(F.silu(embedding))
    image = x = 2 * x - 1 if self.kind == "ncsnpp" else x
    skips = [next(modules)(x)]
    for level in range(len(MULTIPLIERS)):
      for _ in range(BLOCKS):
        h = next(modules)(skips[-1], embedding)
        skips.append(next(modules)(h) if SIDE >> level in ATTENDED else h)
      if level < len(MULTIPLIERS) - 1:
        h = next(modules)(skips[-1], *(() if self.kind == "ddpm" else (embedding,)))
        if self.kind == "ncsnpp":
          h = image = (next(modules)(image) + h) * ROOT
        skips.append(h)
    h = next(modules)(skips[-1], embedding)
    h = next(modules)(h)
    h = next(modules)(h, embedding)
    for level in reversed(range(len(MULTIPLIERS))):
      for _ in range(BLOCKS + 1):
        h = next(modules)(torch.cat([h, skips.pop()], 1), embedding)
      h = next(modules)(h) if SIDE >> level in ATTENDED else h
      if level:
        h = next(modules)(h, *(() if self.kind == "ddpm" else (embedding,)))
    h = F.silu(next(modules)(h))
    h = next(modules)(h)
    return h / time[:, None, None, None] if self.kind == "ncsnpp" else h


def drawn(kind):
  """The network with weights that keep the size of the signal."""
  torch.manual_seed(3)
  network = Original(kind)
  for name, value in network.named_parameters():
    usual = 0.1 if value.ndim == 1 else (value.numel() / value.shape[0]) ** -0.5
    scale = name.endswith(".weight") and value.ndim == 1
    std = 16.0 if name == "all_modules.0.W" else usual
    value.data = std * torch.randn_like(value) + scale
  return network


def save(path, network, rate):
  """Write a file as the original's program does: the average is a list without names."""
  trained = [p.detach().clone() for p in network.parameters() if p.requires_grad]
  average = {"decay": rate, "num_updates": 7, "shadow_params": trained}
  state = {name: value + 1 for name, value in nn.DataParallel(network).state_dict().items()}
  if network.kind == "ncsnpp":
    state["module.all_modules.0.W"] = network.all_modules[0].W
  optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
  torch.save({"optimizer": optimizer.state_dict(), "model": state, "ema": average, "step": 9}, path)
  return path


@pytest.mark.parametrize("kind", ["ddpm", "ddpmpp", "ncsnpp"])
def test_the_network_finds_the_noise_that_the_original_finds(kind, tmp_path):
  network = drawn(kind)
  path = save(tmp_path / "checkpoint_8.pth", network, 0.999 if kind == "ncsnpp" else 0.9999)
  source = open_source(path, image_size=SIDE)
  experiment = experiment_of(source, {}, ())
  assert network_of(experiment).attention_resolutions == ATTENDED
  params = parameters_of(source, experiment)
  x = torch.randn(len(TIMES), 3, SIDE, SIDE)
  with torch.no_grad():
    if kind == "ncsnpp":
      sigma = 0.01 * 5000**TIMES
      expected = -sigma[:, None, None, None] * network((x + 1) / 2, sigma)
    else:
      expected = network(x, 999 * TIMES)
  model = experiment.create(source.described.spec)

  @jax.jit
  def noise(params, x, t):
    denoiser = model.bind(params).denoiser
    return denoiser.predict(denoiser.state(x, t)).output

  found = noise(params, jnp.asarray(x.numpy().transpose(0, 2, 3, 1)), jnp.asarray(TIMES.numpy()))
  expected = expected.numpy().transpose(0, 2, 3, 1)
  assert np.abs(np.asarray(found) - expected).max() < 1e-4 * expected.std()
  back = tensors_of_parameters(source.layout, params, network_of(experiment), 0)
  assert back.keys() == dict(network.named_parameters()).keys()
  for name, value in network.named_parameters():
    assert back[name].tobytes() == value.detach().contiguous().numpy().tobytes(), name


def test_an_average_of_another_network_is_refused(tmp_path):
  network = drawn("ddpm")
  path = save(tmp_path / "checkpoint_8.pth", network, 0.9999)
  content = torch.load(path)
  content["ema"]["shadow_params"] = content["ema"]["shadow_params"][1:]
  torch.save(content, path)
  with pytest.raises(UserError, match="do not fit the parameters of model; --group=model"):
    open_source(path, image_size=SIDE)
