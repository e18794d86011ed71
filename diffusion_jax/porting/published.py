"""Published checkpoints: their addresses, settings and figures.

Sizes are approximate, 0 where none was found. Where a checksum is confirmed it is compared, else
`import` records that of what it read. The figures are as published and from no run of ours.
"""

from typing import NamedTuple

from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.types import UserError


class Figure(NamedTuple):
  """A published figure and the measurement that repeats it.

  Attributes:
    name: "fid", or the name of a likelihood of `evaluate`.
    value: the published value; bits/dim for likelihoods.
    num: images of its protocol: samples, or images of a likelihood; None: all of the split.
    overrides: fields of `evaluate` for its protocol, as "section.field=value".
    protocol: words on how it was measured.
    reference: paper or page, with the table.
  """

  name: str
  value: float
  num: int | None
  overrides: tuple[str, ...]
  protocol: str
  reference: str


class Published(NamedTuple):
  """A published checkpoint.

  Attributes:
    name: name in the commands.
    address: SOURCE of `import`.
    megabytes: approximate size of what is downloaded; 0: not known.
    licence: licence of the weights.
    data: name of the data set in the figures' protocol, of tensorflow-datasets.
    config: shipped config that supplies data and training; None: `overrides` do.
    image_size: side of the images, pixels.
    overrides: fields that the file does not tell, as "section.field=value".
    figures: published figures, the first by default.
    note: what else must be known; "" for nothing.
    sha256: confirmed checksum of a single file; None: none is published.
    autoencoder: SOURCE of the autoencoder of a network of latents; None: it has none, or its own.
    architecture: layout, where the file's tensors leave it open; None: they tell it.
  """

  name: str
  address: str
  megabytes: int
  licence: str
  data: str
  config: str | None
  image_size: int
  overrides: tuple[str, ...]
  figures: tuple[Figure, ...]
  note: str = ""
  sha256: str | None = None
  architecture: str | None = None
  autoencoder: str | None = None


ONLY_FID = (
  "eval.metrics=fid", "eval.likelihoods=none", "eval.spectrum_images=0", "eval.num_seeds=3",
  "eval.num_samples=50000",
)  # fmt: skip


def _bits(name: str, *overrides: str) -> tuple[str, ...]:
  return (
    f"eval.likelihoods={name}", "eval.metrics=none", "eval.spectrum_images=0",
    "eval.num_samples=64", *overrides,
  )  # fmt: skip


def _fid(value: float, reference: str, *overrides: str, words: str = "") -> Figure:
  protocol = "50,000 samples against all training images" + (f"; {words}" if words else "")
  return Figure("fid", value, 50_000, (*ONLY_FID, *overrides), protocol, reference)


OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/"
NVLABS = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
DRIVE = "https://drive.google.com/drive/folders/"

DDPM = "Ho et al. 2020 (arXiv 2006.11239), table 1"
IDDPM = "Nichol and Dhariwal 2021 (arXiv 2102.09672)"
ADM = "Dhariwal and Nichol 2021 (arXiv 2105.05233), table 5"
EDM = "Karras et al. 2022 (arXiv 2206.00364), table 2"
SCORE_SDE = "Song et al. 2021 (arXiv 2011.13456), table 2"

DIT = "Peebles and Xie 2023 (arXiv 2212.09748), table 2"
SIT = "README of willisma/SiT; Ma et al. 2024 (arXiv 2401.08740)"

IMAGENET_256 = "ImageNet's training images at 256x256"
MINIMUM = "the least of three sets"
ADMS_STATISTICS = "with the statistics of ADM's evaluator; --reference of evaluate takes its file"
SUB_VP = ("process.name=sub_vp", "process.min_time=1e-5")


def _iddpm(name: str, file: str, loss: str, fid: float, bits: float, table: str) -> Published:
  figures = (
    Figure("vlb", bits, None, _bits("vlb"), "all 4,000 terms on the 10,000 test images", table),
    _fid(fid, table),
  )
  overrides = (f"loss.name={loss}",)
  return Published(
    name, f"{OPENAI}march-2021/{file}", 210, "MIT", "cifar10", "iddpm_cifar", 32, overrides, figures
  )


def _edm(name: str, file: str, config: str, fid: float) -> Published:
  figures = (_fid(fid, EDM, words=MINIMUM),)
  return Published(
    name, f"{NVLABS}{file}", 225, "CC BY-NC-SA 4.0", "cifar10", config, 32, (), figures
  )


def _score_sde(name: str, folder: str, bits: float, overrides: tuple[str, ...] = ()) -> Published:
  protocol = "the ODE from 1e-5 on, RK45 at 1e-5, one probe, uniform dequantisation, test images"
  figures = (
    Figure("probability_flow", bits, None, _bits("probability_flow"), protocol, SCORE_SDE),
  )
  note = "take the last checkpoint of the folder; the earlier one has the best FID"
  return Published(
    name, f"{DRIVE}{folder}", 0, "Apache-2.0", "cifar10", "flow_cifar", 32, overrides, figures, note
  )


