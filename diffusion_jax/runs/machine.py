"""Inspect the machine without JAX: accelerators, libraries, files that hide a library."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = (
  "jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy", "sklearn", "PIL", "matplotlib",
  "rich", "absl", "etils", "jaxtyping", "jinja2", "google", "ml_collections", "tensorboardX",
  "tensorflow", "tensorflow_datasets", "array_record", "diffrax", "equinox", "torch", "wandb",
)  # fmt: skip
"""Modules that the programs import; a user's file of such a name would hide the module."""

UNUSED = ("antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo")
"""Modules of Python that nothing here imports."""

CUDA_LIBRARIES = ("libcudnn", "libcublas", "libcudart", "libcusparse", "libcufft", "libnccl")
GOOGLE_PCI_VENDOR = "0x1ae0"
TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")


def installed(names: Sequence[str]) -> dict[str, str | None]:
  """Return name -> version of packages; None: it is not installed."""
  found: dict[str, str | None] = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def accelerator_plugins() -> dict[str, str]:
  """Return name -> version of the installed plugins of JAX for accelerators."""
  names = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
  return {name: version for name, version in installed(names).items() if version is not None}


def hiding_files(folders: Sequence[Path], package: Path) -> list[Path]:
  """Return files and folders that Python would import in place of a library.

  Args:
    folders: folders before the libraries on Python's path, such as the current one.
    package: this package's own folder, which hides nothing.
  """
  names = {*LIBRARIES, *sys.stdlib_module_names, package.name} - set(UNUSED)
  found = []
  for folder in folders:
    try:
      entries = sorted(folder.iterdir())
    except OSError:
      continue
    for path in entries:
      is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
      if is_module and path.stem in names and path.resolve() != package.resolve():
        found.append(path)
  return found


def folders_first_on_path(env: Mapping[str, str]) -> list[Path]:
  """Return the current folder, and those of PYTHONPATH, in which Python looks first."""
  given = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
  return list(dict.fromkeys([Path.cwd(), *(Path(p).absolute() for p in given)]))


def cuda_version(env: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
  """Return the newest CUDA version that an NVIDIA driver supports.

  Returns:
    A version such as "12.8"; empty for a GPU whose driver does not report it; None without a GPU.
  """
  has_device = any(re.fullmatch(r"nvidia\d+", p.name) for p in devices.glob("nvidia*"))
  if (program := shutil.which("nvidia-smi", path=env.get("PATH"))) is not None:
    try:
      ran = subprocess.run(
        [program], capture_output=True, text=True, timeout=30, env=dict(env), check=False
      )
    except (OSError, subprocess.SubprocessError):
      ran = None
    if ran is not None and ran.returncode == 0:
      version = re.search(r"CUDA (?:UMD )?Version: *([\d.]+)", ran.stdout)
      return version[1] if version else ""
  return "" if has_device else None


def has_tpu(env: Mapping[str, str], devices: Path = Path("/sys/bus/pci/devices")) -> bool:
  """Return whether this machine has a TPU, or its environment declares one."""
  if any(env.get(name) for name in TPU_VARIABLES):
    return True
  for path in devices.glob("*/vendor"):
    try:
      if path.read_text().strip() == GOOGLE_PCI_VENDOR:
        return True
    except OSError:
      continue
  return False


def system_cuda_folders(env: Mapping[str, str]) -> list[str]:
  """Return the folders of LD_LIBRARY_PATH with CUDA libraries, which hide those of pip."""
  folders = [f for f in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if f]
  return [f for f in dict.fromkeys(folders) if any(_has(f, name) for name in CUDA_LIBRARIES)]


def _has(folder: str, library: str) -> bool:
  try:
    return any(Path(folder).glob(f"{library}*.so*"))
  except OSError:
    return False
