"""The site builds strictly without a network, needs none to be read, and is current."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from site_hooks import ROOT, hook

import diffusion_jax
from diffusion_jax.runs import config_help

ASSET = re.compile(r'<(?:script|img|iframe|source)[^>]*?src="?(https?:[^" >]+)')
STYLE = re.compile(r'<link[^>]*?rel="?(?:stylesheet|preload|icon|preconnect)[^>]*?(https?:[^" >]+)')


def nav_pages(nav) -> list[str]:
  """Return the pages of the navigation."""
  if isinstance(nav, str):
    return [nav]
  values = nav.values() if isinstance(nav, dict) else nav
  return [page for value in values for page in nav_pages(value)]


def test_every_page_is_in_the_navigation():
  listed = set(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
  pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
  assert pages <= listed
  made = {*hook("sources").DOCUMENTS.values(), "reference/config/"}
  assert listed - pages - made == {p for p in listed if p.startswith("notebooks/")}


def test_the_reference_has_every_field_of_every_section():
  pages = hook("config_pages").pages()
  assert list(pages) == list(dict.fromkeys(part.section for part in config_help.all_parts()))
  for part in config_help.all_parts():
    for entry in part.entries:
      for field in config_help.fields_of(entry):
        assert f'.{field.name}"><code>{field.name}</code> = ' in pages[part.section], field.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder of the built site."""
  pytest.importorskip("material", reason="pip install -e '.[docs]'")
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
  alone = ["unshare", "-rn"]  # no network at all, where the machine allows it
  if shutil.which("unshare") and subprocess.run([*alone, "true"]).returncode == 0:
    command = [*alone, *command]
  ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
  assert ran.returncode == 0, ran.stdout + ran.stderr
  return folder


def environment() -> dict[str, str]:
  return {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}


@pytest.mark.reference
def test_nothing_is_loaded_from_elsewhere(site):
  pages = list(site.rglob("*.html"))
  assert len(pages) > 50
  for page in pages:
    text = page.read_text()
    assert [*ASSET.findall(text), *STYLE.findall(text)] == [], page
  for style in site.rglob("*.css"):
    assert "url(http" not in style.read_text(), style


@pytest.mark.reference
def test_the_python_reference_has_every_public_name(site):
  for room in diffusion_jax._ROOMS:
    text = (site / "reference" / "api" / f"{room}.html").read_text()
    module = importlib.import_module(f"diffusion_jax.{room}")
    for name in module.__all__:
      assert f'id="diffusion_jax.{room}.{name}"' in text, f"{room}.{name}"


@pytest.mark.reference
def test_formulas_are_drawn_by_the_browser(site):
  text = (site / "theory.html").read_text()
  assert text.count("<math") > 50
  assert "arithmatex" not in text
  assert (site / "assets" / "math.woff").stat().st_size > 10_000


@pytest.mark.reference
def test_links_to_source_lead_to_the_line_of_the_name(site):
  found = re.findall(r'href="(source/[^"#]*)#(__codelineno-0-(\d+))"[^>]*><code>(\w+)</code>',
                     (site / "theory.html").read_text())  # fmt: skip
  assert len(found) > 10
  for page, anchor, number, name in found:
    assert f'id="{anchor}"' in (site / page).read_text()
    file = ROOT / Path(page).relative_to("source").with_suffix("")
    assert name in file.read_text().splitlines()[int(number) - 1]


@pytest.mark.reference
def test_a_command_breaks_between_words_only(site):
  text = (site / "howto" / "guidance.html").read_text()
  assert text.count('<span class="flag">--config.guidance.weight</span>') == 3
  assert '<span class="word">--dry_run</span>' in (site / "build.html").read_text()
