"""The README: short, its Python block runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_it_is_short_and_has_its_two_commands():
  assert len(README.splitlines()) <= 120
  assert len(blocks("sh")) == 2
  assert len(blocks("python")) == 1


def test_its_links_lead_to_files():
  targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
  assert targets
  assert [t for t in targets if not (ROOT / t).exists()] == []


@pytest.mark.costly
def test_its_python_block_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  exec(compile(blocks("python")[0], "README.md", "exec"), names)
  assert names["images"].shape == (16, 8, 8, 1)
  assert names["points"].shape == (1000, 2)
  assert abs(float(names["points"].std()) - 1.0) < 0.06
  assert (tmp_path / "runs" / "quick" / "checkpoints" / "20").is_dir()
