"""Choose the config of a run from its data, for `train --data=...`, and say why."""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diffusion_jax.checkpoints import store
from diffusion_jax.core.buckets import checkpoint_folder
from diffusion_jax.core.config import Override, build, to_dict
from diffusion_jax.core.field_types import as_text, field_types
from diffusion_jax.core.files import check_file, printable, write_json
from diffusion_jax.data import SOURCES, Source
from diffusion_jax.data.base import Seen
from diffusion_jax.data.finding import find_data
from diffusion_jax.data.tfds import split_fields
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import UserError

CHOSEN = "chosen_config.json"
"""File in a run's folder with the config chosen from its data, before overrides."""

SIZES = (8, 16, 32, 64, 128, 256)
MAX_SIZE = {"cpu": 32, "accelerator": 64}
"""Largest resolution that is chosen automatically, pixels per side."""

MIN_PER_CLASS = 5
"""Least mean number of images per class for which labels are used."""

MIN_HELD_OUT = 20
"""Least number of images of which some are held out."""

MAX_HELD_OUT = 5000
MANY_IMAGES = 10_000
"""Least number of images for which the network has no dropout."""

MAX_ATTENTION = 16
"""Largest side, in pixels, at which attention is chosen."""

MIN_COLUMNS = 2
MAX_ROWS = 30
"""Largest number of classes in the table."""

RECIPE: Mapping[str, Mapping[str, Any]] = {
  "generative": {"name": "diffusion", "prediction": "edm", "sigma_data": 0.5},
  "process": {"name": "edm"},
  "model": {"name": "unet"},
  "loss": {"name": "edm", "sigma_data": 0.5},
  "sampler": {"name": "heun", "steps": 18},
  "optimizer": {"name": "adam", "schedule": "cosine"},
  "ema": {"warmup": True},
}
"""EDM (Karras et al. 2022), the part that does not depend on the data."""


class Choice(NamedTuple):
  """A field that depends on the data.

  Attributes:
    section, field: name of the field in a config.
    value: value chosen for it.
    reason: reason in a few words.
  """

  section: str
  field: str
  value: Any
  reason: str


Given = Mapping[tuple[str, str], Any]
"""(section, field) -> value that the user has set."""


class Chosen(NamedTuple):
  """A config chosen for a data set.

  Attributes:
    raw: section -> fields, as in a config file.
    choices: the fields that depend on the data, with reasons.
    is_stored: True if it was chosen at an earlier start of the run.
  """

  raw: dict[str, dict[str, Any]]
  choices: tuple[Choice, ...]
  is_stored: bool = False


def recipe_of(text: str) -> dict[str, dict[str, Any]]:
  """Return the config as known before the data are read, to check flags early.

  Raises:
    UserError: there are no such data.
  """
  return {name: dict(section) for name, section in RECIPE.items()} | {"data": find_data(text)}


def stored_choice(workdir: Path, section: Mapping[str, Any]) -> Chosen | None:
  """Return the config chosen when the run in a folder began, or None.

  Data at another path may be the same ones, moved; the run compares their content.
  """
  if not store.saved_steps(checkpoint_folder(workdir)):
    return None
  try:
    found = json.loads((workdir / CHOSEN).read_text())
    choices = tuple(Choice(*choice) for choice in found["choices"])
    stored = found["config"]
  except (OSError, ValueError, KeyError, TypeError):
    return None
  same = all(stored["data"].get(key) == value for key, value in section.items() if key != "path")
  return Chosen({**stored, "data": {**stored["data"], **section}}, choices, True) if same else None


def store_choice(workdir: Path, chosen: Chosen) -> None:
  """Write the chosen config into the run's folder, from which the same command continues.

  The choice of a run that has begun stays: other data may be refused yet.
  """
  if not chosen.is_stored and not store.saved_steps(checkpoint_folder(workdir)):
    write_json(workdir / CHOSEN, {"config": chosen.raw, "choices": chosen.choices})


