"""The notebooks have no stored outputs, and their code runs from top to bottom."""

import json
import os
import re

import pytest
import xla_flags
from site_hooks import ROOT, hook

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SIZES = {
  "two_moons": {"NUM_STEPS": "60"},
  "digits": {"NUM_STEPS": "2", "CONFIG": "'tiny_config.py'"},
  "own_denoiser": {"NUM_SAMPLES": "200"},
}
"""Notebook -> values of its constants that make it quick."""

TINY_CONFIG = f"""
import runpy


def get_config():
  config = runpy.run_path({str(ROOT / "configs" / "smoke.py")!r})["get_config"]()
  config.model = {{"name": "mlp", "hidden": 32, "depth": 1}}
  return config
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_has_a_title_and_no_outputs(path):
  cells = json.loads(path.read_text())["cells"]
  assert "".join(cells[0]["source"]).startswith("# ")
  assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
  assert all(cell.get("execution_count") is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_page_has_all_of_its_cells(path):
  page = hook("notebooks").as_page(path)
  for cell in json.loads(path.read_text())["cells"]:
    assert "".join(cell["source"]) in page


@pytest.mark.reference
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs(path, tmp_path, monkeypatch):
  nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[docs]'")
  nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[docs]'")
  notebook = nbformat.read(path, as_version=4)
  for name, value in SIZES[path.stem].items():
    code = next(c for c in notebook.cells if f"\n{name} = " in c.source)
    code.source = re.sub(rf"^{name} = .*$", f"{name} = {value}", code.source, flags=re.MULTILINE)
  monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
  monkeypatch.setenv("MPLBACKEND", "agg")
  monkeypatch.setenv("XLA_FLAGS", xla_flags.FAST)  # and one device
  (tmp_path / "tiny_config.py").write_text(TINY_CONFIG)
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
