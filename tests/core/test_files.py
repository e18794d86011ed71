"""Paths that users give, the cache, and locks: what is refused, and what is done instead."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax import (
  edit,
  encode,
  evaluate,
  features,
  gallery,
  options,
  plan,
  prepare,
  sample,
  stats,
  train,
)
from diffusion_jax.core import bucket_files, files
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.inference import outputs
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.runs.workdir import default_workdir, lock
from diffusion_jax.training import logger
from diffusion_jax.types import UserError


@pytest.mark.parametrize(
  ("program", "flags"),
  [
    (sample, ["--workdir=run", "--out="]),
    (sample, ["--workdir=run", "--out", ""]),
    (sample, ["--workdir=run", "--out=a.npz", "--guide_workdir="]),
    (edit, ["--workdir=run", "--out="]),
    (edit, ["--workdir=run", "--out=a.png", "--images="]),
    (encode, ["--workdir=run", "--out="]),
    (evaluate, ["--out="]),
    (evaluate, ["--samples="]),
    (features, ["--out="]),
    (plan, ["--json="]),
    (prepare, ["records", "pictures", "--out="]),
    (prepare, ["records", ""]),
    (stats, ["--out="]),
  ],
)
def test_a_path_that_is_empty_is_refused_by_its_flag(program, flags):
  """As where a shell variable is not set: it would be the current folder."""
  name = next((f for f in reversed(flags) if f.startswith("--")), "source").rstrip("=")
  with pytest.raises(UserError, match=rf"^{name}= is empty; give a (path|folder) or leave it out"):
    program.parser().parse(flags)


def test_a_tilde_is_the_users_home(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.user_path("~/x") == tmp_path / "x"
  assert files.run_folder("~/runs/a") == tmp_path / "runs" / "a"
  assert files.user_path("a~b/~") == Path("a~b/~")
  with pytest.raises(UserError, match="no such file; give an"):
    Arrays(path="~/a.npz").load("train")
  (tmp_path / "a.npz").write_bytes(b"")
  with pytest.raises(UserError, match=r"a\.npz"):
    Arrays(path="~/a.npz").load("train")


def test_a_home_that_is_not_known_is_said():
  with pytest.raises(UserError, match="~nobody_of_this_name/x: that home folder is not known"):
    files.user_path("~nobody_of_this_name/x")


@pytest.mark.parametrize("text", ["ftp://b/r", "hdfs://b/r", "http://a.b/c", "hdfs:/b/run"])
def test_an_address_is_refused_before_any_folder_is_made(text, call, monkeypatch, root, tmp_path):
  monkeypatch.chdir(tmp_path)
  flags = [f"--config={root}/configs/smoke.py", f"--workdir={text}"]
  code, out, err = call(train.main, *flags)
  assert (code, out) == (2, "")
  assert err.startswith(f"error: {text}: addresses are not supported; give a path on this machine")
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_a_bucket_without_its_library_is_refused_before_anything_is_made(
  call, monkeypatch, tmp_path
):
  def no_library(path):
    raise ImportError("No module named 'gcsfs'")

  monkeypatch.setattr(bucket_files, "remote", no_library)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  code, out, err = call(train.main, "--config=smoke", "--workdir=gs://bucket/run", "--dry_run")
  assert (code, out) == (2, "")
  assert err.startswith("error: gs://bucket/run cannot be used here (its library is missing: pip ")
  assert err.count("\n") == 1
  assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
  ("program", "flags"),
  [
    (sample, "--workdir=memory://b/r --out=a.png"),
    (sample, "--workdir=r --out=memory://b/a.png"),
    (edit, "--workdir=r --out=a.png --images=memory://b/i"),
    (encode, "--workdir=r --out=memory://b/latents"),
    (evaluate, "--workdir=r --out=memory://b/eval"),
    (evaluate, "--samples=memory://b/i --reference=r"),
    (evaluate, "--samples=i --reference=memory://b/r.npz"),
    (evaluate, "--workdir=r --compare=memory://b/other"),
    (evaluate, "--workdir=r --features=memory://b/f.npz"),
    (evaluate, "--workdir=r --dinov2=memory://b/w.npz"),
    (stats, "--images=i --out=o/a.npz --inception=memory://b/w.npz"),
    (stats, "--images=memory://b/i --out=a.npz"),
    (stats, "--images=i --out=memory://b/a.npz"),
    (features, "--config=ddpm_digits --out=memory://b/a.npz"),
    (gallery, "--workdir=memory://b/r"),
    (plan, "--config=ddpm_digits --json=memory://b/a.json"),
    (train, "--data=memory://b/photos"),
    (train, "--config=ddpm_digits --config.data.name=folder --config.data.path=memory://b/photos"),
    (
      train,
      "--config=ddpm_digits --config.data.name=hugging_face --config.data.path=memory://b/saved",
    ),
    (prepare, "shards memory://b/photos --out=o"),
    (options, "--workdir=memory://b/r"),
  ],
)
def test_every_program_refuses_an_address_before_it_makes_anything(
  program, flags, call, monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(program.main, *flags.split())
  assert (code, out) == (2, "")
  assert "memory://b/" in err
  assert "addresses are not supported" in err
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "back\\slash"])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(name, tmp_path, monkeypatch):
  """Also where the strange name is that of a folder above."""
  with pytest.raises(UserError, match="in its path cannot be read again; choose another folder"):
    files.run_folder(f"{tmp_path}/{name}/run")
  (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path / name)
  with pytest.raises(UserError, match="`workdir=run`: checkpoints below a folder with"):
    files.run_folder("run")
  with pytest.raises(UserError, match="`workdir=runs/smoke`: checkpoints below a folder with"):
    default_workdir("configs/smoke.py")


def test_a_config_file_may_have_a_colon_in_its_name(tmp_path, root):
  text = (root / "configs" / "smoke.py").read_text()
  (tmp_path / "a:b.py").write_text(text)
  assert load_experiment(f"{tmp_path}/a:b.py", []).training.num_steps == 20
  assert default_workdir(f"{tmp_path}/a:b.py") == Path("runs/a:b")
  (tmp_path / "a:c").mkdir()
  with_argument = text.replace("def get_config()", "def get_config(text)")
  (tmp_path / "a:c" / "d.py").write_text(with_argument)
  assert load_experiment(f"{tmp_path}/a:c/d.py:word", []).training.num_steps == 20
  assert default_workdir("configs/a.py:word") == Path("runs/a")


def cache_in(environment, **changes):
  """What `cache_folder` gives in a process with this environment, twice: (folders, stderr)."""
  code = "from diffusion_jax.core.files import cache_folder as f; print(f()); print(f())"
  env = {n: v for n, v in {**os.environ, **environment}.items() if v is not None}
  ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                       check=True, **changes)  # fmt: skip
  return ran.stdout.splitlines(), ran.stderr


def test_the_cache_is_where_the_user_keeps_such_things(tmp_path):
  home = {"HOME": str(tmp_path / "h"), "XDG_CACHE_HOME": None}
  assert cache_in(home) == ([str(tmp_path / "h/.cache/diffusion_jax")] * 2, "")
  own = {"XDG_CACHE_HOME": str(tmp_path / "c")}
  assert cache_in(own) == ([str(tmp_path / "c/diffusion_jax")] * 2, "")


def test_a_cache_that_cannot_be_written_is_one_of_temporary_files_and_said_once(tmp_path):
  (tmp_path / "file").write_text("no folder")
  environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
  folders, err = cache_in(environment)
  assert folders == [str(tmp_path / f"diffusion_jax-{os.getuid()}")] * 2
  assert err.count("the user's cache cannot be written") == err.count("\n") == 1
  assert Path(folders[0]).stat().st_mode & 0o077 == 0


def test_a_user_without_a_home_has_a_cache(tmp_path):
  """No HOME and no entry of the user, as in containers that are started with a bare number."""
  if os.getuid():
    pytest.skip("only root can become a user who does not exist")
  tmp_path.chmod(0o777)
  code = (
    "import os; os.setuid(54321)\n"
    "from diffusion_jax.core.files import cache_folder, home; print(cache_folder()); print(home())"
  )
  env = {n: v for n, v in os.environ.items() if n not in ("HOME", "XDG_CACHE_HOME")}
  command = [sys.executable, "-c", "import diffusion_jax.core.files\n" + code]
  ran = subprocess.run(command, env={**env, "TMPDIR": "/tmp"}, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  assert all(line.startswith("/tmp/diffusion_jax-54321") for line in ran.stdout.splitlines())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_trains_all_the_same(number, tmp_path, monkeypatch, capsys):
  def flock(file, operation):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock(tmp_path):
    pass
  assert "this file system has no locks; start no second job there" in capsys.readouterr().out


def test_a_lock_that_another_process_holds_is_held(tmp_path):
  with (tmp_path / "f").open("w") as one, (tmp_path / "f").open("w") as other:
    assert files.try_lock(one) == "taken"
    assert files.try_lock(other) == "held"


def test_any_other_failure_of_a_lock_is_raised(tmp_path, monkeypatch):
  def flock(file, operation):
    raise OSError(errno.EIO, "input or output error")

  monkeypatch.setattr(fcntl, "flock", flock)
  with (tmp_path / "f").open("w") as file, pytest.raises(OSError, match="input or output"):
    files.try_lock(file)


def assert_whole_and_alone(folder, victim, name):
  """The writer has made a file of its own; what the links lead to is as it was."""
  assert victim.read_text() == "precious"
  assert not (folder / name).is_symlink()
  assert (folder / name).stat().st_size > 0


def write_png(path):
  files.write_png(path, np.zeros((4, 4, 1), np.uint8))


def write_npz(path):
  parts = outputs.parts_folder(path)
  parts.mkdir()
  (parts / "whole.npz").symlink_to(path.parent.parent / "victim")
  batch = {"images": np.zeros((1, 4, 4, 1), np.uint8), "labels": np.zeros(1)}
  outputs.write_npz(path, iter([batch]), 1)
  parts.rmdir()


WRITERS = {
  "json": lambda path: files.write_json(path, {"a": 1}),
  "png": write_png,
  "rows": lambda path: logger.Rows(path, 0).scalars(1, {"a": 1.0}),
  "npz": write_npz,
  "text": lambda path: files.write_whole(path, "text"),
}
SUFFIX = {"png": ".png", "npz": ".npz"}


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_written_through_a_link(kind, tmp_path):
  """Neither through one at the file's own place nor through those where half files were made."""
  victim, folder = tmp_path / "victim", tmp_path / "folder"
  folder.mkdir()
  victim.write_text("precious")
  name = f"file{SUFFIX.get(kind, '')}"
  places = [name, f".{name}.part", f".{name}.{os.getpid()}.part", ".file.part.npz",
            f".file.{os.getpid()}.part.npz"]  # fmt: skip
  for place in dict.fromkeys(places):
    (folder / place).symlink_to(victim)
  WRITERS[kind](folder / name)
  assert_whole_and_alone(folder, victim, name)


def test_a_lock_that_is_a_link_is_refused_and_its_end_kept(tmp_path):
  victim = tmp_path / "victim"
  victim.write_text("precious")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / ".lock").symlink_to(victim)
  with (
    pytest.raises(UserError, match=r"\.lock is a link, .* delete it"),
    lock(tmp_path / "run"),
  ):
    pass
  assert victim.read_text() == "precious"


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(tmp_path):
  (tmp_path / "a").write_text("old")

  def fail():
    with files.atomic_write(tmp_path / "a") as file:
      file.write(b"half")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert [p.name for p in tmp_path.iterdir()] == ["a"]
  assert (tmp_path / "a").read_text() == "old"


def test_a_written_file_has_the_users_usual_rights_and_any_name(tmp_path):
  name = "n" * 250
  before = os.umask(0o027)
  try:
    files.write_whole(tmp_path / name, "text")
  finally:
    os.umask(before)
  assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
