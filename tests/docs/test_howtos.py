"""The commands of the tutorial, of the how-to pages and of the page on extensions all run."""

import importlib
import shutil
import sys

import numpy as np
import page_commands
import pytest
from bucket import serve_bucket
from PIL import Image
from site_hooks import ROOT

from diffusion_jax import __main__ as overview
from diffusion_jax import train
from diffusion_jax.data import Digits
from diffusion_jax.extractors import train_domain
from diffusion_jax.extractors.domain import Recipe, default_features_path

DOCS = ROOT / "docs"
PAGES = [*sorted((DOCS / "howto").glob("*.md")), DOCS / "tutorial.md", DOCS / "extending.md"]


@pytest.fixture(autouse=True)
def bucket(monkeypatch, tmp_path):
  yield from serve_bucket(monkeypatch, tmp_path)


def write_files(page, folder, monkeypatch):
  """Write the files that a page shows into the current folder."""
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  for name, content in page_commands.files(page.read_text()).items():
    (folder / name).write_text(content)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_each_command_is_one_that_can_be_typed(page, tmp_path, monkeypatch):
  write_files(page, tmp_path, monkeypatch)
  found = page_commands.commands(page.read_text())
  assert found
  for command in found:
    page_commands.check_as_typed(command.words)


@pytest.mark.parametrize(
  "line",
  [
    "diffusion-jax trian --config=ddpm_digits",
    "diffusion-jax train --config=ddpm_digits --config.training.num_step=1",
    "diffusion-jax train --config=ddpm_digits --dry-runs",
    "python launch/locals.py",
    "pip install -e '.[cuda99]'",
    "launch/nothing.sh",
  ],
)
def test_a_command_that_cannot_be_typed_is_noticed(line):
  [command] = page_commands.commands(f"```sh\n{line}\n```\n")
  with pytest.raises((AssertionError, Exception)):
    page_commands.check_as_typed(command.words)


def test_blocks_with_a_reason_are_not_run_and_sizes_are_replaced():
  text = (
    "<!-- not run: far -->\n```sh\nA=1 diffusion-jax train \\\n  --fresh\n```\n```sh\nx # y\n```\n"
  )
  assert page_commands.commands(text) == [
    (["diffusion-jax", "train", "--fresh"], "far"),
    (["x"], ""),
  ]
  flags = ["--num=64", "--out=a.png", "--guide_step=500"]
  assert page_commands.tiny_flags("sample", flags) == ["--out=a.png", "--num=4", "--guide_step=1"]
  assert page_commands.tiny_flags("evaluate", ["--sweep=a.b=1,2,4"])[0] == "--sweep=a.b=1"
  flags = ["--config=a", "--config.model.channels=64", "--config.model.dtype=bfloat16"]
  small = page_commands.tiny_flags("train", flags)
  assert small[:2] == ["--config=a", "--config.model.dtype=bfloat16"]
  assert "--config.training.num_steps=2" in small


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with the tutorial's run, a folder of photos, and features in the user's cache."""
  folder = tmp_path_factory.mktemp("prepared")
  random = np.random.default_rng(0)
  for name in ("cat", "dog"):
    (folder / "photos" / name).mkdir(parents=True)
    for i in range(12):
      pixels = random.integers(0, 256, (72, 80, 3), np.uint8)
      Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.chdir(folder)
    train.main(["--config=ddpm_digits", *page_commands.TRAIN])
    source, recipe = Digits().load("train"), Recipe(num_steps=3, batch_size=16)
    train_domain(source, Digits().load("test"), default_features_path(source), recipe)
  return folder


@pytest.mark.costly
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_commands_run_in_their_order(page, prepared, tmp_path, monkeypatch, call):
  folder = shutil.copytree(prepared, tmp_path / "work")
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
  write_files(page, folder, monkeypatch)
  for words, not_run in page_commands.commands(page.read_text()):
    if not_run:
      continue
    assert words[0] == "diffusion-jax", f"{words}: mark it as not run, with the reason"
    _, name, *flags = words
    if name in overview.OWN:
      monkeypatch.setattr(sys, "argv", words)
      assert overview.main() == 0
      continue
    module = importlib.import_module(f"diffusion_jax.{name}")
    code, out, err = call(module.main, *page_commands.tiny_flags(name, flags))
    assert code == 0, f"{' '.join(words)}\n{out}\n{err}"
