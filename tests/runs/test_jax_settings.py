"""JAX's settings during a call of the library, and the user's before and after it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.runs.jax_settings import jax_as_written
from diffusion_jax.types import UserError


def is_x64():
  return jnp.asarray(np.float64(1)).dtype == np.float64


def is_x64_in_a_new_thread():
  with ThreadPoolExecutor(1) as pool:
    return pool.submit(is_x64).result()


@pytest.fixture(autouse=True)
def as_before():
  yield
  assert not is_x64_in_a_new_thread()
  assert not is_x64()


def test_a_users_context_ends_with_its_block_and_does_not_reach_a_call():
  with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
    with jax_as_written():
      assert not is_x64()
      assert not is_x64_in_a_new_thread()
      assert (jnp.ones((2, 3)) + jnp.ones(3)).shape == (2, 3)
    assert is_x64()
    assert not is_x64_in_a_new_thread()
    with pytest.raises(ValueError, match="rank_promotion"):
      jnp.ones((2, 3)) + jnp.ones(3)


def fail_in_a_call():
  with jax_as_written():
    with jax_as_written():
      assert not is_x64_in_a_new_thread()
    assert not is_x64()  # the inner call has not ended the outer one
    assert not is_x64_in_a_new_thread()
    raise UserError("a field")


def test_a_users_setting_of_the_process_is_as_before_even_after_an_error():
  jax.config.update("jax_enable_x64", True)
  try:
    with pytest.raises(UserError):
      fail_in_a_call()
    assert is_x64()
    assert is_x64_in_a_new_thread()
  finally:
    jax.config.update("jax_enable_x64", False)


def test_calls_that_overlap_in_two_threads():
  second_is_in, first_is_out = threading.Event(), threading.Event()

  def second():
    with jax_as_written():
      second_is_in.set()
      assert first_is_out.wait(60)
      return is_x64(), is_x64_in_a_new_thread()

  jax.config.update("jax_enable_x64", True)
  try:
    with ThreadPoolExecutor(1) as pool:
      with jax_as_written():
        result = pool.submit(second)
        assert second_is_in.wait(60)
      first_is_out.set()
      assert result.result() == (False, False)
    assert is_x64()
    assert is_x64_in_a_new_thread()
  finally:
    jax.config.update("jax_enable_x64", False)
