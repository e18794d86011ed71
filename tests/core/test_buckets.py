"""Copies of a bucket's files: what is downloaded, uploaded, kept and refused."""

import shutil
from unittest.mock import Mock

import numpy as np
import pytest
from bucket import other_machine, serve_bucket

from diffusion_jax.checkpoints import step_folders
from diffusion_jax.core import bucket_copy, bucket_files, buckets, files
from diffusion_jax.data.finding import find_data
from diffusion_jax.runs import resumable
from diffusion_jax.runs.workdir import prepare_workdir
from diffusion_jax.types import UserError

RUN = "gs://b/runs/a"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  yield from serve_bucket(monkeypatch, tmp_path)


def write_step(folder, step, content="weights"):
  for name in (
    "state/d/1",
    "state/_METADATA",
    "meta/metadata",
    "_CHECKPOINT_METADATA",
  ):
    path = folder / "checkpoints" / str(step) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content} {step}")


def killed(*args):
  raise OSError("killed")


def test_files_go_up_and_come_down_on_another_machine(bucket, monkeypatch, tmp_path):
  folder = files.run_folder(RUN)
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  (folder / ".lock").write_text("1")
  write_step(folder, 5)
  assert buckets.upload_changes() is None
  assert bucket.names(RUN) == [
    "checkpoints/5/_CHECKPOINT_METADATA", "checkpoints/5/commit_success.txt",
    "checkpoints/5/meta/commit_success.txt", "checkpoints/5/meta/metadata",
    "checkpoints/5/state/_METADATA", "checkpoints/5/state/commit_success.txt",
    "checkpoints/5/state/d/1", "config.json",
  ]  # fmt: skip
  assert bucket.written[-1].endswith("5/commit_success.txt")  # by which the checkpoint is whole
  with (folder / "metrics.jsonl").open("a") as rows:
    for i in range(2):
      rows.write(f"{i}\n")
      rows.flush()
      buckets.upload_changes()
  other_machine(monkeypatch, tmp_path)
  assert files.run_folder(RUN) != folder
  assert (files.run_folder(RUN) / "metrics.jsonl").read_text() == "0\n1\n"
  assert (files.run_folder(RUN) / "checkpoints/5/state/d/1").read_text() == "weights 5"


def test_only_changes_are_transferred(bucket):
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  buckets.upload_changes()
  before = len(bucket.written)
  buckets.forget_copies()
  assert files.run_folder(RUN) == folder
  assert buckets.upload_changes() is None
  assert len(bucket.written) == before


def test_a_checkpoint_that_is_deleted_is_deleted_in_the_bucket(bucket):
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  write_step(folder, 6)
  buckets.upload_changes()
  shutil.rmtree(folder / "checkpoints/5")
  buckets.upload_changes()
  assert {name.split("/")[1] for name in bucket.names(RUN)} == {"6"}


def test_a_checkpoint_that_another_machine_deleted_is_deleted_here(bucket, monkeypatch, tmp_path):
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  other_machine(monkeypatch, tmp_path)
  shutil.rmtree(files.run_folder(RUN) / "checkpoints/5")
  write_step(files.run_folder(RUN), 6)
  other_machine(monkeypatch, tmp_path, "machine1")
  assert [path.name for path in (files.run_folder(RUN) / "checkpoints").iterdir()] == ["6"]


def test_a_reader_gets_what_a_run_has_saved_meanwhile(bucket):
  folder = files.run_folder(RUN)
  for name in ("state/d/1", "meta/metadata"):
    bucket.put(f"{RUN}/checkpoints/7/{name}", b"1")
  buckets.refresh_copy(folder / "checkpoints")
  assert not folder.exists()  # its mark is missing
  bucket.put(f"{RUN}/checkpoints/7/commit_success.txt", b"1")
  buckets.refresh_copy(folder / "checkpoints")
  assert (folder / "checkpoints/7/state/d/1").exists()


