"""Settings of one platform: known to this jaxlib, absent elsewhere, and doing what they say."""

import subprocess
import sys

import jax
import pytest

from diffusion_jax.parallel import platforms


def test_the_options_of_a_cpu_are_known_here_and_used():
  options = platforms.compiler_options("cpu")
  assert options == platforms.CPU_OPTIONS
  assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_nothing_is_set_elsewhere(platform):
  assert platforms.compiler_options(platform) == {}


def test_options_that_a_jaxlib_does_not_know_are_left_out(monkeypatch):
  monkeypatch.setattr(platforms, "CPU_OPTIONS", {"xla_cpu_no_such_option": "reduce"})
  platforms._are_known.cache_clear()
  try:
    assert platforms.compiler_options("cpu") == {}
  finally:
    platforms._are_known.cache_clear()


FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from diffusion_jax.parallel import platforms
platforms.run_in_calling_thread()
work = jax.jit(lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real.sum())
work = work.lower(jnp.ones((64, 2**16))).compile()
temporaries = work.memory_analysis().temp_size_in_bytes
platforms.keep_freed_memory(sys.argv[1], temporaries)
x = jnp.ones((64, 2**16))
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  jax.block_until_ready(work(x))
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(temporaries // resource.getpagesize(), *[faults() for _ in range(10)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept_on_a_cpu_only():
  def run(platform):
    command = [sys.executable, "-c", FAULTS, platform]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pages, *faults = map(int, printed.split())
    return pages, faults[-5:]  # the first steps may find that they need a little more

  pages, faults = run("cpu")
  assert sorted(faults)[2] < pages / 10  # the kernel may reclaim pages during a step or two
  pages, faults = run("gpu")
  assert min(faults) >= pages
