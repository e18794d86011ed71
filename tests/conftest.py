"""Tests run on the CPU with 8 virtual devices, whatever the machine has."""

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import costs
import pytest
import tiny
import xla_flags

FLAGS = f"--xla_force_host_platform_device_count=8 {xla_flags.FAST}"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # two workers with two threads each wait for each other
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
# Compiled programs are kept between runs. All workers and processes that tests start share them.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / f"xla-{version('jax')}"
CACHE_LIMIT_BYTES = 2 * 2**30
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_addoption(parser):
  parser.addoption("--costs", type=Path, help="append what each test costs to this file: costs.py")
  parser.addoption("--every", type=int, default=1, help="run every N-th of the tests of each file")


def pytest_configure(config):
  if not hasattr(config, "workerinput"):
    files = [file for file in CACHE.glob("*") if file.is_file()]
    if sum(file.stat().st_size for file in files) > CACHE_LIMIT_BYTES:
      shutil.rmtree(CACHE)
  path = config.getoption("--costs")
  if path and (config.getoption("numprocesses", 0) in (0, None) or hasattr(config, "workerinput")):
    config.pluginmanager.register(costs.Recorder(path.absolute()))


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
  """A test with several markers is of its dearest group: -m costly leaves out what is slow too.

  Tests that start processes come first: they wait for long, and one worker has all of a file.
  """
  costs.leave_out_of_each_file(config, items, config.getoption("--every"))
  expression = config.getoption("markexpr")
  if not expression:
    return

  def belongs(item):
    dearest, *others = [g for g in costs.GROUPS if item.get_closest_marker(g)] or [""]
    return dearest in expression or not any(group in expression for group in others)

  kept = [belongs(item) for item in items]
  config.hook.pytest_deselected(items=[i for i, keep in zip(items, kept, strict=True) if not keep])
  items[:] = [i for i, keep in zip(items, kept, strict=True) if keep]
  items.sort(key=lambda item: item.get_closest_marker("process") is None)


@pytest.fixture(autouse=True, scope="session")
def settings_of_a_process():
  """What a program sets for its process to its end is not set in the one that all tests share."""
  from diffusion_jax import train
  from diffusion_jax.parallel import platforms

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(platforms, "keep_freed_memory", lambda platform, num_bytes: None)
    patch.setattr(train, "run_in_calling_thread", lambda: None)
    yield


MOST_PROGRAMS = 200


@pytest.fixture(autouse=True, scope="module")
def few_loaded_programs():
  """Each program that stays loaded makes every C++ exception dearer, and tracing raises many."""
  yield
  import jax

  if len(jax.devices()[0].client.live_executables()) > MOST_PROGRAMS:
    jax.clear_caches()


@pytest.fixture
def call(capsys, monkeypatch):
  """Runs a binary's main in this process: (main, *flags) -> (exit code, stdout, stderr)."""
  from diffusion_jax.runs import command_line

  def run(main, *flags):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, flags)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      command_line.run_main(main)
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err

  return run


@pytest.fixture
def root():
  """The project's folder."""
  return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
  """A run of configs/smoke.py, trained for a moment: checkpoints of steps 30 and 60."""
  from diffusion_jax import train

  workdir = tmp_path_factory.mktemp("runs") / "smoke"
  config = Path(__file__).parent.parent / "configs" / "smoke.py"
  flags = [
    *tiny.MODEL, "--config.logging.tensorboard=false", "--config.checkpoint.every_steps=30",
    "--config.training.num_steps=60", "--config.optimizer.learning_rate=0.005",
    # little noise, which a network that is hardly trained can carry images to and back from
    "--config.process.beta_start=1e-4", "--config.process.beta_end=0.02",
  ]  # fmt: skip
  train.main([f"--config={config}", f"--workdir={workdir}", *flags])
  return workdir


@pytest.fixture(autouse=True)
def float32():
  """Fail the test that leaves JAX in 64 bits: later tests of its worker would differ."""
  yield
  if "jax" in sys.modules:
    assert not sys.modules["jax"].config.jax_enable_x64
