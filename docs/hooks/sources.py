"""Show files from outside docs/ on the site: documents, and the source files with links.

A page links to any file of the checkout by its path, as a reader of the file would; a fragment is
the name of a function, class or method: [elbo_terms](../diffusion_jax/losses/elbo.py#elbo_terms).
The site links to that line of a page with the file's text. A link to a file or name that is not
there ends the build.
"""

import ast
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
  "BUILD.md": "build.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  "benchmarks/README.md": "benchmarks.md",
  "examples/plugin/README.md": "plugin.md",
}
"""Document of the checkout -> page of the site."""

LINK = re.compile(r"(?P<before>\]\()(?P<path>[^)#\s:]*)(?:#(?P<name>[^)\s]*))?(?P<after>\))")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def links(text: str) -> Iterator[re.Match]:
  """Yield the links of a page that are no addresses, without those inside code."""
  code = [match.span() for match in CODE.finditer(text)]
  for match in LINK.finditer(text):
    if not any(start <= match.start() < end for start, end in code):
      yield match


def target_of(document: str, path: str) -> str:
  """Return the path in the checkout that a document's link leads to."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(document), path))


def line_of(path: Path, name: str) -> int:
  """Return the line of a function, class, method or value of a Python file.

  Args:
    path: the file.
    name: e.g. "elbo_terms" or "ELBO.needs_mean_kl".

  Raises:
    KeyError: the file has no such name.
  """
  body, node = ast.parse(path.read_text()).body, None
  for part in name.split("."):
    node = next((n for n in body if part in _names(n)), None)
    if node is None:
      raise KeyError(f"{path}: no '{name}'")
    body = getattr(node, "body", [])
  return getattr(node, "lineno", 1)


def _names(node: ast.stmt) -> list[str]:
  if isinstance(node, ast.Assign):
    return [t.id for t in node.targets if isinstance(t, ast.Name)]
  if isinstance(node, ast.AnnAssign):
    return [node.target.id] if isinstance(node.target, ast.Name) else []
  return [getattr(node, "name", "")]


def document_of(uri: str) -> str:
  """Return the checkout's document that a page of the site shows."""
  shown = {page: document for document, page in DOCUMENTS.items()}
  return shown.get(uri, f"docs/{uri}")


def page_of(target: str) -> str:
  """Return the site's page of a file of the checkout."""
  if target in DOCUMENTS:
    return DOCUMENTS[target]
  if target == "README.md":
    return "index.md"
  if target.startswith("docs/"):
    return target.removeprefix("docs/")
  return f"source/{target}.md"


def on_files(files, config):
  """Add the documents, and every file that a page links to."""
  from mkdocs.structure.files import File

  texts = {f"docs/{f.src_uri}": f.content_string for f in files.documentation_pages()}
  texts |= {document: (ROOT / document).read_text() for document in DOCUMENTS}
  linked = {
    target_of(document, match["path"])
    for document, text in texts.items()
    for match in links(text)
    if match["path"]
  }
  for document, page in DOCUMENTS.items():
    files.append(File.generated(config, page, content=texts[document]))
  for target in sorted(linked):
    if page_of(target).startswith("source/"):
      files.append(File.generated(config, page_of(target), content=_source_page(target)))
  return files


def _source_page(target: str) -> str:
  path = ROOT / target
  if not path.is_file():
    raise FileNotFoundError(f"a page links to {target}, which is not a file of the checkout")
  language = {".py": "python", ".toml": "toml", ".sh": "bash", ".yaml": "yaml"}
  title = f"---\nsearch:\n  exclude: true\nhide: [toc, navigation]\n---\n\n# {target}\n\n"
  fence = f'~~~~~~ {{.{language.get(path.suffix, "text")} linenums="1"}}'
  return f"{title}{fence}\n{path.read_text()}\n~~~~~~\n"


def on_page_markdown(markdown, page, config, files):
  """Turn the links of a page into links of the site."""
  uri = page.file.src_uri
  if uri.startswith("source/"):
    return markdown
  document, found, done = document_of(uri), [], 0
  for match in links(markdown):
    found.append(markdown[done : match.start()] + _site_link(match, document, uri))
    done = match.end()
  return "".join([*found, markdown[done:]])


def _site_link(match: re.Match, document: str, uri: str) -> str:
  if not match["path"]:
    return match.group()
  target, name = target_of(document, match["path"]), match["name"]
  page = page_of(target)
  if page.startswith("source/") and name:
    name = f"__codelineno-0-{line_of(ROOT / target, name)}"
  path = os.path.relpath(page, posixpath.dirname(uri) or ".").replace(os.sep, "/")
  return f"{match['before']}{path}{'#' + name if name else ''}{match['after']}"


def on_page_content(html, page, config, files):
  """Let the links to lines be checked as those to headings are."""
  if page.file.src_uri.startswith("source/"):
    page.present_anchor_ids |= set(re.findall(r'id="(__codelineno-[0-9-]+)"', html))
  return html
