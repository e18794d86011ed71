"""The peers in torch: networks of diffusers and lucidrains, with Adam and an average."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import protocol

try:
  import torch
except ModuleNotFoundError:
  sys.exit(
    "no torch here: pip install -e '.[bench]', or --peer_python=PYTHON of where the peers are"
  )

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
  options = protocol.options()
  torch.manual_seed(0)
  torch.backends.cudnn.benchmark = True
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  if options["work"] == "sample":
    (net, work), more = sampler(options), {"evaluations": options["steps"]}
  else:
    (net, work), more = trainer(options), {}
  begun = time.perf_counter()
  work(2)  # torch.compile compiles and cuDNN chooses here
  seconds = time.perf_counter() - begun
  more["parameters"] = sum(p.numel() for p in net.parameters())
  ready = {"device": DEVICE, "threads": torch.get_num_threads(), "compile_sec": seconds, **more}
  protocol.serve(ready, work, peak)


def network(options: dict[str, Any]) -> Callable[..., Any]:
  """DDPM's network for 32x32 images: diffusers' has its 35,746,307 parameters."""
  from diffusers import UNet2DModel

  width = options["shape"]["channels"]
  net = UNet2DModel(
    sample_size=32, block_out_channels=(width, 2 * width, 2 * width, 2 * width),
    layers_per_block=2, dropout=0.1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    norm_eps=1e-6, norm_num_groups=32,
  )  # fmt: skip
  return placed(net, options)


def transformer(options: dict[str, Any]) -> torch.nn.Module:
  """DiT, with one embedding of time and class: diffusers' own has an equal one in each block."""
  from diffusers import DiTTransformer2DModel

  shape, (height, _, channels) = options["shape"], options["image"]
  net = DiTTransformer2DModel(
    num_attention_heads=shape["heads"], attention_head_dim=shape["hidden"] // shape["heads"],
    in_channels=channels, num_layers=shape["depth"], sample_size=height, patch_size=shape["patch"],
    num_embeds_ada_norm=options["classes"], norm_eps=1e-6,
  )  # fmt: skip
  first, *others = net.transformer_blocks
  for block in others:
    block.norm1.emb = first.norm1.emb
  if options["remat"]:
    net.enable_gradient_checkpointing()
  return net.to(DEVICE)


def placed(net: torch.nn.Module, options: dict[str, Any]) -> torch.nn.Module:
  layout = torch.channels_last if options.get("channels_last") else torch.contiguous_format
  return net.to(DEVICE, memory_format=layout)


def precision(options: dict[str, Any]) -> Any:
  if options.get("dtype") != "bfloat16":
    return contextlib.nullcontext()
  return torch.autocast(DEVICE, torch.bfloat16)


def trainer(options: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[int], None]]:
  kind = {"diffusers": diffusers_loss, "lucidrains": lucidrains_loss}[options["peer"]]
  net, loss, average = kind(options)
  parameters = [p for p in net.parameters() if p.requires_grad]
  fused = DEVICE == "cuda" or None
  optimizer = torch.optim.Adam(parameters, lr=options["learning_rate"], fused=fused)
  height, width, channels = options["image"]
  images = torch.rand(options["batch_size"], channels, height, width, device=DEVICE)
  if options.get("channels_last"):
    images = images.to(memory_format=torch.channels_last)

  def work(times: int) -> None:
    for _ in range(times):
      value = loss(images)
      optimizer.zero_grad(set_to_none=True)
      value.backward()
      if options["clip_norm"] is not None:
        torch.nn.utils.clip_grad_norm_(parameters, options["clip_norm"])
      optimizer.step()
      average()
    synchronize()

  return net, work


def diffusers_loss(options: dict[str, Any]) -> tuple[Any, Callable, Callable]:
  from diffusers.training_utils import EMAModel

  is_unet = "channels" in options["shape"]
  net = (network if is_unet else transformer)(options).train()
  average = EMAModel(net.parameters(), decay=0.9999, foreach=True)
  forward = torch.compile(net) if options.get("compile") else net
  loss = noise_loss(forward, options) if is_unet else velocity_loss(forward, options)
  return net, loss, lambda: average.step(net.parameters())


def noise_loss(forward: Callable, options: dict[str, Any]) -> Callable:
  """The noise's error at DDPM's times."""
  from diffusers import DDPMScheduler

  scheduler = DDPMScheduler(num_train_timesteps=1000)

  def loss(images: torch.Tensor) -> torch.Tensor:
    times = torch.randint(0, 1000, (len(images),), device=DEVICE)
    images = images * 2 - 1
    noise = torch.randn_like(images)
    noisy = scheduler.add_noise(images, noise, times)
    with precision(options):
      predicted = forward(noisy, times, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), noise)

  return loss


def velocity_loss(forward: Callable, options: dict[str, Any]) -> Callable:
  """The velocity's error on straight paths from images to noise, given the class."""
  labels = torch.arange(options["batch_size"], device=DEVICE) % options["classes"]

  def loss(images: torch.Tensor) -> torch.Tensor:
    times = torch.rand(len(images), device=DEVICE)
    images = images * 2 - 1
    noise = torch.randn_like(images)
    part = times[:, None, None, None]
    with precision(options):
      predicted = forward((1 - part) * images + part * noise, times, labels, return_dict=False)[0]
    return torch.nn.functional.mse_loss(predicted.float(), noise - images)

  return loss


def lucidrains_loss(options: dict[str, Any]) -> tuple[Any, Callable, Callable]:
  """Its own U-Net of the same width: linear attention above 4x4, weight-standardised or not."""
  from denoising_diffusion_pytorch import GaussianDiffusion, Unet
  from ema_pytorch import EMA

  net = placed(Unet(dim=options["shape"]["channels"], dim_mults=(1, 2, 2, 2), dropout=0.1), options)
  diffusion = GaussianDiffusion(net, image_size=32, timesteps=1000).to(DEVICE).train()
  average = EMA(diffusion, beta=0.9999, update_every=1)
  forward = torch.compile(diffusion) if options.get("compile") else diffusion

  def loss(images: torch.Tensor) -> torch.Tensor:
    with precision(options):
      return forward(images)

  return diffusion, loss, average.update


def sampler(options: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[int], None]]:
  """diffusers' DDPM ancestral sampling, with as many evaluations as ours."""
  from diffusers import DDPMScheduler

  net = network(options).eval()
  scheduler = DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large")
  scheduler.set_timesteps(options["steps"])
  forward = torch.compile(net) if options.get("compile") else net

  def once() -> None:
    x = torch.randn(options["batch_size"], 3, 32, 32, device=DEVICE)
    if options.get("channels_last"):
      x = x.to(memory_format=torch.channels_last)
    for time_step in scheduler.timesteps:
      with precision(options):
        predicted = forward(x, time_step.to(DEVICE), return_dict=False)[0]
      x = scheduler.step(predicted.float(), time_step, x).prev_sample

  def work(times: int) -> None:
    with torch.no_grad():
      for _ in range(times):
        once()
    synchronize()

  return net, work


def synchronize() -> None:
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def peak() -> dict[str, Any]:
  if DEVICE == "cuda":
    return {"peak_bytes": torch.cuda.max_memory_allocated()}
  return {"peak_bytes": protocol.resident_bytes()}


if __name__ == "__main__":
  main()
