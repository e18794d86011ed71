"""State dicts of a network with the names and the order of openai's U-Nets, imported."""

import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from diffusion_jax.core.trees import named_leaves  # noqa: E402
from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import (  # noqa: E402
  Content,
  Source,
  parameters_of,
  tensors_of_parameters,
)
from diffusion_jax.porting.opening import FILE_LAYOUTS, open_source  # noqa: E402
from diffusion_jax.runs.stored import load_experiment  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

pytestmark = pytest.mark.reference
WIDTH = 32


class Block(nn.Module):
  """A residual block; `resize` is a function for the branch and the shortcut."""

  def __init__(self, c, out, emb, adaptive, resize=None):
    super().__init__()
    self.adaptive, self.resize = adaptive, resize or (lambda x: x)
    self.in_layers = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, out, 3, padding=1))
    self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if adaptive else out))
    last = nn.Conv2d(out, out, 3, padding=1)
    self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), last)
    self.skip_connection = nn.Identity() if c == out else nn.Conv2d(c, out, 1)

  def forward(self, x, emb):
    h = self.in_layers[2](self.resize(self.in_layers[1](self.in_layers[0](x))))
    e = self.emb_layers(emb)[:, :, None, None]
    if self.adaptive:
      scale, shift = e.chunk(2, 1)
      h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
    else:
      h = self.out_layers(h + e)
    return self.skip_connection(self.resize(x)) + h


class Attention(nn.Module):
  """With the old order each head has its own query, key and value; else these have the heads."""

  def __init__(self, c, heads, new_order):
    super().__init__()
    self.heads, self.new_order = heads, new_order
    self.norm, self.qkv = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1)
    self.proj_out = nn.Conv1d(c, c, 1)

  def forward(self, x, emb):
    b, c, h, w = x.shape
    rows, d = self.qkv(self.norm(x.reshape(b, c, h * w))), c // self.heads
    if self.new_order:
      q, k, v = rows.reshape(b, 3, self.heads, d, h * w).unbind(1)
    else:
      q, k, v = rows.reshape(b, self.heads, 3, d, h * w).unbind(2)
    made = nn.functional.scaled_dot_product_attention(*(t.transpose(2, 3) for t in (q, k, v)))
    return x + self.proj_out(made.transpose(2, 3).reshape(b, c, h * w)).reshape(b, c, h, w)


class Down(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.op = nn.Conv2d(c, c, 3, 2, 1)

  def forward(self, x, emb):
    return self.op(x)


class Up(nn.Module):
  def __init__(self, c):
    super().__init__()
    self.conv = nn.Conv2d(c, c, 3, padding=1)

  def forward(self, x, emb):
    return self.conv(double(x))


def double(x):
  return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class UNet(nn.Module):
  """A U-Net whose parameters have the published names."""

  def __init__(
    self, widths, blocks, attended, heads, adaptive=True, guided=False, new_order=False, labels=0,
    out=6, time=WIDTH,
  ):  # fmt: skip
    super().__init__()
    emb, self.time = 4 * time, time
    self.time_embed = nn.Sequential(nn.Linear(time, emb), nn.SiLU(), nn.Linear(emb, emb))
    if labels:
      self.label_emb = nn.Embedding(labels, emb)
    block = lambda c, o, resize=None: Block(c, o, emb, adaptive, resize)  # noqa: E731
    attention = lambda c: Attention(c, heads(c), new_order)  # noqa: E731
    half = nn.functional.avg_pool2d
    first = nn.Conv2d(3, widths[0], 3, padding=1)
    down, c, skips = [[first]], widths[0], [widths[0]]
    for level, width in enumerate(widths):
      for _ in range(blocks):
        down.append([block(c, width), *([attention(width)] if level in attended else [])])
        c = width
        skips.append(c)
      if level + 1 < len(widths):
        down.append([block(c, c, lambda x: half(x, 2)) if guided else Down(c)])
        skips.append(c)
    middle, up = [block(c, c), attention(c), block(c, c)], []
    for level in reversed(range(len(widths))):
      for i in range(blocks + 1):
        layers = [block(c + skips.pop(), widths[level])]
        c = widths[level]
        layers += [attention(c)] if level in attended else []
        if level and i == blocks:
          layers.append(block(c, c, double) if guided else Up(c))
        up.append(layers)
    self.input_blocks = nn.ModuleList(map(nn.ModuleList, down))
    self.middle_block = nn.ModuleList(middle)
    self.output_blocks = nn.ModuleList(map(nn.ModuleList, up))
    last = nn.Conv2d(c, out, 3, padding=1)
    self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), last)

  def forward(self, x, t, y=None):
    half = self.time // 2
    angle = t[:, None] * torch.exp(-np.log(10000) * torch.arange(half) / half)[None]
    emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
    if y is not None:
      emb = emb + self.label_emb(y)
    skips = []
    for layers in self.input_blocks:
      x = run(layers, x, emb)
      skips.append(x)
    x = run(self.middle_block, x, emb)
    for layers in self.output_blocks:
      x = run(layers, torch.cat([x, skips.pop()], 1), emb)
    return self.out(x)


