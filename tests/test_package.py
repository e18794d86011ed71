"""A built wheel has all files, and works where nothing of the checkout is."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import tiny
import yaml

import diffusion_jax
from diffusion_jax.core import shipped


def test_the_version_is_written_alike_everywhere(root):
  project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
  citation = yaml.safe_load((root / "CITATION.cff").read_text())
  assert diffusion_jax.__version__ == project["version"] == citation["version"]


def test_the_licence_is_apache_everywhere(root):
  project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
  citation = yaml.safe_load((root / "CITATION.cff").read_text())
  assert project["license"] == citation["license"] == "Apache-2.0"
  text = (root / "LICENSE").read_text()
  assert re.search(r"Apache License\s+Version 2.0, January 2004", text)
  assert "END OF TERMS AND CONDITIONS" in text


def test_the_citation_has_what_its_format_requires(root):
  citation = yaml.safe_load((root / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0"
  assert citation["authors"] == [{"name": "The diffusion_jax authors"}]
  assert {"message", "title"} <= set(citation)
  assert citation["title"].startswith("diffusion_jax")


def test_contributing_names_what_is_there(root):
  text = (root / "CONTRIBUTING.md").read_text()
  rooms = re.findall(r"`(\w+)/` \|", text)
  assert len(rooms) == 9
  assert all((shipped.PACKAGE / room).is_dir() for room in rooms)
  code = "".join(path.read_text() for path in shipped.PACKAGE.rglob("*.py"))
  for registry in re.findall(r"`([A-Z]+S|[A-Z]+_[A-Z]+S)`", text):
    assert f"\n{registry} = Registry(" in code, registry
  build = (root / "BUILD.md").read_text()
  for command in re.findall(r"\| `(\.[^`|]+)` \|$", text, re.MULTILINE):
    assert command in build or "tests/core/test_config.py" in command, command


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, request):
  """The wheel of a copy of the checkout, built by the setuptools of the tests' environment."""
  copy, root = tmp_path_factory.mktemp("wheel"), request.config.rootpath
  for name in ("diffusion_jax", "configs"):
    shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(root / name, copy)
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
  build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", ".", "-w", "out"]
  ran = subprocess.run(build, cwd=copy, capture_output=True, text=True)
  assert ran.returncode == 0, f"{ran.stderr}; the extra `test` has setuptools"
  [file] = (copy / "out").glob("*.whl")
  return file


@pytest.mark.process
def test_the_source_archive_has_the_shipped_configs(root, tmp_path):
  """A wheel made from it, as PyPI's builders do, then has them too."""
  for name in ("diffusion_jax", "configs"):
    shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
    shutil.copy(root / name, tmp_path)
  build = "from setuptools.build_meta import build_sdist; build_sdist('out')"
  subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
  [file] = (tmp_path / "out").glob("*.tar.gz")
  with tarfile.open(file) as archive:
    names = {name.partition("/")[2] for name in archive.getnames()}
  assert {f"configs/{n}.py" for n in shipped.configs()} <= names


@pytest.mark.process
def test_an_editable_install_is_a_path_that_type_checkers_follow(root, tmp_path):
  for name in ("diffusion_jax", "configs"):
    shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(root / name, tmp_path)
  build = "from setuptools.build_meta import build_editable; build_editable('out')"
  subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
  [file] = (tmp_path / "out").glob("*.whl")
  with zipfile.ZipFile(file) as archive:
    names = [n for n in archive.namelist() if ".dist-info/" not in n]
    assert [n.endswith(".pth") for n in names] == [True]
    assert archive.read(names[0]).decode().strip() == str(tmp_path)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """The wheel installed outside the checkout: (bin folder, environment)."""
  prefix = tmp_path_factory.mktemp("installed")
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
  install = [*pip, "install", "--no-deps", "--no-index", f"--prefix={prefix}", "--ignore-installed"]
  subprocess.run([*install, str(wheel)], check=True, capture_output=True)
  paths = sysconfig.get_paths("venv", {"base": str(prefix), "platbase": str(prefix)})
  return Path(paths["scripts"]), {**os.environ, "PYTHONPATH": paths["purelib"]}


@pytest.mark.process
def test_the_wheel_has_its_licence_and_all_files_that_are_no_python(wheel, root):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    [metadata] = [n for n in names if n.endswith(".dist-info/METADATA")]
    about = email.message_from_bytes(archive.read(metadata))
  assert about["License-Expression"] == "Apache-2.0"
  assert any(n.endswith("licenses/LICENSE") for n in names)
  assert {f"diffusion_jax/configs/{n}.py" for n in shipped.configs()} <= names
  files = [p.relative_to(root) for p in (root / "diffusion_jax").rglob("*") if p.is_file()]
  wanted = {str(p) for p in files if "__pycache__" not in p.parts}
  assert {"diffusion_jax/py.typed", "diffusion_jax/report/style.css"} <= wanted
  assert wanted <= names
  assert not any(n.startswith(("configs/", "tests/")) for n in names)


@pytest.mark.process
def test_the_console_script_trains_a_shipped_config_from_an_empty_folder(installed, tmp_path):
  scripts, env = installed

  def typed(*words):
    command = [str(scripts / "diffusion-jax"), *words]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr

  code, out, err = typed("configs", "ddpm_digits")
  assert (code, err) == (0, "")
  assert out.startswith(env["PYTHONPATH"])  # the installed one, not the checkout's
  code, out, err = typed("options", "--config=edm_cifar_cond", "generative.conditional")
  assert (code, err) == (0, "")
  assert "conditional=true" in out  # of a config that is built on another
  flags = [*tiny.MODEL, "--config.training.num_steps=2", "--config.logging.num_samples=2"]
  code, out, err = typed("train", "--config=ddpm_digits", *flags)
  assert code == 0, err
  assert "finished: 2 steps; look in runs/ddpm_digits" in out
  assert (tmp_path / "runs/ddpm_digits/config.json").is_file()
  code, out, err = typed("trian")
  assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_the_console_script_trains_the_whole_of_ddpm_digits(installed, tmp_path):
  scripts, env = installed
  command = [str(scripts / "diffusion-jax"), "train", "--config=ddpm_digits"]
  ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  assert "finished: 1,000 steps; look in runs/ddpm_digits" in ran.stdout
  found = re.search(r"held-out loss (\S+) ± (\S+)", ran.stdout)
  assert found
  assert 0.10 < float(found[1]) < 0.18  # about 1 before training
  assert (tmp_path / "runs/ddpm_digits/samples/step_00001000.png").is_file()
