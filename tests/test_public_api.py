"""`import diffusion_jax as dj`: light, typed, and nothing public but what is documented."""

import ast
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_jax as dj
from diffusion_jax.train_loop import library

INIT = Path(dj.__file__)


def test_the_public_names_are_those_of_the_list():
  assert dir(dj) == sorted(dj.__all__)
  for name in dj.__all__:
    assert getattr(dj, name) is not None


def test_type_checkers_see_the_same_names():
  tree = ast.parse(INIT.read_text())
  block, others = [node for node in tree.body if _asks_for_types(node)]
  assert isinstance(others.test, ast.UnaryOp)  # not TYPE_CHECKING: no name but these
  assert [node.name for node in others.body] == ["__getattr__"]  # pyright: ignore
  typed = {alias.asname for node in block.body for alias in node.names}  # pyright: ignore
  assert typed == set(dj.__all__) - {"__version__"}


def _asks_for_types(node):
  return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@pytest.mark.parametrize("room", dj._ROOMS)
def test_public_names_of_a_room_are_listed_and_there(room):
  module = getattr(dj, room)
  for name in module.__all__:
    assert getattr(module, name) is not None, name
  assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize("room", dj._ROOMS)
def test_a_room_does_not_publish_the_tools_of_another(room):
  module = getattr(dj, room)
  named = {n: getattr(module, n) for n in module.__all__}
  tools = {n: value for n, value in named.items() if inspect.isroutine(value)}
  assert [n for n, tool in tools.items() if tool.__module__.startswith("diffusion_jax.core")] == []


def test_another_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match=r"has no attribute 'trane'\. Did you mean 'train'\?"):
    _ = dj.trane


@pytest.mark.process
def test_importing_is_light():
  """Neither JAX nor any other large package is loaded before it is needed."""
  code = (
    "import sys, diffusion_jax; heavy = {'jax', 'flax', 'optax', 'numpy', 'tensorflow'} & "
    "set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_train_is_the_function_too():
  assert callable(dj.train)
  assert inspect.signature(dj.train) == inspect.signature(library.train)
  shown = pydoc.plain(pydoc.render_doc(dj.train))
  assert "sections: changes per section, as a mapping of fields" in shown
  assert "argv" not in shown
  with pytest.raises(dj.UserError, match=r"no such file|no config"):
    dj.train("no_such_config_here")
