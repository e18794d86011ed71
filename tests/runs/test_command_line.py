"""How a program starts and stops: exit codes, signals, settings, the compilation cache."""

import os
import subprocess
import sys

import pytest
import tiny

import diffusion_jax as dj
from diffusion_jax import train
from diffusion_jax.runs import signals, streams
from diffusion_jax.types import UserError


def fail_with(error):
  def main(argv):
    raise error

  return main


@pytest.mark.parametrize(
  ("error", "code", "out", "err"),
  [
    (UserError("do this"), 2, "", "error: do this\n"),
    (signals.StoppedEarly("saved"), 75, "saved\n", ""),
    (KeyboardInterrupt(), 130, "", "interrupted; nothing new was saved\n"),
    (MemoryError("too much"), 2, "", "error: too much\n"),
    (
      OSError(28, "No space left on device"),
      2,
      "",
      "error: No space left on device; free space, then start",
    ),
    (UserError("x\n\x1b[31m.png is no picture"), 2, "", "error: x\\n\\x1b[31m.png is no picture\n"),
    (RuntimeError("a defect"), 1, "", "RuntimeError: a defect"),
  ],
)
def test_exit_codes(call, error, code, out, err, monkeypatch):
  monkeypatch.setattr(signals, "end_by", lambda number: sys.exit(128 + number))
  found = call(fail_with(error))
  assert (found[0], found[1]) == (code, out)
  assert err in found[2]
  assert ("Traceback" in found[2]) == isinstance(error, RuntimeError)


def test_done_is_0(call):
  assert call(lambda argv: None) == (0, "", "")


@pytest.mark.parametrize("own", [None, "/somewhere/else"])
def test_compiled_programs_are_kept_in_the_users_cache_unless_told_otherwise(tmp_path, own):
  """In a process of its own: the setting is one of the whole process."""
  env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": own or ""}
  code = (
    "import jax; from diffusion_jax.runs import command_line as c; c.enable_compilation_cache();"
    "print(jax.config.jax_compilation_cache_dir)"
  )
  found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
  assert found.stdout.strip() == (own or str(tmp_path / "diffusion_jax" / "xla"))


def test_a_device_whose_memory_is_too_small_is_one_line_with_what_to_try(call):
  def main(argv):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore")

  code, _, err = call(main)
  assert (code, err.count("\n")) == (2, 1)
  assert "try in this order: a smaller --config.training.batch_size" in err


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(platform, root, tmp_path):
  env = {**os.environ, "JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
  command = [sys.executable, "-m", "diffusion_jax.train", *tiny.TINY, f"--workdir={tmp_path}/run"]
  ran = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
  lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
  assert ran.returncode == 2, ran.stderr
  assert len(lines) == 1
  assert lines[0].startswith(f"error: JAX_PLATFORMS={platform}: that device cannot be used here")
  assert "Traceback" not in ran.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_settings_of_the_environment_do_not_change_what_programs_compute(root, tmp_path):
  """A real process: such settings end in tracebacks where code was not written for them."""
  env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict",
         "JAX_NUMPY_RANK_PROMOTION": "raise"}  # fmt: skip
  flags = [*tiny.TINY, "--config.training.num_steps=1", f"--workdir={tmp_path}/run"]
  command = [sys.executable, "-m", "diffusion_jax.train", *flags]
  ran = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  assert "finished: 1 steps" in ran.stdout


def test_a_reader_that_has_gone_is_no_error():
  """`| head -1`: what is printed after it has left goes nowhere, and the program ends well."""
  code = (
    "import sys; from diffusion_jax.runs import command_line as c\n"
    "c.run_main(lambda argv: [print('line', i, flush=True) for i in range(1000)] and None)"
  )
  command = [sys.executable, "-c", code]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process.stdout.readline()
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait() == 0


@pytest.mark.parametrize(
  ("flags", "in_python", "message"),
  [
    (
      ["--config.data.name=arrays"],
      lambda: dj.data.Arrays().load("train"),
      "{data.path=FILE} is missing; give an .npz with images",
    ),
    (
      ["--config.model.num_heads=2", "--config.model.channels_per_head=8"],
      lambda: dj.models.UNet(num_heads=2, channels_per_head=8),
      "give only one of them, {model.num_heads=1} or {model.channels_per_head=None}",
    ),
    (
      ["--config.generative.conditional=false", "--config.guidance.weight=3"],
      lambda: dj.train("smoke", generative={"conditional": False}, guidance={"weight": 3.0}),
      "needs a class-conditional model trained with label dropout; set {guidance.weight=1}",
    ),
  ],
  ids=["data", "models", "generative"],
)
def test_an_error_names_a_flag_on_the_command_line_and_a_field_in_python(
  flags, in_python, message, call, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, _, err = call(train.main, "--config=smoke", f"--workdir={tmp_path}/run", *flags)
  assert (code, err.count("\n")) == (2, 1)
  typed = message.replace("{", "--config.").replace("}", "").replace("None", "none")
  assert typed in err
  with pytest.raises((dj.UserError, ValueError)) as caught:
    in_python()
  assert message.replace("{", "`").replace("}", "`") in str(caught.value)
  assert "--" not in str(caught.value)


def test_lines_and_the_errors_of_other_processes_name_flags(call):
  def main(argv):
    print("warning: set `process.beta_max=20`")
    print("use `fresh=True`", file=sys.stderr)
    streams.label_lines(1, 2)
    print("`data.path=a b`: slow", file=sys.stderr)
    raise UserError("process 0: `workdir=runs/x`: no run there")

  code, out, err = call(main)
  assert (code, out) == (2, "warning: set --config.process.beta_max=20\n")
  assert err == (
    "use --fresh\n"
    "[1 of 2] --config.data.path='a b': slow\n"
    "[1 of 2] error: process 0: --workdir=runs/x: no run there\n"
  )