def choose_config(
  text: str, platform: str, num_devices: int, given: Given = MappingProxyType({})
) -> Chosen:
  """Look at the data and choose a config.

  Args:
    text: the value of --data.
    platform: kind of device, "cpu" or an accelerator.
    num_devices: number of devices that share a batch.
    given: the user's own fields, which the choices of other fields follow.

  Raises:
    UserError: the data cannot be read.
  """
  raw = recipe_of(text)
  section = raw["data"]
  if section["name"] == "tfds":
    section |= split_fields(section["dataset"])
  cls = SOURCES.find(section["name"], "--data")
  tolerant = {"unreadable": "skip"} if "unreadable" in field_types(cls) else {}
  own = {field: value for (name, field), value in given.items() if name == "data"}
  data: Any = build(SOURCES, section | tolerant | own, "data")
  seen: Seen = data.look()
  if not seen.sizes:
    raise UserError(f"`data={printable(text)}`: none of its pictures can be read")
  device = "cpu" if platform == "cpu" else "accelerator"
  size, reason = choose_size(seen, device)
  size = given.get(("data", "image_size"), size)
  height, width = (size, size) if size else seen.sizes[0]
  choices = [
    *_data_choices(data, seen, size, reason),
    *_model_choices(height, width, seen, device, given),
    *_training_choices(max(height, width), seen, device, num_devices, given),
  ]
  for choice in choices:
    raw.setdefault(choice.section, {})[choice.field] = choice.value
  return Chosen(raw, tuple(choices))


