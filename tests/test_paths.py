"""Paths that users give, the cache, and locks: what is refused, and what is done instead."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax import paths, runs, train
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.types import UserError


def test_a_tilde_is_the_users_home(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert paths.user_path("~/x") == tmp_path / "x"
  assert paths.run_folder("~/runs/a") == tmp_path / "runs" / "a"
  assert paths.user_path("a~b/~") == Path("a~b/~")
  with pytest.raises(UserError, match="no such file; give an"):
    Arrays(path="~/a.npz").load("train")
  (tmp_path / "a.npz").write_bytes(b"")
  with pytest.raises(UserError, match=r"a\.npz"):
    Arrays(path="~/a.npz").load("train")


def test_a_home_that_is_not_known_is_said():
  with pytest.raises(UserError, match="~nobody_of_this_name/x: that home folder is not known"):
    paths.user_path("~nobody_of_this_name/x")


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://b/r", "http://a.b/c", "gs:/bucket/run"])
def test_an_address_is_refused_before_any_folder_is_made(text, call, monkeypatch, root, tmp_path):
  monkeypatch.chdir(tmp_path)
  flags = [f"--config={root}/configs/smoke.py", f"--workdir={text}"]
  code, out, err = call(train.main, *flags)
  assert (code, out) == (2, "")
  assert err.startswith(f"error: {text}: addresses are not supported, only folders and files")
  assert err.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "back\\slash"])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(name, tmp_path, monkeypatch):
  """Also where the strange name is that of a folder above."""
  with pytest.raises(UserError, match="in its path cannot be read again; choose another folder"):
    paths.run_folder(f"{tmp_path}/{name}/run")
  (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path / name)
  with pytest.raises(UserError, match="--workdir=run: checkpoints below a folder with"):
    paths.run_folder("run")
  with pytest.raises(UserError, match="--workdir=runs/smoke: checkpoints below a folder with"):
    runs.default_workdir("configs/smoke.py")


def test_a_config_file_may_have_a_colon_in_its_name(tmp_path, root):
  text = (root / "configs" / "smoke.py").read_text()
  (tmp_path / "a:b.py").write_text(text)
  assert runs.load_experiment(f"{tmp_path}/a:b.py", []).training.num_steps == 20
  assert runs.default_workdir(f"{tmp_path}/a:b.py") == Path("runs/a:b")
  (tmp_path / "a:c").mkdir()
  with_argument = text.replace("def get_config()", "def get_config(text)")
  (tmp_path / "a:c" / "d.py").write_text(with_argument)
  assert runs.load_experiment(f"{tmp_path}/a:c/d.py:word", []).training.num_steps == 20
  assert runs.default_workdir("configs/a.py:word") == Path("runs/a")


def cache_in(environment, **changes):
  """What `cache_folder` gives in a process with this environment, twice: (folders, stderr)."""
  code = "from diffusion_jax.paths import cache_folder as f; print(f()); print(f())"
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
    "from diffusion_jax.paths import cache_folder, home; print(cache_folder()); print(home())"
  )
  env = {n: v for n, v in os.environ.items() if n not in ("HOME", "XDG_CACHE_HOME")}
  command = [sys.executable, "-c", "import diffusion_jax.paths\n" + code]
  ran = subprocess.run(command, env={**env, "TMPDIR": "/tmp"}, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr
  assert all(line.startswith("/tmp/diffusion_jax-54321") for line in ran.stdout.splitlines())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_trains_all_the_same(number, tmp_path, monkeypatch, capsys):
  def flock(file, operation):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with runs.lock(tmp_path):
    pass
  assert "this file system has no locks; start no second job there" in capsys.readouterr().out


def test_a_lock_that_another_process_holds_is_held(tmp_path):
  with (tmp_path / "f").open("w") as one, (tmp_path / "f").open("w") as other:
    assert paths.try_lock(one) == "taken"
    assert paths.try_lock(other) == "held"


def test_any_other_failure_of_a_lock_is_raised(tmp_path, monkeypatch):
  def flock(file, operation):
    raise OSError(errno.EIO, "input or output error")

  monkeypatch.setattr(fcntl, "flock", flock)
  with (tmp_path / "f").open("w") as file, pytest.raises(OSError, match="input or output"):
    paths.try_lock(file)
