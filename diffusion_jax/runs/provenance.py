"""Record the origin of figures: versions, devices, code revision, command."""

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import jax

from diffusion_jax.core.files import write_json


def write_environment(workdir: Path) -> None:
  """Add this start to environment.json: versions, devices, code revision, command."""
  if jax.process_index():
    return
  path = workdir / "environment.json"
  try:
    starts = list(json.loads(path.read_text())["starts"])
  except (OSError, ValueError, KeyError, TypeError):
    starts = []
  starts.append(
    {
      "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "command": [sys.executable, *sys.orig_argv[1:]],
      "python": platform.python_version(),
      "packages": package_versions(),
      "platform": platform.platform(),
      "devices": [str(d) for d in jax.devices()],
      "device_kind": jax.devices()[0].device_kind,
      "num_processes": jax.process_count(),
      "git_revision": git_revision(),
    }
  )
  write_json(path, {"starts": starts})


def package_versions() -> dict[str, str | None]:
  """Return the versions of packages that figures may depend on."""
  names = ("diffusion_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")
  return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def git_revision() -> str | None:
  """Return the checkout's commit, "-dirty" if it has changes; None outside a checkout."""
  folder = Path(__file__).parent
  command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    tracked = subprocess.run(
      ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name],
      capture_output=True, timeout=10, check=False,
    )  # fmt: skip
    if tracked.returncode:
      return None
    return subprocess.run(
      command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None