def run(layers, x, emb):
  for layer in layers:
    x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
  return x


def heads_of_64(width):
  return width // 64


def four(width):
  return 4


W = WIDTH
NETWORKS = {
  "cifar10": lambda: UNet((W, 2 * W, 2 * W, 2 * W), 3, (1, 2), four),
  "imagenet64": lambda: UNet((W, 2 * W, 3 * W, 4 * W), 3, (2, 3), four),
  "imagenet64-cond": lambda: UNet((W, 2 * W, 3 * W, 4 * W), 1, (2, 3), four, labels=7),
  "lsun-2021": lambda: UNet(
    (W, W, 2 * W, 2 * W, 4 * W, 4 * W), 2, (4,), lambda c: 1, adaptive=False
  ),
  "fixed": lambda: UNet((W, 2 * W, 2 * W, 2 * W), 1, (1,), four, out=3),
  "adm-64": lambda: UNet(
    (64, 128, 192, 256), 3, (1, 2, 3), heads_of_64, guided=True, new_order=True, labels=7, time=64
  ),
  "adm-128": lambda: UNet((W, W, 2 * W, 3 * W, 4 * W), 2, (2, 3, 4), four, guided=True, labels=7),
  "adm-256": lambda: UNet(
    (W, W, 2 * W, 2 * W, 4 * W, 4 * W), 2, (3, 4, 5), lambda c: max(c // 64, 1), guided=True,
    labels=7,
  ),
  "adm-256-uncond": lambda: UNet(
    (W, W, 2 * W, 2 * W, 4 * W, 4 * W), 2, (3, 4, 5), heads_of_64, guided=True
  ),
  "adm-512": lambda: UNet(
    (W, 2 * W, 2 * W, 4 * W, 4 * W, 8 * W, 8 * W), 1, (4, 5, 6), heads_of_64, guided=True,
    labels=3, time=2 * W,
  ),
}  # fmt: skip


def stored(name, folder):
  """The network with drawn weights, and its state dict in a file."""
  generator = torch.Generator().manual_seed(1)
  network = NETWORKS[name]().eval()
  state = {
    key: torch.randn(value.shape, generator=generator) * 0.1 + is_scale(key, value)
    for key, value in network.state_dict().items()
  }
  network.load_state_dict(state)
  torch.save(state, folder / f"{name}.pt")
  return network, state, folder / f"{name}.pt"


def is_scale(key, value):
  return float(value.ndim == 1 and key.endswith("weight"))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imported_network_computes_the_same_and_goes_back_bit_by_bit(name, tmp_path):
  network, state, path = stored(name, tmp_path)
  source = open_source(path)
  experiment = experiment_of(source, {}, [])
  params = parameters_of(source, experiment)
  config, spec = experiment.sections["model"], source.described.spec
  side = 2 ** len(config.multipliers)
  rng = np.random.default_rng(0)
  x, t = rng.normal(size=(2, side, side, 3)).astype(np.float32), np.float32([3.25, 900])
  y = rng.integers(0, spec.num_classes, 2) if spec.num_classes else None
  small = spec._replace(height=side, width=side)
  scaled = tuple(n * side // spec.height for n in config.attention_resolutions)
  own = type(config)(**{**vars(config), "attention_resolutions": scaled})
  ours = own.create(small, spec.num_classes + 1 if spec.num_classes else 0)
  found = jax.jit(ours.apply)(params, x, t, Condition(y))
  given = [torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t)]
  with torch.no_grad():
    out = network(*given, *([] if y is None else [torch.from_numpy(y)]))
  exact = out.numpy().transpose(0, 2, 3, 1)
  error = np.abs(found - exact).max() / exact.std()
  assert error < 1e-4
  arrays = params_as_tensors(source, experiment, params)
  assert arrays.keys() == state.keys()
  for key, value in state.items():
    assert arrays[key].shape == value.shape, key
    assert arrays[key].tobytes() == value.numpy().tobytes(), key


def params_as_tensors(source, experiment, params):
  num_classes = source.described.spec.num_classes
  return tensors_of_parameters(source.layout, params, experiment.sections["model"], num_classes)


PUBLISHED = {
  "improved-diffusion CIFAR-10": ((128, (1, 2, 2, 2), 3, (1, 2), {}), 52_546_438),
  "improved-diffusion ImageNet-64": ((128, (1, 2, 3, 4), 3, (2, 3), {}), 121_063_942),
  "ADM-64": ((192, (1, 2, 3, 4), 3, (1, 2, 3), {"guided": True, "labels": 1000}), 295_904_454),
  "ADM-256": (
    (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), {"guided": True, "labels": 1000}), 553_838_086,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_described_by_their_shapes(name):
  """Their exact numbers of parameters, and for CIFAR-10 the whole of our own config."""
  (width, multipliers, blocks, attended, more), number = PUBLISHED[name]
  with torch.device("meta"):
    widths = tuple(width * multiplier for multiplier in multipliers)
    state = UNet(widths, blocks, attended, heads_of_64, time=width, **more).state_dict()
  assert sum(value.numel() for value in state.values()) == number
  tensors = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in state.items()}
  entry = next(entry for entry in FILE_LAYOUTS if entry.recognises(tensors.keys()))
  described = entry.describe(Content(tensors, {}, None, "file"))
  source = Source(entry.layout, described, tensors, {}, "file")
  experiment = experiment_of(source, {}, [])
  network, spec = experiment.sections["model"], described.spec
  num_labels = spec.num_classes + 1 if spec.num_classes else 0
  made = jax.eval_shape(network.create(spec, num_labels).init, jax.random.key(0))
  shapes = {path: leaf.shape for path, leaf in named_leaves(made).items()}
  null = 4 * width if spec.num_classes else 0
  assert sum(map(np.prod, shapes.values())) == number + null
  named = {theirs for pair in entry.layout.pairs(network, shapes) for theirs in pair.theirs}
  assert named == tensors.keys()
  if name == "improved-diffusion CIFAR-10":
    ours, found = load_experiment("iddpm_cifar", ()).to_dict(), experiment.to_dict()
    for section in ("process", "model", "loss", "sampler", "vlb"):
      assert found[section] == ours[section], section
    assert found["generative"]["prediction"] == ours["generative"]["prediction"]


def test_the_wrong_order_of_rows_computes_something_else(tmp_path):
  """So the test above can tell the orders apart; --architecture chooses."""
  _, state, path = stored("adm-64", tmp_path)
  orders = ("guided-diffusion", "guided-diffusion-new-order")
  sources = [open_source(path, architecture=order) for order in orders]
  trees = [parameters_of(source, experiment_of(source, {}, [])) for source in sources]
  old, new = (named_leaves(tree)["middle_attention/query/kernel"] for tree in trees)
  assert (old[:, :64] == new[:, :64]).all()
  assert not (old == new).all()
  rows = state["middle_block.1.qkv.weight"].numpy()
  np.testing.assert_array_equal(new.T, rows[:256, :, 0])
  np.testing.assert_array_equal(old[:, 64:128].T, rows[192:256, :, 0])


def test_the_program_imports_a_file(tmp_path):
  _, state, path = stored("cifar10", tmp_path)
  made = subprocess.run(
    [sys.executable, "-m", "diffusion_jax.import", path, f"--out={tmp_path / 'run'}"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert made.returncode == 0, made.stderr
  number = sum(value.numel() for value in state.values())
  assert f"imported {number:,} parameters (improved-diffusion)" in made.stdout
  assert "process.num_timesteps=4000" in made.stdout
  assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
