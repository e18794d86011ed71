"""Data sets of tensorflow-datasets, read without TensorFlow from their array_record files."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.core import bucket_files
from diffusion_jax.core.field_types import as_text
from diffusion_jax.core.files import BUCKET, bucket_path, home, user_path
from diffusion_jax.core.settings import setting
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.data import standard
from diffusion_jax.data.base import DataSetBase, Seen
from diffusion_jax.data.source import (
  About,
  DecodedSource,
  Source,
  check_fit,
  fit_image,
  in_memory_if_small,
)
from diffusion_jax.types import ImageSpec, UserError

STANDARD = {
  "cifar10": ImageSpec(32, 32, 3, 256, 10),
  "cifar100": ImageSpec(32, 32, 3, 256, 100),
  "mnist": ImageSpec(28, 28, 1, 256, 10),
  "fashion_mnist": ImageSpec(28, 28, 1, 256, 10),
}
NO_DOWNLOAD = "`config=ddpm_digits` needs no download"


def default_data_dir() -> str:
  """Return TFDS's default: $TFDS_DATA_DIR, or ~/tensorflow_datasets; it may be in a bucket."""
  return data_dir_text(os.environ.get("TFDS_DATA_DIR") or str(home() / "tensorflow_datasets"))


def data_dir_text(text: str) -> str:
  """Return the path or address of the folder of prepared sets, which is not copied."""
  return text if BUCKET.match(text) else str(user_path(text))


def set_path(data_dir: str, name: str) -> Path:
  """Return the folder of a set, "name" or "name/config"; of a bucket, that set's copy.

  Raises:
    UserError: the bucket cannot be used on this machine.
  """
  if BUCKET.match(data_dir):
    return bucket_path(f"{data_dir.rstrip('/')}/{name}")
  return user_path(data_dir) / name


