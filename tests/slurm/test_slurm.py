"""launch/slurm.sbatch as shipped, under a real SLURM of two nodes on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.checkpoints import store

pytestmark = pytest.mark.system
NUM_STEPS = 600
ROOT = Path(__file__).parent.parent.parent
TRAIN = [
  "--config=configs/smoke.py", f"--config.training.num_steps={NUM_STEPS}",
  "--config.checkpoint.every_steps=50", "--config.logging.every_steps=10",
  "--config.logging.tensorboard=false", "--config.logging.num_samples=8",
  "--config.model.multipliers=1", "--config.distributed.heartbeat_sec=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  """Environment of a client of the cluster."""
  missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
  assert not missing, f"apt-get install -y munge slurmctld slurmd slurm-client: no {missing}"
  folder = tmp_path_factory.mktemp("slurm")
  script = ROOT / "tests" / "slurm" / "cluster.sh"
  subprocess.run([script, "up", folder], check=True)
  yield {
    **os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHON": sys.executable,
  }  # fmt: skip
  subprocess.run([script, "down", folder], check=True)


class Job:
  """A job that was submitted with the shipped script."""

  def __init__(self, cluster, folder, *flags):
    self.cluster, self.out = cluster, folder / "out"
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={self.out}", "launch/slurm.sbatch"]
    self.number = self.run(*command, *TRAIN, *flags, f"--workdir={folder / 'run'}").strip()

  def run(self, *command):
    return subprocess.run(
      command, check=True, capture_output=True, text=True, env=self.cluster, cwd=ROOT
    ).stdout

  def said(self):
    return self.out.read_text() if self.out.is_file() else ""

  def state(self):
    """("COMPLETED", "0:0", restarts)."""
    text = self.run("scontrol", "--oneliner", "show", "job", self.number)
    found = [re.search(rf"\b{n}=(\S+)", text) for n in ("JobState", "ExitCode", "Restarts")]
    return tuple(f[1] if f else "" for f in found)

  def wait_for_step(self, step):
    self.wait(lambda: any(int(s) >= step for s in re.findall(r"(?m)^step +(\d+)/", self.said())))

  def wait_for_end(self):
    self.wait(lambda: self.state()[0] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"))
    return self.state()

  def wait(self, condition, timeout_sec=600):
    deadline = time.monotonic() + timeout_sec
    while not condition():
      assert time.monotonic() < deadline, f"{self.state()}\n{self.said()}"
      time.sleep(0.5)


@pytest.fixture
def submit(cluster, tmp_path):
  jobs = []

  def make(*flags):
    jobs.append(Job(cluster, tmp_path, *flags))
    return jobs[-1]

  yield make
  for job in jobs:
    subprocess.run(["scancel", job.number], env=cluster, check=False)
    job.wait(lambda job=job: job.state()[0] not in ("RUNNING", "COMPLETING", "PENDING"), 120)


def test_a_job_on_two_nodes_is_requeued_after_a_signal_and_finishes(submit, tmp_path):
  job = submit()
  job.wait_for_step(100)
  job.run("scancel", "--signal=TERM", job.number)
  assert job.wait_for_end() == ("COMPLETED", "0:0", "1")
  said = job.said()
  assert said.count("4 x cpu, 2 processes on") == 2
  (step,) = re.findall(r"saved step (\d+); the same command continues", said)
  assert f"resuming at step {step} of {NUM_STEPS}" in said
  assert "exit code 75; back in the queue" in said
  assert f"finished: {NUM_STEPS} steps" in said
  assert store.saved_steps(tmp_path / "run" / "checkpoints")[-1] == NUM_STEPS


def test_a_job_whose_task_is_killed_starts_again_from_its_checkpoint(submit, tmp_path):
  job = submit()
  job.wait_for_step(100)
  pid = int((tmp_path / "run" / ".lock").read_text())  # that of process 0
  os.kill(pid, signal.SIGKILL)
  assert job.wait_for_end() == ("COMPLETED", "0:0", "1")
  assert re.search(r"resuming at step (50|100|150|\d+) of", job.said())
  assert f"finished: {NUM_STEPS} steps" in job.said()


def test_a_job_that_the_user_must_change_is_not_requeued(submit):
  job = submit("--config.training.batch_size=6")
  assert job.wait_for_end() == ("FAILED", "2:0", "0")
  assert "training.batch_size=6 is not divisible by 4 device(s)" in job.said()
  assert "exit code 2: something must be changed" in job.said()
