"""How a binary starts and stops: exit codes, signals, the folder, the compilation cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from diffusion_jax.core import files
from diffusion_jax import prepare
from diffusion_jax.runs import provenance, command_line, signals
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
    (KeyboardInterrupt(), 130, "", "interrupted; nothing was saved that was not saved before\n"),
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
  assert "in this order: a smaller --config.training.batch_size" in err


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


def test_old_runs_are_moved_aside_under_free_names(tmp_path):
  for number in (1, 2):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json").touch()
    (tmp_path / "run" / "file").write_text(str(number))
    command_line.prepare_workdir(tmp_path / "run", fresh=True)
    assert (tmp_path / f"run.old{number}" / "file").read_text() == str(number)
  assert not any((tmp_path / "run").iterdir())


def test_a_linked_folder_stays_a_link_and_its_run_is_moved_aside_where_it_lies(tmp_path):
  """The link leads to the storage that the user wants runs on; what it leads to is kept."""
  storage, link = tmp_path / "storage" / "run", tmp_path / "run"
  link.symlink_to(storage)  # it leads nowhere yet
  command_line.prepare_workdir(link, fresh=False)
  assert storage.is_dir()
  (storage / "config.json").write_text("old")
  (tmp_path / "storage" / "run.old1").symlink_to("nowhere")  # no free name
  command_line.prepare_workdir(link, fresh=True)
  assert link.is_symlink()
  assert not any(storage.iterdir())
  assert (tmp_path / "storage" / "run.old2" / "config.json").read_text() == "old"
  assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "storage"]


def test_a_run_around_the_current_folder_is_not_moved_aside(tmp_path, monkeypatch):
  (tmp_path / "run" / "samples").mkdir(parents=True)
  (tmp_path / "run" / "config.json").touch()
  monkeypatch.chdir(tmp_path / "run" / "samples")
  with pytest.raises(UserError, match="the current folder"):
    command_line.prepare_workdir(Path(".."), fresh=True)
  assert (tmp_path / "run" / "config.json").exists()


def test_what_is_no_run_is_not_moved_aside(tmp_path, monkeypatch):
  (tmp_path / "thesis").touch()
  with pytest.raises(UserError, match="holds no run; choose another --workdir"):
    command_line.prepare_workdir(tmp_path, fresh=True)
  (tmp_path / "config.json").touch()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="the current folder"):
    command_line.prepare_workdir(Path(), fresh=True)
  assert (tmp_path / "thesis").exists()


def test_a_run_that_is_being_trained_is_not_moved_aside(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").touch()
  with command_line.lock(tmp_path / "run"), pytest.raises(UserError, match="is already training there"):
    command_line.prepare_workdir(tmp_path / "run", fresh=True)
  assert (tmp_path / "run" / "config.json").exists()


def test_an_empty_workdir_is_refused():
  with pytest.raises(UserError, match="--workdir= is empty"):
    files.run_folder("")


@pytest.mark.parametrize("content", ["{", "[]", '{"generative": 3}'])
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    command_line.stored_config(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"starts": 3}', "{"])
def test_a_damaged_environment_is_begun_anew(tmp_path, content):
  (tmp_path / "environment.json").write_text(content)
  provenance.write_environment(tmp_path)
  assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 1


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


def test_every_start_is_recorded(tmp_path):
  for _ in range(2):
    provenance.write_environment(tmp_path)
  starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
  assert len(starts) == 2
  assert starts[0]["packages"]["jax"] == jax.__version__
  assert starts[0]["device_kind"] == "cpu"


@pytest.mark.parametrize(
  "held_out",
  [None, "{", "{}", "[]", '{"step": null}', '{"step": 19}', '{"step": 21}', '{"step": 20}'],
)
def test_a_run_is_finished_once_its_last_figures_are_written(tmp_path, held_out):
  if held_out is not None:
    (tmp_path / "held_out.json").write_text(held_out)
  assert command_line.is_finished(tmp_path, 20, 20) == (held_out == '{"step": 20}')
  assert not command_line.is_finished(tmp_path, 19, 20)


@pytest.mark.parametrize("content", ["{", "[]", '{"step": null}', '{"step": 20}', '{"step": 21}'])
def test_the_mark_of_a_later_step_does_not_outlive_a_return_to_an_earlier_one(tmp_path, content):
  """Its checkpoint could not be saved: the step is taken and shown again."""
  file = tmp_path / "held_out.json"
  file.write_text(content)
  command_line.drop_later_final(tmp_path, 20)
  assert file.exists() == (content != '{"step": 21}')


def test_prepare_names_what_it_does_not_know(call, tmp_path, monkeypatch):
  code, _, err = call(prepare.main, "no_such_set", f"--data_dir={tmp_path}")
  assert code == 2
  assert "no_such_set: tensorflow-datasets has no such set" in err
  monkeypatch.setattr(prepare, "find_spec", lambda name: None)
  code, _, err = call(prepare.main, "imagenet_v2", f"--data_dir={tmp_path}")
  assert code == 2
  assert "imagenet_v2 needs TensorFlow: pip install 'diffusion_jax[tfds-prepare]'" in err


def test_prepare_takes_no_config(call):
  code, _, err = call(prepare.main, "mnist", "--config.data.data_dir=x")
  assert code == 2
  assert "--config.data.data_dir=x: prepare takes no config" in err


def test_prepare_makes_a_standard_set(call, tmp_path, monkeypatch):
  made = []
  monkeypatch.setattr(prepare.standard, "prepare", lambda *args: made.append(args) or "the folder")
  code, out, _ = call(prepare.main, "mnist", f"--data_dir={tmp_path}")
  assert (code, out) == (0, "prepared the folder\n")
  assert made == [("mnist", tmp_path)]
