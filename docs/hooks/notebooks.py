"""Show the notebooks of examples/notebooks/ as pages: their text and code, without outputs."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


def as_page(path: Path) -> str:
  """Return a notebook as Markdown."""
  cells = json.loads(path.read_text())["cells"]
  parts = []
  for cell in cells:
    source = "".join(cell["source"])
    parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
  title, *rest = parts
  start = f"The notebook is `examples/notebooks/{path.name}`; a test runs it."
  return "\n\n".join([title, start, *rest]) + "\n"


def on_files(files, config):
  """Add a page for each notebook."""
  from mkdocs.structure.files import File

  for path in sorted(FOLDER.glob("*.ipynb")):
    files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_page(path)))
  return files
