"""Check the installation: versions, devices, folders; say what to type for each fault.

  diffusion-jax doctor            exit code 2 if something must be changed
  diffusion-jax doctor --json     the same for a program

Nothing here imports JAX: it is tried in a process of its own, which may hang or crash.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from diffusion_jax import __version__
from diffusion_jax.core.printing import printable
from diffusion_jax.runs import device_check, machine

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "rich")
DEVICE_LIMIT_SEC = 120.0
LEAST_BYTES, FEW_BYTES = 10**9, 10**10
"""Free space, bytes: too little to train below the first, scarce below the second."""

HELD = "end other programs that use the device (see nvidia-smi), or pip install -U jax jaxlib"

OK, NOTE, FAULT = "ok", "note", "fault"


class Finding(NamedTuple):
  """The outcome of one check.

  Attributes:
    name: the check.
    state: ok; note: worth knowing; fault: something must be changed.
    text: what was found.
    remedy: what to type, for a note or a fault.
  """

  name: str
  state: str
  text: str
  remedy: str = ""


class DoctorUsageError(Exception):
  """Raised for a wrong flag; the message is one line."""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise DoctorUsageError(f"doctor: {message}; see diffusion-jax doctor --help")


def doctor_parser() -> argparse.ArgumentParser:
  flags = _Parser(
    "diffusion-jax doctor", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  flags.add_argument("--json", action="store_true", help="print the findings as JSON")
  return flags


def examine(argv: Sequence[str]) -> bool:
  """Print each finding as it is made; return True if nothing must be changed.

  Raises:
    DoctorUsageError: a wrong flag.
  """
  args = doctor_parser().parse_args(argv)
  findings = []
  for finding in all_findings(os.environ):
    findings.append(finding)
    if not args.json:
      print(as_lines(finding), flush=True)
  faults = [finding for finding in findings if finding.state == FAULT]
  if args.json:
    found = [finding._asdict() for finding in findings]
    print(json.dumps({"ok": not faults, "findings": found}, indent=2))
  elif faults:
    print(f"{len(faults)} to change: {', '.join(finding.name for finding in faults)}")
  else:
    print("nothing must be changed")
  return not faults


def as_lines(finding: Finding) -> str:
  """Return the line of a finding, and one with its remedy."""
  line = f"{finding.state:<6}{finding.name:<13}{printable(finding.text)}"
  return f"{line}\n{'':19}-> {printable(finding.remedy)}" if finding.remedy else line


def all_findings(env: Mapping[str, str]) -> Iterator[Finding]:
  """Yield the findings, the quick ones first."""
  yield from software()
  yield hidden_libraries(env)
  yield from folders(env)
  devices = try_devices(env)
  yield from device_findings(devices)
  platform_name = devices.get("platform", "")
  yield accelerator(env, platform_name)
  yield cuda_libraries(env, platform_name)


def software() -> Iterator[Finding]:
  """Check Python and the versions of the packages."""
  version = platform.python_version()
  text = f"{version} at {sys.executable}, {platform.platform()}"
  yield Finding("python", OK, text)
  versions = machine.installed(PACKAGES)
  text = ", ".join(
    [f"diffusion_jax {__version__}", *(f"{n} {v}" for n, v in versions.items() if v)]
  )
  missing = [name for name, found in versions.items() if found is None]
  wrong = missing or unmet_requirements()
  if wrong:
    what = "missing: " if missing else "wrong version: "
    remedy = f"pip install -U {' '.join(repr(name) for name in wrong)}"
    yield Finding("packages", FAULT, f"{what}{', '.join(wrong)} ({text})", remedy)
  else:
    yield Finding("packages", OK, text)


def unmet_requirements() -> list[str]:
  """Return the requirements of this package and of JAX that are not met, such as "jax>=0.10"."""
  try:
    from packaging.requirements import Requirement
  except ImportError:
    return []
  unmet = []
  for package in ("diffusion_jax", "jax"):
    try:
      listed = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
      continue
    for requirement in map(Requirement, listed):
      if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        continue
      found = machine.installed([requirement.name])[requirement.name]
      if found is None or not requirement.specifier.contains(found, prereleases=True):
        unmet.append(f"{requirement.name}{requirement.specifier}")
  return list(dict.fromkeys(unmet))


def hidden_libraries(env: Mapping[str, str]) -> Finding:
  """Check for files of the user that have the name of a library."""
  package = Path(__file__).resolve().parent.parent
  found = machine.hiding_files(machine.folders_first_on_path(env), package)
  if not found:
    return Finding("names", OK, "no file here hides a library")
  shown = ", ".join(map(str, found[:5])) + ", ..." * (len(found) > 5)
  first = found[0]
  return Finding(
    "names", FAULT, f"python imports these in place of the libraries of the same name: {shown}",
    f"mv {first} {first.with_name(f'my_{first.name}')}, or start from another folder",
  )  # fmt: skip


def folders(env: Mapping[str, str]) -> Iterator[Finding]:
  """Check that runs, the cache and data sets can be written, and their free space."""
  home = Path(env.get("HOME") or "~").expanduser()
  cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache").expanduser() / "diffusion_jax"
  programs = Path(env.get("JAX_COMPILATION_CACHE_DIR") or cache / "xla").expanduser()
  data = Path(env.get("TFDS_DATA_DIR") or home / "tensorflow_datasets").expanduser()
  given = "`data.data_dir=FOLDER`" if env.get("TFDS_DATA_DIR") is None else "another folder"
  other = "export XDG_CACHE_HOME=FOLDER to keep it; until then a temporary folder is used"
  yield folder_finding("runs", Path("runs"), FAULT, "cd elsewhere, or give `workdir=FOLDER`")
  yield folder_finding("cache", cache, NOTE, other)
  if programs != cache / "xla":
    yield folder_finding("programs", programs, NOTE, "export JAX_COMPILATION_CACHE_DIR=FOLDER")
  yield folder_finding("data sets", data, NOTE, f"export TFDS_DATA_DIR=FOLDER, or give {given}")


def folder_finding(name: str, folder: Path, state: str, remedy: str) -> Finding:
  """Check one folder, or where it will be created.

  Args:
    name: name of the check.
    folder: path of the folder.
    state: state of the finding if the folder cannot be written.
    remedy: what to type in that case.
  """
  place = next((p for p in (folder, *folder.absolute().parents) if os.path.lexists(p)), folder)
  missing = "" if place == folder else " (not created yet)"
  try:
    with tempfile.TemporaryFile(dir=place):
      pass
    free = shutil.disk_usage(place).free
    files = os.statvfs(place)
  except OSError as error:
    return Finding(name, state, f"{folder} cannot be written ({error.strerror})", remedy)
  room = f"{folder}{missing}, {free / 1e9:,.1f} GB free"
  if files.f_files and not files.f_favail:
    return Finding(name, FAULT, f"{room}, and no more files fit", f"delete files in {place}")
  if free < LEAST_BYTES:
    return Finding(name, FAULT, f"{room}: too little", f"du -sh {place}/* shows what takes it")
  if free < FEW_BYTES:
    return Finding(name, NOTE, f"{room}: checkpoints may not fit", f"du -sh {place}/*")
  return Finding(name, OK, room)


def try_devices(env: Mapping[str, str], limit_sec: float = DEVICE_LIMIT_SEC) -> dict[str, Any]:
  """Return what `device_check` prints, or its "error" with a "remedy"."""
  # -P: neither the file's folder nor the current one comes before the libraries.
  command = [sys.executable, "-P", device_check.__file__]
  variables = {**env, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  try:
    ran = subprocess.run(
      command, env=variables, capture_output=True, text=True, timeout=limit_sec, check=False
    )
  except subprocess.TimeoutExpired:
    return {"error": f"no answer within {limit_sec:.0f} s", "remedy": HELD}
  try:
    return json.loads(ran.stdout.strip().splitlines()[-1])
  except (IndexError, ValueError):
    last = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
    asked = env.get("JAX_PLATFORMS")
    if asked and ":" not in last:  # the name of an error alone, such as AssertionError
      last = f"JAX_PLATFORMS={asked}: JAX finds no such device here ({last})"
    return {
      "error": last[:300],
      "remedy": f"unset JAX_PLATFORMS (it is {asked})" if asked else HELD,
    }


def device_findings(devices: Mapping[str, Any]) -> Iterator[Finding]:
  """Yield the findings from the result of `try_devices`."""
  if "error" in devices:
    yield Finding("devices", FAULT, devices["error"], devices["remedy"])
    return
  num = devices["num"]
  kind = f"{num} x {devices['kind']} ({devices['platform']}), {devices['seconds']} s to start"
  yield Finding("devices", OK, kind)
  for name, well in (
    ("convolution", "agrees with NumPy"),
    ("collective", f"the sum over {num} device{'s' * (num > 1)} is right"),
  ):
    if error := devices[name]:
      remedy = "pip install -U jax jaxlib and the plugin, and compare the driver with theirs"
      yield Finding(name, FAULT, error, remedy)
    else:
      yield Finding(name, OK, well)


def accelerator(env: Mapping[str, str], used: str) -> Finding:
  """Check that JAX uses the accelerator of this machine.

  Args:
    env: the environment.
    used: platform that JAX uses: cpu, gpu or tpu; empty if it does not start.
  """
  cuda, tpu = machine.cuda_version(env), machine.has_tpu(env)
  plugins = ", ".join(f"{n} {v}" for n, v in machine.accelerator_plugins().items())
  if cuda is None and not tpu:
    return Finding("accelerator", OK, "none here; all runs on the CPU")
  if used not in ("", "cpu"):
    return Finding("accelerator", OK, f"used by JAX ({plugins})" if plugins else "used by JAX")
  what = "a TPU" if cuda is None else f"an NVIDIA GPU (CUDA {cuda or 'version unknown'})"
  text = f"this machine has {what}, but JAX does not use it"
  for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
    is_off = name == "JAX_PLATFORMS" and env.get(name) == "cpu"
    if is_off or (name == "CUDA_VISIBLE_DEVICES" and cuda and env.get(name) in ("", "-1")):
      return Finding("accelerator", NOTE, f"{text}: {name}={env[name]}", f"unset {name}")
  extra = "tpu" if cuda is None else "cuda12" if cuda.startswith("12") else "cuda13"
  install = f"pip install -U 'diffusion_jax[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
  if cuda and float(cuda.partition(".")[0]) < 12:
    install = f"update the NVIDIA driver to one for CUDA 12 or 13, then {install}"
  why = f"; installed: {plugins}" if plugins else ": its plugin is not installed"
  return Finding("accelerator", FAULT, text + why, install)


def cuda_libraries(env: Mapping[str, str], used: str) -> Finding:
  """Check that no CUDA of the system hides the libraries that JAX's plugin brings."""
  hiding = machine.system_cuda_folders(env)
  has_plugin = any("cuda" in name for name in machine.accelerator_plugins())
  if not hiding or not has_plugin:
    return Finding("libraries", OK, "LD_LIBRARY_PATH hides none")
  state = NOTE if used not in ("", "cpu") else FAULT
  text = f"LD_LIBRARY_PATH puts the CUDA of {', '.join(hiding)} before that of JAX's plugin"
  return Finding("libraries", state, text, "unset LD_LIBRARY_PATH")