def test_a_download_that_was_killed_begins_anew(bucket, monkeypatch, tmp_path, capsys):
  write_step(files.run_folder(RUN), 5)
  other_machine(monkeypatch, tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(buckets.Copy, "store_known", killed)
    with pytest.raises(UserError, match="killed"):
      files.run_folder(RUN)
  assert (files.run_folder(RUN) / "checkpoints/5/meta/metadata").exists()
  assert "changed elsewhere" not in capsys.readouterr().out


def test_a_download_that_was_killed_goes_on_after_what_had_arrived(bucket, monkeypatch, tmp_path):
  for i in range(4):
    bucket.put(f"gs://b/set/{i}", b"%d" % i)
  monkeypatch.setattr(bucket_copy, "STORE_SEC", 0.0)
  monkeypatch.setattr(bucket_files, "THREADS", 1)
  asked, fetch = [], bucket_files.fetch_file

  def fail_at_2(url, target, count):
    asked.append(url[-1])
    if asked == ["0", "1", "2"]:
      (target.parent / f".{target.name}.0123456789abcdef.part").write_bytes(b"a half")
      raise OSError("killed")
    return fetch(url, target, count)

  monkeypatch.setattr(bucket_files, "fetch_file", fail_at_2)
  with pytest.raises(UserError, match="killed"):
    files.bucket_path("gs://b/set")
  folder = files.bucket_path("gs://b/set")
  assert asked.count("0") == asked.count("1") == 1
  assert [path.name for path in sorted(folder.iterdir())] == ["0", "1", "2", "3"]


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_downloaded(bucket, monkeypatch):
  bucket.put("gs://b/set/train", bytes(2000))
  monkeypatch.setattr(bucket_copy.shutil, "disk_usage", lambda path: Mock(free=1000))
  with pytest.raises(UserError, match=r"gs://b/set: its copy needs 2.0 kB, and .* has 1.0 kB left"):
    files.bucket_path("gs://b/set")
  monkeypatch.setattr(bucket_copy.shutil, "disk_usage", lambda path: Mock(free=3000))
  assert [path.name for path in files.bucket_path("gs://b/set").iterdir()] == ["train"]


def test_what_says_that_a_set_is_whole_is_uploaded_last(bucket, monkeypatch):
  folder = files.bucket_path("gs://b/set")
  folder.mkdir()
  names = ["train-00000-of-00002.array_record", "train-00001-of-00002.array_record"]
  for name in (*names, "train.shards.json.part", f"{names[1]}.part"):
    (folder / name).write_text(name)
  buckets.upload_changes()
  assert bucket.written.index("gs://b/set/train.shards.json.part") == 0
  assert bucket.names("gs://b/set") == [*names, "train.shards.json.part"]
  (folder / "train.shards.json.part").rename(folder / "train.shards.json")
  for name in ("a/latents.json", "a/z.npy", "b/1.0.0/dataset_info.json", "b/1.0.0/z"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
  buckets.upload_changes()
  marks = {"train.shards.json", "a/latents.json", "b/1.0.0/dataset_info.json"}
  assert {name.removeprefix("gs://b/set/") for name in bucket.written[-3:]} == marks
  assert "train.shards.json.part" not in bucket.names("gs://b/set")


def test_an_upload_that_was_killed_is_known_as_ones_own(bucket, monkeypatch, capsys):
  """Its files are in the bucket, one has grown since, and nothing was remembered."""
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  (folder / "metrics.jsonl").write_text("1\n")
  with monkeypatch.context() as patch:
    patch.setattr(buckets.Copy, "store_known", killed)
    assert "killed" in buckets.upload_changes()
  (folder / "metrics.jsonl").write_text("1\n2\n")
  with monkeypatch.context() as patch:
    patch.setattr(buckets, "upload_changes", lambda: None)  # nor now
    buckets.forget_copies()
  assert files.run_folder(RUN) == folder
  assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
  assert "changed elsewhere" not in capsys.readouterr().out
  buckets.upload_changes()
  assert bucket.objects[f"{RUN}/metrics.jsonl"][0] == b"1\n2\n"


def test_a_lost_cache_deletes_nothing(bucket):
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  buckets.forget_copies()
  shutil.rmtree(folder)
  assert (files.run_folder(RUN) / "checkpoints/5/meta/metadata").exists()
  assert len(bucket.names(RUN)) == 7


def test_half_an_upload_is_no_checkpoint_and_is_made_up_for(bucket, monkeypatch, tmp_path, capsys):
  folder = files.run_folder(RUN)
  write_step(folder, 5)

  def fail(url):
    raise OSError("the network is down")

  with monkeypatch.context() as patch:
    patch.setattr(bucket_files, "send_mark", fail)
    assert "gs://b/runs/a cannot be written (the network is down)" in str(buckets.upload_changes())
    assert "the same command uploads them" in capsys.readouterr().err
    other_machine(monkeypatch, tmp_path)
    assert not files.run_folder(RUN).exists()  # the half checkpoint is not taken
  other_machine(monkeypatch, tmp_path, "machine1")
  assert (files.run_folder(RUN) / "checkpoints/5/state/d/1").exists()
  assert buckets.upload_changes() is None
  assert len(bucket.names(RUN)) == 7


def test_changes_that_came_too_late_are_kept_aside(bucket, monkeypatch, tmp_path, capsys):
  folder = files.run_folder(RUN)
  write_step(folder, 5)
  buckets.upload_changes()
  write_step(folder, 6, "never uploaded")
  monkeypatch.setattr(buckets, "upload_changes", lambda: None)  # killed
  other_machine(monkeypatch, tmp_path)
  monkeypatch.undo()
  served = serve_bucket(monkeypatch, tmp_path)
  next(served).objects.update(bucket.objects)
  bucket_files.write_file(f"{RUN}/config.json", b"of another machine")
  again = files.run_folder(RUN)
  assert not (again / "checkpoints/6").exists()
  assert (again / "config.json").read_text() == "of another machine"
  aside = again.parent.with_name("files.old1") / "a/checkpoints/6/state/d/1"
  assert aside.read_text() == "never uploaded 6"
  assert "was changed elsewhere" in capsys.readouterr().out
  next(served, None)


def test_a_bucket_that_cannot_be_used_is_one_line(bucket, tmp_path):
  bucket.is_down = True
  with pytest.raises(UserError, match=r"gs://b/runs/a cannot be used here \(the network is down\)"):
    files.run_folder(RUN)
  with pytest.raises(UserError, match="gs://b: give the path of a file or folder in a bucket"):
    files.run_folder("gs://b")
  bucket.is_down = False
  folder = files.run_folder(RUN)
  bucket.is_down = True
  with pytest.raises(UserError, match=r"gs://b/runs/a cannot be written"):
    files.make_writable(folder, "--out")
  bucket.is_down = False


@pytest.mark.parametrize(
  "text", ["gs://", "gs://b", "gs://b/", "gs://b//a", "gs://b/../a", "gs:///a", "s3://b"]
)
def test_an_address_of_no_folder_is_one_line(bucket, text):
  with pytest.raises(UserError, match="give the path of a file or folder in a bucket"):
    files.run_folder(text)


def test_a_missing_bucket_is_called_so():
  asked = FileNotFoundError("https://storage.example/b/none/o")
  assert bucket_files.explain(asked) == f"no such bucket or file: {asked}"
  assert bucket_files.explain(OSError("the network is down")) == "the network is down"


@pytest.mark.parametrize("text", ["gs:/b/a", "gs:b/a"])
def test_a_mistyped_address_is_shown_as_it_should_be(text):
  with pytest.raises(UserError, match="write gs://b/a for a bucket"):
    files.run_folder(text)


def test_patterns_in_an_address_are_refused(bucket):
  with pytest.raises(UserError, match="cannot be read again"):
    files.run_folder("gs://b/runs[1]/a")


@pytest.mark.parametrize("url", ["s3://b/runs/ä b", "az://b/runs/a", "gs://b/runs/a b/ü/"])
def test_buckets_of_other_kinds_and_names_are_served(bucket, monkeypatch, tmp_path, url):
  write_step(files.run_folder(url), 5)
  other_machine(monkeypatch, tmp_path)
  assert (files.run_folder(url) / "checkpoints/5/state/d/1").read_text() == "weights 5"


def expect_job(index=0, count=2):
  buckets.expect_job()
  buckets.joined_job(index, count)


def test_a_job_of_several_processes_copies_no_checkpoints(bucket, monkeypatch, tmp_path):
  write_step(files.run_folder(RUN), 5)
  (files.run_folder(RUN) / "config.json").write_text("{}")
  other_machine(monkeypatch, tmp_path)
  buckets.expect_job()
  folder = files.run_folder(RUN)
  buckets.joined_job(1, 2)
  assert [path.name for path in folder.iterdir()] == ["config.json"]
  there = buckets.checkpoint_folder(folder)
  assert str(there) == f"{RUN}/checkpoints"
  assert step_folders.saved_steps(there) == [5]
  (folder / "of_process_1").write_text("1")
  assert buckets.upload_changes() is None
  assert "of_process_1" not in bucket.names(RUN)  # process 0 uploads


def test_a_job_that_has_one_process_copies_its_checkpoints(bucket, monkeypatch, tmp_path):
  write_step(files.run_folder(RUN), 5)
  other_machine(monkeypatch, tmp_path)
  buckets.expect_job()
  folder = files.run_folder(RUN)
  assert not folder.exists()
  buckets.joined_job(0, 1)
  assert step_folders.saved_steps(buckets.checkpoint_folder(folder)) == [5]
  assert buckets.checkpoint_folder(folder) == folder / "checkpoints"


def test_what_a_job_saved_is_copied_by_a_program_of_one_process(bucket, monkeypatch, tmp_path):
  write_step(files.run_folder(RUN), 5)
  buckets.forget_copies()
  buckets.expect_job()
  folder = files.run_folder(RUN)
  buckets.joined_job(0, 2)
  bucket_files.delete_mark(f"{RUN}/checkpoints/5/commit_success.txt")
  for name in ("state/d/1", "meta/metadata", "commit_success.txt"):
    bucket.put(f"{RUN}/checkpoints/6/{name}", b"by Orbax")
  assert buckets.upload_changes() is None
  buckets.forget_copies()
  assert files.run_folder(RUN) == folder
  assert step_folders.saved_steps(folder / "checkpoints") == [6]


def test_an_unfinished_step_in_a_bucket_is_no_checkpoint(bucket):
  folder = bucket_files.remote(f"{RUN}/checkpoints")
  bucket.put(f"{RUN}/checkpoints/6/state/d/1", b"1")
  assert step_folders.saved_steps(folder) == []
  bucket.put(f"{RUN}/checkpoints/6/commit_success.txt", b"1")
  assert step_folders.saved_steps(folder) == [6]


def test_several_hosts_cannot_share_other_buckets(bucket):
  folder = files.run_folder("s3://b/runs/a")
  expect_job()
  with pytest.raises(UserError, match="a job of several processes saves only to gs://"):
    buckets.shared_place(folder)


def test_several_hosts_do_not_move_a_run_aside(bucket):
  bucket.put(f"{RUN}/config.json", b'{"generative": {}}')
  buckets.expect_job()
  folder = files.run_folder(RUN)
  with pytest.raises(UserError, match=r"cannot move .* a run in a bucket; choose another"):
    prepare_workdir(folder, fresh=True)


def test_a_bucket_without_times_is_refused(bucket):
  bucket.objects[f"{RUN}/config.json"] = (b"{}", 0)
  with pytest.raises(UserError, match="does not tell whether a file was changed"):
    files.run_folder(RUN)


def test_an_output_is_uploaded_beside_what_is_there(bucket):
  bucket_files.write_file("gs://b/out/other.png", b"1")
  out = files.bucket_path("gs://b/out/a.png")
  files.check_file(out)
  out.write_bytes(b"2")
  assert buckets.with_addresses(f"wrote {out}") == "wrote gs://b/out/a.png"
  buckets.upload_changes()
  assert bucket.names("gs://b/out") == ["a.png", "other.png"]


def test_an_old_run_in_the_bucket_keeps_its_name(bucket):
  bucket_files.write_file(f"{RUN}.old1/config.json", b"{}")
  bucket_files.write_file(f"{RUN}/config.json", b"{}")
  folder = files.run_folder(RUN)
  assert files.free_name(folder).name == "a.old2"


def test_data_in_a_bucket_keep_their_address(bucket):
  bucket_files.write_file("gs://b/photos/1.png", b"1")
  assert find_data("gs://b/photos") == {"name": "folder", "path": "gs://b/photos"}
  np.savez(files.bucket_path("gs://b/a.npz"), images=np.zeros((2, 8, 8), np.uint8))
  buckets.upload_changes()
  assert find_data("gs://b/a.npz") == {"name": "arrays", "path": "gs://b/a.npz"}
  with pytest.raises(UserError, match="gs://b/none`: the bucket has no such folder or file"):
    find_data("gs://b/none")


def test_finished_chunks_are_used_on_another_machine(bucket, monkeypatch, tmp_path):
  def chunks():
    return resumable.Chunks(files.run_folder(RUN) / "eval/4/work/features-ab12", {"seed": 0})

  chunks().get(0, 2, lambda: {"x": np.arange(2)})
  other_machine(monkeypatch, tmp_path)
  again = chunks()
  assert again.get(0, 2, dict)["x"].tolist() == [0, 1]
  assert again.num_restored == 1
