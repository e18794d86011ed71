"""Compiled programs in JAX's cache: a damaged one is made anew once, not at every start."""

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache

from diffusion_jax.parallel import compilation_cache as own_cache


@pytest.fixture
def entry(tmp_path, monkeypatch):
  """Compiles a program into a cache of its own: call it to start anew; gives the entry's file."""
  before = jax.config.jax_compilation_cache_dir
  read = compilation_cache.get_executable_and_time
  monkeypatch.setattr(compilation_cache, "get_executable_and_time", read)  # put back afterwards
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  compilation_cache.reset_cache()
  own_cache.replace_damaged_entries()

  def start():
    jax.clear_caches()

    def some_program(x):
      return jnp.sin(x) * 3.0

    assert jax.jit(some_program)(0.0) == 0.0
    (file,) = tmp_path.glob("jit_some_program-*-cache")
    return file

  yield start
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_an_entry_that_was_cut_short_is_replaced(length, entry, capsys, recwarn):
  file = entry()
  whole = file.read_bytes()
  file.write_bytes(whole[:length])
  assert len(entry().read_bytes()) > 0.9 * len(whole)  # a time in it may differ
  said = capsys.readouterr().err
  assert said.startswith("the compiled program jit_some_program in the cache is damaged (")
  assert said.count("\n") == 1
  entry()
  assert not capsys.readouterr().err  # the new one is read
  assert not recwarn.list


def test_an_entry_is_kept_where_the_storage_fails(entry):
  file = entry()
  file.unlink()
  file.mkdir()  # reading it is an error of the system
  with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
    entry()
  assert file.is_dir()


def test_a_cache_that_is_only_read_is_left_to_jax(entry, monkeypatch):
  file = entry()
  file.write_bytes(b"half")
  monkeypatch.setattr(own_cache, "_remove", lambda key: False)
  with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
    entry()
  assert file.read_bytes() == b"half"