PUBLISHED: tuple[Published, ...] = (
  Published(
    "vdm-cifar10", "gs://gresearch/vdm/cifar10/checkpoint-final/checkpoints-0", 0, "Apache-2.0",
    "cifar10", "vdm_cifar", 32, (),
    (
      Figure(
        "continuous_vlb", 2.637, None, _bits("continuous_vlb"),
        "100 random batches of 128 test images, one time each, no error given",
        "README of google-research/vdm; Kingma et al. 2021 (arXiv 2107.00630): 2.65",
      ),
    ),
  ),
  Published(
    "vdm-cifar10-aug", "gs://gresearch/vdm/cifar10/aug-checkpoint-final/checkpoints-0", 0,
    "Apache-2.0", "cifar10", "vdm_cifar", 32, ("model.dropout=0.05",),
    (
      Figure(
        "continuous_vlb", 2.522, None, _bits("continuous_vlb"),
        "100 random batches of 128 test images, one time each, no error given",
        "README of google-research/vdm; Kingma et al. 2021 (arXiv 2107.00630): 2.49",
      ),
    ),
  ),
  Published(
    "ddpm-cifar10", "hf:google/ddpm-cifar10-32", 143, "Apache-2.0", "cifar10", "ddpm_cifar", 32, (),
    (
      _fid(3.17, DDPM, words="the least of the checkpoints of its training"),
      Figure(
        "vlb", 3.75, None, _bits("vlb"), "bound on the 10,000 test images, at most; one draw", DDPM
      ),
    ),
  ),
  _iddpm(
    "iddpm-cifar10-hybrid", "cifar10_uncond_50M_500K.pt", "hybrid", 3.19, 3.17, f"{IDDPM}, table 2"
  ),
  _iddpm(
    "iddpm-cifar10-vlb", "cifar10_uncond_vlb_50M_500K.pt", "vlb", 11.47, 2.94, f"{IDDPM}, table 2"
  ),
  Published(
    "iddpm-imagenet64-vlb", f"{OPENAI}march-2021/imagenet64_uncond_vlb_100M_1500K.pt", 484, "MIT",
    "imagenet_resized/64x64", "dit_imagenet64", 64, ("loss.name=vlb",),
    (
      Figure(
        "vlb", 3.53, None, _bits("vlb"), "all 4,000 terms on the 50,000 validation images",
        f"{IDDPM}, table 3",
      ),
    ),
  ),
  Published(
    "adm-imagenet64", f"{OPENAI}jul-2021/64x64_diffusion.pt", 1184, "MIT; for research only",
    "imagenet_resized/64x64", "dit_imagenet64", 64, (),
    (_fid(2.07, ADM, words=ADMS_STATISTICS),),
  ),
  Published(
    "adm-imagenet256", f"{OPENAI}jul-2021/256x256_diffusion.pt", 2216, "MIT; for research only",
    IMAGENET_256, None, 256, (),
    (_fid(10.94, ADM, words=f"without guidance by a classifier; {ADMS_STATISTICS}"),),
  ),
  _edm("edm-cifar10-uncond-vp", "edm-cifar10-32x32-uncond-vp.pkl", "edm_cifar", 1.97),
  _edm("edm-cifar10-uncond-ve", "edm-cifar10-32x32-uncond-ve.pkl", "edm_cifar", 1.98),
  _edm("edm-cifar10-cond-vp", "edm-cifar10-32x32-cond-vp.pkl", "edm_cifar_cond", 1.79),
  _edm("edm-cifar10-cond-ve", "edm-cifar10-32x32-cond-ve.pkl", "edm_cifar_cond", 1.79),
  Published(
    "edm-imagenet64", f"{NVLABS}edm-imagenet-64x64-cond-adm.pkl", 1184, "CC BY-NC-SA 4.0",
    "imagenet_resized/64x64", "dit_imagenet64", 64, (),
    (
      _fid(
        1.36, "Karras et al. 2022 (arXiv 2206.00364), figure 5",
        words=f"{MINIMUM}; 511 evaluations with churn; statistics of edm/fid-refs",
      ),
    ),
  ),
  _score_sde("score-sde-ddpm", "1zDKcy3xbsN3F4AfyB_DfY_1oho89iKcf", 3.28),
  _score_sde("score-sde-ddpmpp", "1xYjVMx10N9ivQQBIsEoXEeu9nvSGTBrC", 3.16),
  _score_sde("score-sde-ddpmpp-deep", "1ZMLBiu9j7-rpdTQu8M2LlHAEQq4xRYrj", 3.13),
  _score_sde("score-sde-ddpmpp-deep-subvp", "16QGkviGcizSbIPRk37-YksUhlNIna4Ys", 2.99, SUB_VP),
  Published(
    "dit-xl-2-256", "hf:facebook/DiT-XL-2-256", 2700, "CC BY-NC 4.0", IMAGENET_256, None, 256,
    ("model.frequency_shift=0", "guidance.weight=1.5"),
    (_fid(2.27, DIT, words=f"250 steps, guidance 1.5 on three channels; {ADMS_STATISTICS}"),),
    "diffusers' own config has frequency_shift=1; the original was trained with 0",
  ),
  Published(
    "sit-xl-2-256",
    "https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt"
    "?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0",
    2700, "MIT", IMAGENET_256, None, 256, ("guidance.weight=1.5",),
    (_fid(2.06, SIT, words=f"guidance 1.5, its SDE sampler; {ADMS_STATISTICS}"),),
    "the SDE sampler of the published figure is not here: the import sets its ODE",
    architecture="SiT", autoencoder="hf:stabilityai/sd-vae-ft-ema",
  ),
)  # fmt: skip


def find_published(name: str) -> Published:
  """Return the checkpoint of a name.

  Raises:
    UserError: there is none; the message names the nearest.
  """
  known = {entry.name: entry for entry in PUBLISHED}
  if name not in known:
    hint = spelling_hint(name, known)
    raise UserError(f"{name}: no such file, folder or published checkpoint.{hint}")
  return known[name]


def address_of(entry: Published) -> str:
  """Return the SOURCE from which a checkpoint is imported.

  Raises:
    UserError: it can only be downloaded in a browser.
  """
  if entry.address.startswith(DRIVE):
    note = f" ({entry.note})" if entry.note else ""
    raise UserError(
      f"{entry.name} is on a page for browsers: download it from {entry.address}{note}, then "
      f"import FILE --like={entry.name}"
    )
  return entry.address
