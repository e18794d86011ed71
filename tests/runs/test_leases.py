"""Jobs on several machines that want the same run in a bucket."""

import pytest
from bucket import other_machine, serve_bucket

from diffusion_jax.core import bucket_files, buckets, files
from diffusion_jax.runs import leases
from diffusion_jax.runs.leases import leased
from diffusion_jax.types import UserError

RUN = "gs://b/runs/a"
NOTE = f"{RUN}/.lease.json"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  monkeypatch.setattr(leases, "BEAT_SEC", 0.02)
  monkeypatch.setattr(leases, "DEAD_AFTER_SEC", 0.4)
  yield from serve_bucket(monkeypatch, tmp_path)


def leave_note(monkeypatch, folder):
  """The note of a job that was killed."""
  with monkeypatch.context() as patch:
    patch.setattr(bucket_files, "delete_file", lambda url: None)
    with leased(folder, "training"):
      pass


def test_a_folder_of_this_machine_needs_no_note(tmp_path):
  with leased(tmp_path, "training"):
    assert not list(tmp_path.iterdir())


def test_the_note_ends_with_the_job(bucket):
  with leased(files.run_folder(RUN), "training"):
    assert NOTE in bucket.objects
  assert NOTE not in bucket.objects


def test_a_living_job_of_another_machine_keeps_the_run(bucket, monkeypatch, tmp_path):
  with leased(files.run_folder(RUN), "training"):
    other_machine(monkeypatch, tmp_path)
    message = "a job of another machine is already training there; stop it or choose another"
    with pytest.raises(UserError, match=message), leased(files.run_folder(RUN), "evaluating"):
      pass


def test_a_dead_job_of_another_machine_is_waited_for(bucket, monkeypatch, tmp_path, capsys):
  leave_note(monkeypatch, files.run_folder(RUN))
  other_machine(monkeypatch, tmp_path)
  with leased(files.run_folder(RUN), "training"):
    pass
  assert "waiting to see whether the job of another machine lives" in capsys.readouterr().out


def test_a_dead_job_of_this_machine_is_not_waited_for(bucket, monkeypatch, capsys):
  leave_note(monkeypatch, files.run_folder(RUN))
  buckets.forget_copies()
  with leased(files.run_folder(RUN), "training"):
    pass
  assert "waiting" not in capsys.readouterr().out


def test_of_two_that_begin_at_once_one_goes_on(bucket, monkeypatch):
  folder = files.run_folder(RUN)
  monkeypatch.setattr(leases, "_beat", lambda *args: bucket_files.write_file(NOTE, b"another's"))
  message = "another job has begun there at the same time"
  with pytest.raises(UserError, match=message), leased(folder, "training"):
    pass
