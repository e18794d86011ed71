"""Every link of every page leads somewhere, and each formula to its function and its test."""

import re

import pytest
from site_hooks import ROOT, hook

sources = hook("sources")
PAGES = sorted(
  [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in [*sources.DOCUMENTS, "README.md"])]
)
THEORY = (ROOT / "docs" / "theory.md").read_text()


def targets(document: str, text: str) -> list[tuple[str, str]]:
  """Return the file and the name that each link of a document leads to."""
  found = [(match["path"], match["name"] or "") for match in sources.links(text)]
  return [(sources.target_of(document, path), name) for path, name in found if path]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_to_names_in_them(page):
  for target, name in targets(str(page.relative_to(ROOT)), page.read_text()):
    if target.startswith(("docs/reference/config/", "docs/notebooks/")):
      continue  # made when the site is built, which checks them
    elif target in (f"docs/{made}" for made in sources.DOCUMENTS.values()):
      continue
    assert (ROOT / target).exists(), f"{page.name}: {target}"
    if name and target.endswith(".py"):
      assert sources.line_of(ROOT / target, name) > 0


def formulas() -> list[tuple[str, str]]:
  """Return each displayed formula of the theory with the text up to the next formula or heading."""
  parts = re.split(r"^\$\$\n(.*?)^\$\$\n", THEORY, flags=re.DOTALL | re.MULTILINE)
  return [(tex, after.split("\n## ")[0]) for tex, after in zip(parts[1::2], parts[2::2])]  # noqa: B905


@pytest.mark.parametrize("formula", formulas(), ids=lambda f: f[0].split("\n")[0][:30])
def test_each_formula_names_its_function_and_a_test_that_proves_it(formula):
  _, after = formula
  found = targets("docs/theory.md", after)
  assert any(target.startswith("diffusion_jax/") for target, _ in found)
  tests = [name for target, name in found if target.startswith("tests/")]
  assert tests
  assert all(name.startswith("test_") for name in tests)


def test_the_identity_comes_first():
  first = re.sub(r"\s+", " ", formulas()[0][0])
  assert r"\log p(x) =" in first
  assert r"\text{ELBO}" in first
  assert r"\mathrm{KL}\big(q(z \mid x) \,\|\, p(z \mid x)\big)" in first


def test_a_name_that_is_not_there_is_noticed(tmp_path):
  path = tmp_path / "a.py"
  path.write_text("X = 1\n\n\nclass A:\n  y: int = 2\n\n  def f(self):\n    pass\n")
  assert [sources.line_of(path, n) for n in ("X", "A", "A.y", "A.f")] == [1, 4, 5, 7]
  for wrong in ("B", "A.g", "f"):
    with pytest.raises(KeyError, match=wrong.split(".")[-1]):
      sources.line_of(path, wrong)


def test_links_in_code_are_code():
  text = "[a](b.md#c)\n```\n[d](e.md)\n```\n`[f](g.md)` [h](https://x.y)\n[i](#j)"
  assert [(m["path"], m["name"]) for m in sources.links(text)] == [("b.md", "c"), ("", "j")]
