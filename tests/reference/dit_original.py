"""The transformer of facebookresearch/DiT and willisma/SiT in PyTorch, in the tests' own words.

The names of its parameters are those of the published files. Source: Peebles and Xie 2023 (arXiv
2212.09748), section 3.2; Ma et al. 2024 (arXiv 2401.08740).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Patches(nn.Module):
  def __init__(self, channels, patch, width):
    super().__init__()
    self.proj = nn.Conv2d(channels, width, patch, patch)

  def forward(self, x):
    return self.proj(x).flatten(2).mT


class Times(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

  def forward(self, t):
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return self.mlp(torch.cat([angles.cos(), angles.sin()], 1))


class Labels(nn.Module):
  def __init__(self, rows, width):
    super().__init__()
    self.embedding_table = nn.Embedding(rows, width)


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

  def forward(self, x):
    batch, tokens, width = x.shape
    apart = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(*apart)
    return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Hidden(nn.Module):
  def __init__(self, width, ratio):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def normed(x, shift, scale):
  return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
  def __init__(self, width, heads, ratio):
    super().__init__()
    self.attn, self.mlp = Attention(width, heads), Hidden(width, ratio)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

  def forward(self, x, c):
    a, b, gate, d, e, last = self.adaLN_modulation(c).chunk(6, 1)
    x = x + gate[:, None] * self.attn(normed(x, a, b))
    return x + last[:, None] * self.mlp(normed(x, d, e))


class Final(nn.Module):
  def __init__(self, width, outputs):
    super().__init__()
    self.linear = nn.Linear(width, outputs)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

  def forward(self, x, c):
    return self.linear(normed(x, *self.adaLN_modulation(c).chunk(2, 1)))


class Transformer(nn.Module):
  """Called with images [B C H W], times and labels [B]; drops variances if `is_sit`."""

  def __init__(self, side, patch, channels, width, depth, heads, ratio, rows, doubled, is_sit):
    super().__init__()
    self.patch, self.channels, self.is_sit = patch, channels, is_sit
    self.out = channels * (1 + doubled)
    self.x_embedder, self.t_embedder = Patches(channels, patch, width), Times(width)
    self.y_embedder = Labels(rows, width)
    grid = side // patch
    self.pos_embed = nn.Parameter(positions(grid, width)[None], requires_grad=False)
    self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
    self.final_layer = Final(width, patch**2 * self.out)

  def forward(self, x, t, y):
    batch, _, height, width = x.shape
    h = self.x_embedder(x) + self.pos_embed
    c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
    for block in self.blocks:
      h = block(h, c)
    h = self.final_layer(h, c)
    p = self.patch
    h = h.reshape(batch, height // p, width // p, p, p, self.out).permute(0, 5, 1, 3, 2, 4)
    h = h.reshape(batch, self.out, height, width)
    return h[:, : self.channels] if self.is_sit else h


def positions(grid, width):
  """Sines and cosines of the column, then of the row, in double precision."""
  frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
  rows, columns = torch.meshgrid(*[torch.arange(grid, dtype=torch.float64)] * 2, indexing="ij")
  waves = []
  for place in (columns, rows):
    angles = place.reshape(-1, 1) * frequencies
    waves += [angles.sin(), angles.cos()]
  return torch.cat(waves, 1).float()


def drawn(seed=0, **fields):
  """A transformer with random weights in every layer, in evaluation mode."""
  torch.manual_seed(seed)
  network = Transformer(**fields).eval()
  with torch.no_grad():
    for name, value in network.named_parameters():
      if name != "pos_embed":
        value.normal_(0, 0.2 if value.ndim < 4 else 0.3)
  return network
