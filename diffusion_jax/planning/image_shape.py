"""Find the image shape and classes of a config without its data set."""

import re

from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.types import ImageSpec, UserError

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
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", image)
    if match is None or not all(int(n) for n in match.groups()):
      raise UserError(f"--image={image}: write HEIGHTxWIDTHxCHANNELS, e.g. --image=64x64x3")
    height, width, channels = map(int, match.groups())
    return ImageSpec(height, width, channels, 256, num_classes or 0)
  spec = _from_section(experiment)
  return spec if num_classes is None else spec._replace(num_classes=num_classes)


def _from_section(experiment: Experiment) -> ImageSpec:
  try:
    spec = experiment.data.known_spec()
  except UserError as error:
    raise UserError(f"{error}; or {HINT}") from error
  if spec is None:
    name = experiment.to_dict()["data"]["name"]
    raise UserError(
      f"the images of config.data ({name}) are not known without reading them; {HINT}"
    )
  return spec