@dataclasses.dataclass(frozen=True)
class Tfds(DataSetBase):
  """An image data set of tensorflow-datasets, prepared as array_record.

  cifar10, cifar100, mnist and fashion_mnist are downloaded and prepared at first use.

  Attributes:
    dataset: data set as "name", "name/config" or "name:version".
    train_split: training split in the notation of TFDS, e.g. "train[:90%]" or "train+test".
    test_split: held-out split in the same notation; none: nothing is held out.
    data_dir: folder of the prepared data sets, in a bucket too; none: $TFDS_DATA_DIR, or
      ~/tensorflow_datasets.
    image_size: pixels per side: the shorter side is resized to it, the centre cropped; none: no
      resizing.
    image_key: feature of the data set that holds the image.
    label_key: feature of the data set that holds the class; none: unlabelled.
    max_ram_gib: largest decoded size of a split, in GiB, that is kept in memory.
    flip: mirror half of the training images, chosen at random.
  """

  dataset: str = "cifar10"
  train_split: str = "train"
  test_split: str | None = setting("test", may_change=True)
  data_dir: str | None = setting(None, may_change=True, affects_figures=False, is_path=True)
  image_size: int | None = None
  image_key: str = "image"
  label_key: str | None = "label"
  max_ram_gib: float = setting(8.0, may_change=True, affects_figures=False)
  flip: bool = False

  def __post_init__(self):
    check_fit(self.image_size)

  def load(self, split: str) -> Source:
    """Open a split; prepare a standard set first if it is missing.

    Raises:
      UserError: the set, its split, a feature or its format does not exist; or no network.
    """
    import tensorflow_datasets as tfds

    folder = self._folder()
    try:
      builder: Any = tfds.builder_from_directory(str(folder))
    except Exception as error:
      raise UserError(f"{folder} is damaged ({error}); move it away, prepare it again") from error
    self._check_format(builder.info)
    part = self.train_split if split == "train" else self.test_split
    spec = self._spec(builder.info)
    try:
      records = builder.as_data_source(split=part)
    except Exception as error:
      raise self._explain_split(split, part, builder.info.splits) from error
    if not len(records):
      raise self._explain_split(split, part, builder.info.splits)
    name = f"{self.dataset} {part}"
    about = About(self._class_names(builder.info), origin=f"{part} of {folder}")
    read = lambda i: self._read(records, i, spec)  # noqa: E731
    source = DecodedSource(name, spec, len(records), read, about)
    return in_memory_if_small(source, self.max_ram_gib)

  def _explain_split(self, split: str, part: str | None, known: Any) -> UserError:
    sizes = ", ".join(f"{name} ({info.num_examples:,})" for name, info in known.items())
    nothing = "; none means no held-out split" * (split == "test")
    return UserError(
      f"`data.{split}_split={as_text(part)}` cannot be read: {self.dataset} has {sizes}{nothing}"
    )

  def known_spec(self) -> ImageSpec | None:
    """Return the spec of a standard set."""
    spec = STANDARD.get(self.dataset)
    if spec is None:
      return None
    if self.image_size is not None:
      spec = spec._replace(height=self.image_size, width=self.image_size)
    return spec if self.label_key else spec._replace(num_classes=0)

  def look(self) -> Seen:
    """Return the images' size, or the sizes of some, from the prepared set."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(self._folder()))
    self._check_format(builder.info)
    features = builder.info.features
    height, width, channels = self._image_shape(features[self.image_key])
    num_images = builder.info.splits[self.train_split].num_examples
    if height is not None and width is not None:
      sizes = [(height, width)]
    else:
      records = builder.as_data_source(split=self.train_split)
      index = np.unique(np.linspace(0, num_images - 1, 64).astype(int))
      sizes = [records[int(i)][self.image_key].shape[:2] for i in index]
    labelled = self.label_key is not None and self.label_key in features
    num_classes = self._num_classes(features) if labelled else 0
    return Seen(sizes, channels == 1, num_images, num_classes, True)

  def fetch(self) -> None:
    """Copy a set that is in a bucket to this machine."""
    set_path(self.data_dir or default_data_dir(), self.dataset.partition(":")[0])

  def has_split(self, split: str) -> bool:
    return split == "train" or self.test_split is not None

  def _folder(self) -> Path:
    """Return the folder of the prepared version to read."""
    root = self.data_dir or default_data_dir()
    name, _, version = self.dataset.partition(":")
    place = set_path(root, name)
    folder = _prepared(place, version)
    if folder is None:
      if name not in standard.STANDARD or version:
        raise self._explain_missing(root, name, place)
      folder = standard.prepare_standard(name, place.parent)
    return folder

  def _explain_missing(self, root: str, name: str, place: Path) -> UserError:
    import tensorflow_datasets as tfds

    flag = f"`data.dataset={self.dataset}`"
    here = sorted(p.parent.name for p in place.glob("*/*/dataset_info.json"))
    if here:
      return UserError(f"{flag} has configs: write {', '.join(f'{name}/{c}' for c in here)}")
    versions = sorted(p.parent.name for p in place.glob("*/dataset_info.json"))
    if versions:
      return UserError(f"{flag}: {place} has the version {', '.join(versions)}")
    local = prepared_names(root)
    known = set(tfds.list_builders(with_community_datasets=False))
    version, versions = self.dataset.partition(":")[2], _known_versions(name)
    if version and versions and version not in versions:
      return UserError(
        f"{flag}: tensorflow-datasets has no version {version} of {name}; it has "
        f"{', '.join(versions)}"
      )
    if name.partition("/")[0] in known:
      in_bucket = BUCKET.match(root) is not None
      folder, then = ("DIR", f", and copy DIR/{name} to {root}") if in_bucket else (root, "")
      return UserError(
        f"{flag} is not in {root}; prepare it with: pip install 'diffusion_jax[tfds-prepare]' && "
        f"python -m diffusion_jax.prepare {self.dataset} --data_dir={folder}{then}"
      )
    hint = spelling_hint(name, known | local).partition(" Allowed:")[0]
    names = ", ".join(sorted(local))
    return UserError(
      f"{flag}: tensorflow-datasets has no such set.{hint} Ready to use: {names}; {NO_DOWNLOAD}"
    )

  def _check_format(self, info: Any) -> None:
    if info.file_format is None or info.file_format.value != "array_record":
      raise UserError(
        f"{self.dataset} in {info.data_dir} is stored as {getattr(info.file_format, 'value', '?')},"
        f" which cannot be read at random; prepare it again as array_record: python -m "
        f"diffusion_jax.prepare {self.dataset} --data_dir=ANOTHER_FOLDER"
      )

  def _spec(self, info: Any) -> ImageSpec:
    features = info.features
    for field, key in (("image_key", self.image_key), ("label_key", self.label_key)):
      if key is not None and key not in features:
        known = ", ".join(sorted(features))
        raise UserError(f"`data.{field}={key}`: {self.dataset} has the features {known}")
    height, width, channels = self._image_shape(features[self.image_key])
    if self.image_size is not None:
      height = width = self.image_size
    if height is None or width is None:
      raise UserError(f"{self.dataset} has pictures of many sizes; set e.g. `data.image_size=64`")
    return ImageSpec(height, width, 1 if channels == 1 else 3, 256, self._num_classes(features))

  def _image_shape(self, feature: Any) -> tuple[int | None, int | None, int | None]:
    shape = getattr(feature, "shape", ())
    if len(shape) != 3 or np.dtype(feature.np_dtype) != np.uint8:
      raise UserError(
        f"`data.image_key={self.image_key}` of {self.dataset} is {feature}; it must be a "
        "picture of 8 bits a channel"
      )
    return shape

  def _class_names(self, info: Any) -> list[str]:
    label = None if self.label_key is None else info.features[self.label_key]
    return list(getattr(label, "names", None) or ())

  def _num_classes(self, features: Any) -> int:
    if self.label_key is None:
      return 0
    num_classes = getattr(features[self.label_key], "num_classes", None)
    if num_classes is None:
      raise UserError(
        f"`data.label_key={self.label_key}` is not a class label of {self.dataset}; set "
        "`data.label_key=None` for an unlabelled set"
      )
    return num_classes

  def _read(self, records: Any, index: int, spec: ImageSpec) -> tuple[np.ndarray, int]:
    try:
      record = records[index]
    except Exception as error:
      raise UserError(
        f"{self.dataset}: example {index} cannot be read ({error}); prepare the set again"
      ) from error
    image = np.asarray(record[self.image_key])
    label = 0 if self.label_key is None else int(record[self.label_key])
    if image.shape == spec.shape:
      return image, label
    picture = Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
    return fit_image(picture, self.image_size, spec.channels), label


def _known_versions(name: str) -> list[str]:
  """Return the versions of a set that tensorflow-datasets can prepare; [] if it does not say."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_cls(name.partition("/")[0])
    return sorted({str(v) for v in (builder.VERSION, *builder.SUPPORTED_VERSIONS) if v})
  except Exception:  # it imports the set's own module, whose packages may be missing
    return []