def choose_size(seen: Seen, device: str) -> tuple[int | None, str]:
  """Return the side to which images are resized, None to leave them as they are, and why."""
  sizes, limit = set(seen.sizes), MAX_SIZE[device]
  (height, width), *others = sizes
  if not seen.resizable:
    return None, f"all images are {width}x{height}"
  if not others and height == width and height <= limit and height % 4 == 0:
    return None, f"all pictures are {width}x{height}"
  shorter = sorted(min(size) for size in seen.sizes)
  tenth = shorter[len(shorter) // 10]
  size = max([one for one in SIZES if one <= min(tenth, limit)], default=SIZES[0])
  fraction = sum(side >= size for side in shorter) / len(shorter)
  reason = f"{_sides(shorter[0], shorter[-1])}, {fraction:.0%} at least {size}"
  if tenth > limit:
    kind = "a CPU" if device == "cpu" else "this recipe"
    reason += f", and more than {limit} is slow on {kind}"
  return size, reason


def _sides(least: int, most: int) -> str:
  if least < most:
    return f"shorter sides are {least:,} to {most:,} pixels"
  return f"the shorter side is always {least:,} {'pixel' if least == 1 else 'pixels'}"


def _data_choices(data: Any, seen: Seen, size: int | None, reason: str) -> list[Choice]:
  fields, num_images = field_types(type(data)), seen.num_images
  values: dict[str, tuple[Any, str]] = {}
  if seen.resizable:
    values["image_size"] = (size, reason)
    colour = "all pictures are grey" if seen.is_grey else "there are pictures in colour"
    values["channels"] = (1 if seen.is_grey else 3, colour)
    values["unreadable"] = ("skip", "a damaged picture does not stop the run")
    values["draft"] = (True, "large JPEGs are decoded several times faster")
  if not seen.is_grey:
    values["flip"] = (True, "mirrored photographs are photographs; false for text")
  if not data.has_split("test") and num_images >= MIN_HELD_OUT:
    fraction = _held_out_fraction(num_images)
    why = f"there is no test split; {fraction:.2%} of {num_images:,} are held out".replace(
      ".00%", "%"
    )
    values["test_fraction"] = (fraction, why)
  return [Choice("data", n, v, why) for n, (v, why) in values.items() if n in fields]


def _held_out_fraction(num_images: int) -> float:
  """Return a tenth, or the fraction of one digit that holds out at most MAX_HELD_OUT."""
  fraction = min(0.1, MAX_HELD_OUT / num_images)
  digit = 10.0 ** math.floor(math.log10(fraction) + 1e-9)
  return round(math.floor(fraction / digit + 1e-9) * digit, 9)


def _model_choices(height: int, width: int, seen: Seen, device: str, given: Given) -> list[Choice]:
  is_small, num_images = device == "cpu", seen.num_images
  multipliers = given.get(("model", "multipliers")) or _multipliers(height, width)
  lowest = min(height, width) // 2 ** (len(multipliers) - 1)
  channels = 32 if is_small else 64 if num_images < MANY_IMAGES else 128
  why = "small, for a CPU" if is_small else f"for {num_images:,} images"
  attention = (lowest,) if lowest <= MAX_ATTENTION else ()
  choices = [
    Choice("model", "channels", channels, why),
    Choice("model", "multipliers", multipliers, f"{height}x{width} is halved to {lowest}"),
    Choice("model", "num_blocks", 1 if is_small else 2, why),
    Choice("model", "attention_resolutions", attention, "attention where it is cheap"),
  ]
  if num_images < MANY_IMAGES:
    choices.append(Choice("model", "dropout", 0.1, f"{num_images:,} images are soon memorised"))
  return [*choices, *_label_choices(seen, given.get(("generative", "conditional")))]


def _multipliers(height: int, width: int) -> tuple[int, ...]:
  """Return the width of each level: as many as halve both sides, down to about 8 pixels."""
  levels = 1
  while (
    levels < 4
    and height % 2**levels == width % 2**levels == 0
    and min(height, width) // 2**levels >= 4
    and max(height, width) // 2 ** (levels - 1) > 8 - 4 * (levels == 1)
  ):
    levels += 1
  return (1, 2, 2, 2)[:levels]


def _label_choices(seen: Seen, wanted: bool | None = None) -> list[Choice]:
  num_classes, num_images = seen.num_classes, seen.num_images
  if num_classes < 2:
    return [Choice("generative", "conditional", False, "there are no classes")]
  if wanted is False:
    return [Choice("generative", "conditional", False, "labels are not used")]
  if num_images < MIN_PER_CLASS * num_classes and not wanted:
    why = f"{num_classes:,} classes of {num_images / num_classes:.1f} images are too small to learn"
    return [Choice("generative", "conditional", False, why)]
  return [
    Choice("generative", "conditional", True, f"{num_classes:,} classes"),
    Choice("guidance", "weight", 2.0, "samples show their class more clearly"),
  ]


def _training_choices(
  side: int, seen: Seen, device: str, num_devices: int, given: Given
) -> list[Choice]:
  is_small = device == "cpu"
  num_train = max(1, seen.num_images - round(0.1 * seen.num_images))
  most = (64 if side <= 8 else 32) if is_small else 128
  batch = min(most, 2 ** math.floor(math.log2(num_train)))
  batch = -(-batch // num_devices) * num_devices
  steps = (1000 if side <= 8 else 2000) if is_small else 100_000
  if not is_small and seen.num_images < MANY_IMAGES:
    steps = 50_000
  steps = given.get(("training", "num_steps"), steps)
  rate = (2e-3 if side <= 8 else 1e-3) if is_small else 3e-4
  why = "a first result on a CPU; more steps, better pictures" if is_small else "a full training"
  classes = seen.num_classes if MIN_COLUMNS <= seen.num_classes <= 16 else 8
  every = max(50, steps // 8)
  return [
    Choice("training", "num_steps", steps, why),
    Choice(
      "training", "batch_size", batch, f"for {num_devices} x {device} and {num_train:,} images"
    ),
    Choice("optimizer", "learning_rate", rate, "usual for a network of this size"),
    Choice("optimizer", "warmup_steps", steps // 20, "a twentieth of the steps"),
    Choice("ema", "decay", 0.995 if is_small else 0.9998, f"averages part of {steps:,} steps"),
    Choice("checkpoint", "every_steps", every, "eight times"),
    Choice("logging", "every_steps", max(10, steps // 100), "a hundred times"),
    Choice("logging", "sample_every_steps", every, "eight times"),
    Choice("logging", "num_samples", 8 * classes, "eight rows"),
  ]


def describe_choice(chosen: Chosen, overrides: Sequence[Override]) -> str:
  """Return the lines that say what was chosen and why."""
  mine = {(o.section, o.field): o.text for o in overrides}
  replaced = {o.section for o in overrides if o.field == "name"}
  shown = [c for c in chosen.choices if c.section not in replaced]
  names = [f"{c.section}.{c.field}" for c in shown]
  texts = [mine.get((c.section, c.field), as_text(c.value)) for c in shown]
  name_width, text_width = max(map(len, names)), max(map(len, texts))
  lines = [
    f"  {name:{name_width}}  {text:{text_width}}  "
    f"{'set by you' if (c.section, c.field) in mine else c.reason}"
    for name, text, c in zip(names, texts, shown, strict=True)
  ]
  begun = "chosen when this run began" if chosen.is_stored else "chosen for these data"
  return "\n".join(
    [f"config {begun}, on the recipe of EDM (Karras et al. 2022):", *lines,
     "  change any by --config.SECTION.FIELD=VALUE; --save_config=mine.py writes all as a file"]
  )  # fmt: skip


def class_table(train: Source, test: Source | None) -> str:
  """Return a table of class names with their numbers of images; "" for unlabelled data."""
  about, num_classes = train.about, train.spec.num_classes
  if not num_classes or about.counts is None:
    return ""
  names = [printable(name) for name in about.classes] or [str(i) for i in range(num_classes)]
  held_out = test.about.counts if test is not None else None
  held_out = [0] * num_classes if held_out is None else held_out
  rows = list(zip(names, about.counts, held_out, strict=True))
  shown = rows[:MAX_ROWS]
  width = max(5, *(_columns(name) for name, _, _ in shown))
  lines = [f"  {'class'}{' ' * (width - 5)}  training  held out"]
  lines += [
    f"  {name}{' ' * (width - _columns(name))}  {num:8,}  {other:8,}" for name, num, other in shown
  ]
  if rows[MAX_ROWS:]:
    rest = rows[MAX_ROWS:]
    num, other = sum(row[1] for row in rest), sum(row[2] for row in rest)
    lines.append(f"  and {len(rows) - MAX_ROWS:,} more classes with {num:,} and {other:,} images")
  return "\n".join(lines)


def _columns(text: str) -> int:
  """Return the columns that a text takes on a terminal, where some characters take two."""
  return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def check_config_target(path: Path, content: str) -> None:
  """Raise a UserError if a file of other content, or a folder, is in the way."""
  check_file(path, "--save_config")
  if path.suffix != ".py":
    raise UserError(f"--save_config={path}: must end in .py, e.g. mine.py")
  if path.exists() and path.read_bytes() != content.encode():
    raise UserError(
      f"--save_config={path} exists with other content; train it with --config={path}, or choose "
      "another name"
    )


def config_source(experiment: Experiment, chosen: Chosen, text: str) -> str:
  """Return the text of a config file that gives the same run."""
  reasons = {(c.section, c.field): (c.value, c.reason) for c in chosen.choices}
  lines = []
  for name, section in experiment.layout.items():
    fields = to_dict(experiment.sections[name], section)
    cls = type(experiment.sections[name])
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    own = {n: v for n, v in fields.items() if n == "name" or defaults.get(n, _UNSET) != v}
    if not own:
      continue
    lines.append(f'      "{name}": {{')
    for field, value in own.items():
      chosen_value, reason = reasons.get((name, field), (_UNSET, ""))
      if value == chosen_value:
        lines.append(f"        # {printable(reason)}")
      lines.append(f'        "{field}": {value!r},')
    lines.append("      },")
  body = "\n".join(lines)
  return FILE.format(name=printable(text).replace("\\", "/").replace('"', "'"), body=body)


_UNSET = object()

FILE = '''"""Config chosen for {name} by `diffusion-jax train --data`: edit it and train it.

Command:  diffusion-jax train --config=THIS_FILE
Fields that are not here have their defaults: diffusion-jax options lists them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  return ConfigDict(
    {{
{body}
    }}
  )
'''
