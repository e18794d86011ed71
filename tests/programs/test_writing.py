"""Two commands at once never write one output: the second is refused and spoils nothing."""

import contextlib
import fcntl
import json

import pytest

from diffusion_jax import edit, encode, sample
from diffusion_jax.core import files
from diffusion_jax.data import unfinished
from diffusion_jax.inference import outputs
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import UserError


@contextlib.contextmanager
def held(file):
  """Another command's lock."""
  with file.open("w") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    yield


@pytest.mark.parametrize("name", ["a.npz", "a.png", "folder"])
def test_the_second_of_two_is_refused_until_the_first_is_done(tmp_path, name):
  out = tmp_path / name
  with outputs.writing(out):
    with (
      pytest.raises(UserError, match=f"^another command is writing --out={out}; wait for it or"),
      outputs.writing(out),
    ):
      pass
    assert outputs.lock_file(out).is_file()
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt), outputs.writing(out):
      raise KeyboardInterrupt
    assert not outputs.lock_file(out).exists()
    outputs.lock_file(out).touch()  # as a process that was killed leaves it


@pytest.mark.parametrize(
  ("program", "flags", "name"),
  [
    (sample, [], "a.npz"),
    (sample, [], "folder"),
    (edit, ["--inpaint=left"], "a.png"),
    (encode, [], "latents"),
  ],
)
def test_each_program_refuses_before_it_touches_a_part(tmp_path, root, call, program, flags, name):
  (tmp_path / "run").mkdir()
  config = load_experiment(str(root / "configs/autoencoder_digits.py"), []).to_dict()
  (tmp_path / "run/config.json").write_text(json.dumps(config))
  out, is_latents = tmp_path / name, program is encode
  part = unfinished.part_folder(out) if is_latents else outputs.parts_folder(out)
  part.mkdir(parents=True)
  (part / ".half.part").touch()  # what the other is writing
  with held(unfinished.latents_lock_file(out) if is_latents else outputs.lock_file(out)):
    code, _, err = call(program.main, f"--workdir={tmp_path / 'run'}", f"--out={out}", *flags)
  assert (code, err) == (
    2, f"error: another command is writing --out={out}; wait for it or choose another --out\n"
  )  # fmt: skip
  assert (part / ".half.part").is_file()


def test_a_lock_on_a_file_that_has_been_deleted_meanwhile_is_none(tmp_path, monkeypatch):
  """The first command ends between the second's opening of the file and its lock."""
  file, calls, try_lock = tmp_path / ".a.lock", [], files.try_lock

  def late(opened):
    calls.append(opened)
    if len(calls) == 1:
      file.unlink()
    return try_lock(opened)

  monkeypatch.setattr(files, "try_lock", late)
  with files.locked(file) as outcome:
    assert (outcome, len(calls)) == ("taken", 2)
    with files.locked(file) as other:
      assert other == "held"
  assert not file.exists()


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(files, "try_lock", lambda file: "not supported")
  with outputs.writing(tmp_path / "a.npz"):
    pass
  assert "this file system has no locks" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())


def test_what_lies_in_the_way_of_the_lock_is_one_line(tmp_path):
  (tmp_path / ".a.npz.lock").mkdir()
  with (
    pytest.raises(UserError, match=r"a.npz.lock cannot be written \(Is a directory\); delete it"),
    outputs.writing(tmp_path / "a.npz"),
  ):
    pass
