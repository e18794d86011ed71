"""Pickles of a network with the names, classes and order of NVlabs' EDM, imported."""

import math
import pickle
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from diffusion_jax.porting.edm_pickle import EDM_PICKLE  # noqa: E402
from diffusion_jax.porting.imported import experiment_of  # noqa: E402
from diffusion_jax.porting.layout import (  # noqa: E402
  Content,
  Source,
  parameters_of,
  tensors_of_parameters,
)
from diffusion_jax.porting.opening import open_source  # noqa: E402
from diffusion_jax.runs.stored import load_experiment  # noqa: E402
from diffusion_jax.types import Condition  # noqa: E402

pytestmark = pytest.mark.reference


def _reconstruct_persistent_obj(meta):
  raise AssertionError("nothing of a pickle is called")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@pytest.fixture(autouse=True)
def torch_utils(monkeypatch):
  """The module whose function NVlabs' pickles name; pickle looks it up when it writes."""
  module = types.ModuleType("torch_utils.persistence")
  module._reconstruct_persistent_obj = _reconstruct_persistent_obj
  monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
  monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


class Persistent:
  """Pickled as NVlabs' persistent objects: the class by its name, with source text."""

  def __reduce__(self):
    meta = {
      "type": "class", "version": 6, "module_src": "raise SystemExit",
      "class_name": type(self).__name__, "state": self.__dict__,
    }  # fmt: skip
    return _reconstruct_persistent_obj, (meta,), None


class Linear(Persistent, nn.Linear):
  pass


