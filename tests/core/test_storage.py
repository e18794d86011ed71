"""Failures of storage are one line with path, room and what to do, whatever wraps them."""

import errno
import os
import types
from pathlib import Path

import pytest
from etils import epath

from diffusion_jax.checkpoints.store import CheckpointError, explain_failed_save
from diffusion_jax.core import storage
from diffusion_jax.core.files import naming
from diffusion_jax.runs.command_line import users_part
from diffusion_jax.types import UserError

ORBAX = (
  'RESOURCE_EXHAUSTED: Error writing "ema.kernel/0.0" in OCDBT database at local file "{folder}/": '
  "Failed writing: \"{folder}/d/75\": Failed to write 4042 bytes to file 7: {words} "
  "[os_error_code='{number}']"
)  # fmt: skip


def raised(function):
  with pytest.raises(Exception) as caught:  # noqa: PT011
    function()
  return caught.value


def from_cause(error):
  def run():
    raise RuntimeError("saving failed") from error

  return raised(run)


def from_context(error):
  def run():
    try:
      raise error
    finally:
      raise KeyError("while tidying up")

  return raised(run)


def in_group(error):
  return ExceptionGroup("two tasks failed", [ValueError("another"), error])


def in_text(error):
  return ValueError(
    ORBAX.format(folder=error.filename, words=error.strerror, number=error.errno)
  )  # with no OSError anywhere, as tensorstore raises it


def in_words(error):
  return ValueError(f"writing {error.filename} failed: {error.strerror}")


WRAPS = [lambda e: e, from_cause, from_context, in_group, in_text, in_words]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("number", storage.ADVICE)
def test_each_error_is_found_in_whatever_wraps_it(wrap, number, tmp_path):
  path = tmp_path / "not" / "there"
  line = storage.explain_storage(wrap(OSError(number, os.strerror(number), str(path))))
  assert line.startswith(f"{os.strerror(number)}: {path}")
  assert " free" in line
  assert storage.ADVICE[number] in line
  assert line.endswith("start the same command again")
  assert "\n" not in line


def test_other_errors_are_not_taken_for_it():
  def hidden():
    try:
      raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
      raise ValueError("its text is wrong") from None

  for error in (ValueError("a bug"), raised(hidden), FileNotFoundError(2, "no", "/x"), UserError()):
    assert storage.explain_storage(error) is None


def test_an_error_that_names_itself_as_its_cause_ends_the_search():
  error = ValueError("round and round")
  error.__cause__ = error
  assert storage.explain_storage(error) is None


def test_another_process_is_told_the_number_of_any_error():
  for number in (errno.ENOSPC, errno.ENOENT, errno.ENOTDIR):
    said = storage.numbered_reason(OSError(number, os.strerror(number), "/runs/x"))
    found = storage.find(RuntimeError(said), every=True)
    assert found == (number, Path("/runs/x"))
  assert storage.numbered_reason(ValueError("odd")) == "odd"


def test_numpys_short_write_is_a_full_disk():
  assert storage.find(OSError("4096 requested and 2048 written")).number == errno.ENOSPC


def test_room_and_files_are_those_of_the_file_system(tmp_path, monkeypatch):
  full = types.SimpleNamespace(f_bavail=3, f_blocks=2_000_000, f_frsize=1000, f_files=9, f_favail=0)
  monkeypatch.setattr(os, "statvfs", lambda path: full)
  line = storage.explain_storage(OSError(errno.ENOSPC, "No space", str(tmp_path)))
  assert f"{tmp_path} (3.0 kB of 2.0 GB free, and no more files fit); free space there" in line


@pytest.mark.parametrize(
  ("num_bytes", "words"),
  [(0, "0 B"), (999, "999 B"), (4_100_000, "4.1 MB"), (1_500_000_000_000, "1,500.0 GB")],
)
def test_sizes_in_words(num_bytes, words):
  assert storage.size(num_bytes) == words


def test_a_file_that_was_open_is_named(tmp_path):
  with pytest.raises(OSError, match="part"), naming(tmp_path / "part"):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")
  with pytest.raises(OSError, match="'own'"), naming(tmp_path / "part"):
    raise OSError(errno.EDQUOT, "Disk quota exceeded", "own")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ESTALE,
                                    errno.EIO, errno.EROFS, errno.ENOENT])  # fmt: skip
def test_a_save_that_failed_is_one_line_and_says_what_is_whole(number, tmp_path, call):
  (tmp_path / "20").mkdir()
  part = tmp_path / "30.orbax-checkpoint-tmp" / "state"

  def main(argv):
    cause = in_text(OSError(number, os.strerror(number), str(part)))
    raise CheckpointError("writing a checkpoint failed", tmp_path, 7_900_000) from cause

  code, out, err = call(main)
  assert (code, out) == (2, "")
  assert err.startswith(f"error: saving 7.9 MB failed: {os.strerror(number)}: {tmp_path} (")
  assert err.endswith("start the same command again; step 20 is intact there\n")
  assert err.count("\n") == 1


def test_a_save_that_failed_for_another_reason_keeps_its_traceback(tmp_path, call):
  def main(argv):
    raise CheckpointError("writing a checkpoint failed", Path(tmp_path), 0) from KeyError("bug")

  code, _, err = call(main)
  assert code == 1
  assert "Traceback" in err


@pytest.mark.parametrize(
  "error",
  [
    ValueError("Error reading gs://b/r/5/state: UNAVAILABLE: All 32 retry attempts failed: CURL"),
    ValueError("PERMISSION_DENIED: Forbidden [http_response_code='403']"),
    ConnectionResetError("the connection was closed"),
    type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("403"),
  ],
)
def test_a_bucket_out_of_reach_is_no_damage(error):
  assert storage.spares_content(error)
  assert "a bucket could not be reached or used (" in str(users_part(error))


def test_damage_in_a_bucket_is_damage():
  for text in ("NOT_FOUND: Not Found [http_response_code='404']", "DATA_LOSS: checksum"):
    assert not storage.spares_content(ValueError(text))


def test_a_failed_save_into_a_bucket_is_one_line():
  text = "saving a checkpoint failed: ABORTED: All 32 retry attempts failed: CURL error"
  where = epath.Path("gs://b/r/checkpoints")
  line = str(explain_failed_save(CheckpointError(text, where, 10_000)))
  assert line.startswith("saving 10.0 kB failed: gs://b/r/checkpoints cannot be written (")
  assert "\n" not in line
