"""Find the image shape and classes of a config without its data set."""

import re

from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

STANDARD = {
  "cifar10": ImageSpec(32, 32, 3, 256, 10),
  "cifar100": ImageSpec(32, 32, 3, 256, 100),
  "mnist": ImageSpec(28, 28, 1, 256, 10),
  "fashion_mnist": ImageSpec(28, 28, 1, 256, 10),
}
LIGHT = ("digits", "synthetic", "arrays")
"""Data sections that load without a network connection and without decoding."""

HINT = "give its shape: --image=64x64x3 --classes=1000 (0 for unlabelled images)"


def image_spec(experiment: Experiment, image: str | None, num_classes: int | None) -> ImageSpec:
  """Return the shape and classes of the images that a config trains on; downloads nothing.

  Args:
    experiment: the resolved config.
    image: --image, "HxWxC"; None: the shape in the data section.
    num_classes: --classes; None: the number in the data section, or 0 if --image is given.

  Raises:
    UserError: the shape is not known without the data, or --image has another format.
  """
  if image is not None:
    return ImageSpec(*_parse(image), 256, num_classes or 0)
  spec = _from_section(experiment)
  return spec if num_classes is None else spec._replace(num_classes=num_classes)


def _parse(text: str) -> tuple[int, int, int]:
  match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
  if match is None or not all(int(n) for n in match.groups()):
    raise UserError(f"--image={text}: write HEIGHTxWIDTHxCHANNELS, e.g. --image=64x64x3")
  return int(match[1]), int(match[2]), int(match[3])


def _from_section(experiment: Experiment) -> ImageSpec:
  section = experiment.to_dict()["data"]
  if section["name"] in LIGHT:
    try:
      return experiment.data.load("train").spec
    except UserError as error:
      raise UserError(f"{error}; or {HINT}") from error
  if section["name"] == "tfds" and section["dataset"] in STANDARD:
    spec = STANDARD[section["dataset"]]
    size = section["image_size"]
    spec = spec if size is None else spec._replace(height=size, width=size)
    return spec if section["label_key"] else spec._replace(num_classes=0)
  raise UserError(
    f"the images of config.data ({section['name']}) are not known without reading them; {HINT}"
  )