class GroupNorm(Persistent, nn.GroupNorm):
  def __init__(self, width, eps=1e-5):
    super().__init__(min(32, width // 4), width, eps)


class Conv2d(Persistent, nn.Module):
  """A convolution beside a filter that doubles or halves; fused: over the filtered border too."""

  def __init__(self, c, out, kernel, resize="", taps=(1, 1), fused=False):
    super().__init__()
    self.resize, self.fused = resize, fused
    convolution = nn.Conv2d(c, out, kernel) if kernel else None
    self.weight = convolution and convolution.weight
    self.bias = convolution and convolution.bias
    taps = torch.tensor(taps, dtype=torch.float32)
    square = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    self.register_buffer("resample_filter", square if resize else None)

  def forward(self, x):
    if self.fused:
      return self.filtered(functional.conv2d(x, self.weight, self.bias, padding=2), padding=0)
    x = self.filtered(x, self.resample_filter.shape[-1] // 2 - 1) if self.resize else x
    if self.weight is None:
      return x
    return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

  def filtered(self, x, padding):
    taps, c = self.resample_filter, x.shape[1]
    if self.resize == "up":
      taps = (4 * taps).repeat(c, 1, 1, 1)
      return functional.conv_transpose2d(x, taps, stride=2, padding=padding, groups=c)
    return functional.conv2d(x, taps.repeat(c, 1, 1, 1), stride=2, padding=padding, groups=c)


class UNetBlock(Persistent, nn.Module):
  def __init__(self, c, out, emb, song, resize="", attention=False, taps=(1, 1)):
    super().__init__()
    self.song, self.in_channels, eps = song, c, 1e-6 if song else 1e-5
    self.scale = math.sqrt(0.5) if song else 1.0
    self.norm0, self.conv0 = GroupNorm(c, eps), Conv2d(c, out, 3, resize, taps)
    self.affine = Linear(emb, out if song else 2 * out)
    self.norm1, self.conv1 = GroupNorm(out, eps), Conv2d(out, out, 3)
    self.skip = None
    if c != out or resize:
      self.skip = Conv2d(c, out, int(song or c != out), resize, taps)
    self.num_heads = (1 if song else out // 64) if attention else 0
    if self.num_heads:
      self.norm2, self.qkv, self.proj = GroupNorm(out, eps), Conv2d(out, 3 * out, 1), None
      self.proj = Conv2d(out, out, 1)

  def forward(self, x, emb):
    h, e = self.conv0(functional.silu(self.norm0(x))), self.affine(emb)[:, :, None, None]
    if self.song:
      h = self.norm1(h + e)
    else:
      scale, shift = e.chunk(2, 1)
      h = self.norm1(h) * (1 + scale) + shift
    h = self.conv1(functional.silu(h))
    x = self.scale * (h + (x if self.skip is None else self.skip(x)))
    if not self.num_heads:
      return x
    b, c, *sides = x.shape
    rows = self.qkv(self.norm2(x)).reshape(b, self.num_heads, c // self.num_heads, 3, -1)
    q, k, v = (rows[:, :, :, i].transpose(2, 3) for i in range(3))
    made = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
    return self.scale * (x + self.proj(made.reshape(b, c, *sides)))


class PositionalEmbedding(Persistent, nn.Module):
  def __init__(self, width, last):
    super().__init__()
    self.width, self.last = width, last

  def forward(self, t):
    half = self.width // 2
    angle = t[:, None] * 10000 ** (-torch.arange(half) / (half - self.last))
    return torch.cat([angle.cos(), angle.sin()], 1)


class FourierEmbedding(Persistent, nn.Module):
  def __init__(self, width):
    super().__init__()
    self.register_buffer("freqs", torch.zeros(width // 2))

  def forward(self, t):
    angle = 2 * math.pi * t[:, None] * self.freqs
    return torch.cat([angle.cos(), angle.sin()], 1)


class _UNet(Persistent, nn.Module):
  def __init__(
    self, side, width, multipliers, blocks, attended, out=3, labels=0, augment=0, fourier=False,
    residual=False, taps=(1, 1), aux=True,
  ):  # fmt: skip
    super().__init__()
    song, emb, noise = type(self) is SongUNet, 4 * width, (2 if fourier else 1) * width
    self.song, self.side = song, side
    self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, song)
    self.map_augment = Linear(augment, noise, bias=False) if augment else None
    self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
    self.map_label = Linear(labels, noise if song else emb, bias=song) if labels else None
    block = lambda *args, **kw: UNetBlock(*args, emb, song, **kw, taps=taps)  # noqa: E731
    self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), [width]
    self.enc[f"{side}x{side}_conv"] = Conv2d(3, width, 3)
    c, aux_width = width, 3
    for level, multiplier in enumerate(multipliers):
      n, here = side >> level, f"{side >> level}x{side >> level}"
      if level:
        self.enc[f"{here}_down"] = block(c, c, resize="down")
        skips.append(c)
        if residual:
          self.enc[f"{here}_aux_residual"] = Conv2d(aux_width, c, 3, "down", taps, fused=True)
          aux_width = c
      for i in range(blocks):
        self.enc[f"{here}_block{i}"] = block(c, width * multiplier, attention=n in attended)
        c = width * multiplier
        skips.append(c)
    for level, multiplier in reversed(list(enumerate(multipliers))):
      n, here = side >> level, f"{side >> level}x{side >> level}"
      if level + 1 == len(multipliers):
        self.dec[f"{here}_in0"] = block(c, c, attention=True)
        self.dec[f"{here}_in1"] = block(c, c)
      else:
        self.dec[f"{here}_up"] = block(c, c, resize="up")
      for i in range(blocks + 1):
        attention = n in attended and (i == blocks or not song)
        args = c + skips.pop(), width * multiplier
        self.dec[f"{here}_block{i}"] = block(*args, attention=attention)
        c = width * multiplier
    if song:
      self.dec[f"{side}x{side}_aux_norm"] = GroupNorm(c, 1e-6)
      self.dec[f"{side}x{side}_aux_conv"] = Conv2d(c, out, 3)
    else:
      self.out_norm, self.out_conv = GroupNorm(c), Conv2d(c, out, 3)

  def forward(self, x, t, labels):
    emb = self.map_noise(t)
    if self.song:
      emb = torch.cat(emb.chunk(2, 1)[::-1], 1)
      if self.map_label is not None:
        emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
    emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
    if not self.song and self.map_label is not None:
      emb = emb + self.map_label(labels)
    emb, skips, image = functional.silu(emb), [], x
    for name, layer in self.enc.items():
      if "aux" in name:
        x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
        continue
      x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
      skips.append(x)
    for name, layer in self.dec.items():
      if "block" in name:
        x = torch.cat([x, skips.pop()], 1)
      x = layer(x, emb) if isinstance(layer, UNetBlock) else x
    if self.song:
      norm, conv = (self.dec[f"{self.side}x{self.side}_aux_{name}"] for name in ("norm", "conv"))
    else:
      norm, conv = self.out_norm, self.out_conv
    return conv(functional.silu(norm(x)))


class SongUNet(_UNet):
  pass


class DhariwalUNet(_UNet):
  pass


class _Precond(Persistent, nn.Module):
  def __init__(self, model, **kwargs):
    super().__init__()
    self.model, self._init_args, self._init_kwargs = model, (), kwargs
    self.img_resolution, self.label_dim = model.side, 0


class EDMPrecond(_Precond):
  sigma_data = 0.5

  def forward(self, x, sigma, labels):
    s, d = sigma[:, None, None, None], self.sigma_data
    out = self.model(x / (s**2 + d**2) ** 0.5, sigma.log() / 4, labels)
    return d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2) ** 0.5 * out


class VPPrecond(_Precond):
  def forward(self, x, sigma, labels):
    s = sigma[:, None, None, None]
    t = ((0.1**2 + 2 * 19.9 * (1 + sigma.double() ** 2).log()).sqrt() - 0.1) / 19.9
    return x - s * self.model(x / (s**2 + 1) ** 0.5, (999 * t).float(), labels)


class iDDPMPrecond(_Precond):
  def __init__(self, model, **kwargs):
    super().__init__(model, **kwargs)
    f = np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
      u[j - 1] = ((u[j] ** 2 + 1) / max(f[j - 1] / f[j], 0.001) - 1) ** 0.5
    self.register_buffer("u", torch.tensor(u, dtype=torch.float32))

  def forward(self, x, sigma, labels):
    s = sigma[:, None, None, None]
    step = 999 - (self.u[None] - sigma[:, None]).abs().argmin(1)
    out = self.model(x / (s**2 + 1) ** 0.5, step.float(), labels)
    return x - s * out[:, :3]


class EDMLoss(Persistent):
  def __init__(self):
    self.P_mean, self.P_std, self.sigma_data = -1.0, 1.3, 0.5


class AugmentPipe(Persistent):
  def __init__(self):
    self.p = 0.12


SONG = {"side": 16, "width": 16, "multipliers": (2, 2), "blocks": 2, "attended": (8,)}
ADM = {"side": 16, "width": 64, "multipliers": (1, 2), "blocks": 1, "attended": (8,)}
NCSNPP = {"fourier": True, "residual": True, "taps": (1, 3, 3, 1)}
CASES = {
  "ddpm++": (EDMPrecond, lambda: SongUNet(**SONG, augment=9)),
  "ncsn++": (EDMPrecond, lambda: SongUNet(**SONG, **NCSNPP, augment=9, labels=5)),
  "adm": (EDMPrecond, lambda: DhariwalUNet(**ADM, labels=5)),
  "vp": (VPPrecond, lambda: SongUNet(**SONG)),
  "iddpm": (iDDPMPrecond, lambda: DhariwalUNet(**ADM, labels=5, out=6)),
}


def stored(name, folder):
  """The preconditioned network with drawn weights, and its snapshot in a file."""
  precond, build = CASES[name]
  network = precond(build(), dropout=0.13, model_type="any").eval()
  generator = torch.Generator().manual_seed(1)
  for key, value in network.state_dict().items():
    if not key.endswith((".resample_filter", "u")):
      near_one = float(value.ndim == 1 and key.endswith("weight"))
      std = 4.0 if key.endswith("freqs") else 0.1
      value.copy_(near_one + std * torch.randn(value.shape, generator=generator))
  data = {"ema": network, "loss_fn": EDMLoss(), "dataset_kwargs": {"path": "cifar10.zip"}}
  data |= {"augment_pipe": AugmentPipe() if "++" in name else None}
  path = folder / f"{name}.pkl"
  path.write_bytes(pickle.dumps(data))
  return network, path


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_denoises_the_same_and_goes_back_bit_by_bit(name, tmp_path):
  network, path = stored(name, tmp_path)
  source = open_source(path)
  experiment = experiment_of(source, {}, [])
  spec = source.described.spec
  params, model = parameters_of(source, experiment), experiment.create(spec)
  rng = np.random.default_rng(0)
  t = np.asarray([0.25, 0.6])
  alpha, sigma = experiment.sections["process"].alpha_sigma(t)
  x = rng.normal(size=(2, 16, 16, 3)) * np.sqrt(0.25 + (sigma / alpha) ** 2)[:, None, None, None]
  y = rng.integers(0, 5, 2) if spec.num_classes else None
  xt = (alpha[:, None, None, None] * x).astype(np.float32)
  found = jax.jit(model.denoise)(params, xt, np.float32(t), Condition(y))
  labels = None if y is None else functional.one_hot(torch.from_numpy(y), 5).float()
  given = torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2))
  with torch.no_grad():
    out = network(given, torch.tensor(sigma / alpha, dtype=torch.float32), labels)
  exact = out.numpy().transpose(0, 2, 3, 1)
  error = np.abs(found - exact).max((1, 2, 3)) / exact.std((1, 2, 3))
  assert error.max() < 1e-4
  config = experiment.sections["model"]
  arrays = tensors_of_parameters(source.layout, params, config, spec.num_classes)
  state = {key: value for key, value in network.state_dict().items() if key != "u"}
  assert arrays.keys() == state.keys()
  for key, value in state.items():
    assert arrays[key].shape == value.shape, key
    assert arrays[key].tobytes() == value.numpy().tobytes(), key


CIFAR = {"side": 32, "width": 128, "multipliers": (2, 2, 2), "blocks": 4, "attended": (16,)}
PUBLISHED = {
  "edm_cifar": (CIFAR | {"augment": 9}, 55_733_891),
  "edm_cifar_cond": (CIFAR | {"augment": 9, "labels": 10}, 55_735_299),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_are_those_of_our_configs(name):
  options, number = PUBLISHED[name]
  with torch.device("meta"):
    network = SongUNet(**options)
  state = {f"model.{key}": value for key, value in network.state_dict().items()}
  assert sum(value.numel() for value in network.parameters()) == number
  tensors = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in state.items()}
  facts = {
    "class_name": "EDMPrecond", "init_kwargs": {"dropout": 0.13}, "modules": {"model": "SongUNet"},
  }  # fmt: skip
  described = EDM_PICKLE.describe(Content(tensors, {"ema": facts}, None, "file"))
  source = Source(described.layout, described, tensors, {}, "file")
  ours, found = load_experiment(name, ()).to_dict(), experiment_of(source, {}, []).to_dict()
  for config in (ours, found):
    del config["generative"]["label_dropout"]  # of an unconditional one it says nothing
  for section in ("generative", "process", "model", "loss", "sampler"):
    assert found[section] == ours[section], section


def test_the_program_imports_a_snapshot_with_its_own_facts(tmp_path):
  _, path = stored("ddpm++", tmp_path)
  made = subprocess.run(
    [sys.executable, "-m", "diffusion_jax.import", path, f"--out={tmp_path / 'run'}"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert made.returncode == 0, made.stderr
  assert "parameters (edm) into" in made.stdout
  config = (tmp_path / "run" / "config.json").read_text()
  for told in ('"log_sigma_mean": -1.0', '"augmentation": 0.12', '"dropout": 0.13'):
    assert told in config