def prepared_names(data_dir: str | None = None) -> set[str]:
  """Return the names of the sets in a folder, and of those prepared at first use.

  Args:
    data_dir: the folder, in a bucket too; none: the default.

  Raises:
    UserError: the bucket cannot be used on this machine.
  """
  data_dir = data_dir or default_data_dir()
  if BUCKET.match(data_dir):
    return set(bucket_files.folder_names(data_dir)) | set(STANDARD)
  root = user_path(data_dir)
  return (
    {path.relative_to(root).parts[0] for path in root.glob("*/*/dataset_info.json")}
    | {path.relative_to(root).parts[0] for path in root.glob("*/*/*/dataset_info.json")}
    | set(STANDARD)
  )


def split_fields(dataset: str) -> dict[str, str | None]:
  """Return the config fields of a set's splits: its own held-out one, or the last tenth."""
  import tensorflow_datasets as tfds

  if dataset in STANDARD:
    return {}
  builder: Any = tfds.builder_from_directory(str(Tfds(dataset=dataset)._folder()))
  names, features = set(builder.info.splits), builder.info.features
  held_out = next((name for name in ("test", "validation") if name in names), None)
  unlabelled: dict[str, str | None] = {} if "label" in features else {"label_key": None}
  if held_out == "test" and "train" in names:
    return unlabelled
  if "train" not in names:
    raise UserError(
      f"`data={dataset}` has the splits {', '.join(sorted(names))} and no train; use a config with "
      "`data.train_split=...`"
    )
  if held_out is not None:
    return unlabelled | {"test_split": held_out}
  return unlabelled | {"train_split": "train[:90%]", "test_split": "train[90%:]"}


def _prepared(folder: Path, version: str) -> Path | None:
  """Return the folder of a version (by default the newest) if it is prepared."""
  versions = [p.parent for p in folder.glob("*/dataset_info.json")]
  wanted = [p for p in versions if not version or p.name == version]
  return max(wanted, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)], default=None)
