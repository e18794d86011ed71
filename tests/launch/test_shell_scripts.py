"""The shell files by shellcheck, and launch/slurm.sbatch with stand-ins for SLURM's programs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from stand_ins import read_calls, wait_until, write_program


@pytest.mark.system
def test_shellcheck_finds_nothing(root):
  files = [root / ".ci" / "run", *sorted((root / "launch").glob("*.s[hb]*"))]
  assert len(files) >= 3
  ran = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=60)
  assert ran.returncode == 0, ran.stdout + ran.stderr


NOTE = 'echo "$(basename "$0") $(printf "%q " "$@")" >>"$CALLS"\n'

SRUN = (
  "#!/bin/bash\n"
  + NOTE
  + """while [[ $1 == --* ]]; do shift; done
SLURM_NTASKS=2 SLURM_PROCID=1 "$@" & task=$!
trap 'kill -KILL $task; exit 137' TERM  # as srun does: it kills the tasks
while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
exit $code
"""
)

SCONTROL = (
  "#!/bin/bash\n"
  + NOTE
  + """case $1 in
  requeue) exit ${REQUEUE_EXIT:-0} ;;
  *) [[ $JOB == "" ]] || echo "JobId=4100 JobName=x Priority=1 $JOB Dependency=(null) Requeue=1" ;;
esac
"""
)

SCANCEL = "#!/bin/bash\n" + NOTE + '[[ $1 == --signal=INT ]] && kill -INT "$(cat "$PID")"\n'

PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
def handle(number, frame):
  open(os.environ["SEEN"], "a").write(signal.Signals(number).name + "\\n")
  time.sleep(0.3)
  sys.exit(75)
signal.signal(signal.SIGINT, handle)
signal.signal(signal.SIGTERM, handle)
open(os.environ["SEEN"], "a").write("\\n".join([os.getcwd(), *sys.argv[1:],
  *(os.environ[n] for n in names)]) + "\\n")
open(os.environ["PID"], "w").write(str(os.getpid()))
while os.environ["CODE"] == "wait": time.sleep(0.02)
sys.exit(int(os.environ["CODE"]))
"""


class Slurm(NamedTuple):
  """A job of number 4100 in `folder`, the checkout that it was submitted in."""

  folder: Path
  script: Path

  def start(self, code, *flags, **environment) -> subprocess.Popen:
    files = {name: str(self.folder / name) for name in ("CALLS", "SEEN", "PID")}
    for path in files.values():
      Path(path).unlink(missing_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))}
    env |= files | {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "CODE": str(code)}
    env |= {"JOB": "JobState=RUNNING Reason=None", "SLURM_JOB_ID": "4100"}
    env |= {"SLURM_SUBMIT_DIR": str(self.folder)} | environment
    return subprocess.Popen(
      ["bash", self.script, *flags], env=env, cwd="/", stderr=subprocess.PIPE, text=True
    )

  def run(self, code, *flags, **environment) -> tuple[int, bool, str]:
    """Exit code of the job, whether it has gone back to the queue, and what it said."""
    return self.end(self.start(code, *flags, **environment))

  def end(self, job: subprocess.Popen) -> tuple[int, bool, str]:
    said = job.communicate(timeout=30)[1]
    calls = read_calls(self.folder / "CALLS")
    return job.returncode, ["scontrol", "requeue", "4100"] in calls, said

  def seen(self) -> list[str]:
    return (self.folder / "SEEN").read_text().splitlines()


@pytest.fixture
def slurm(tmp_path, root):
  for name, text in {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}.items():
    write_program(tmp_path / "bin" / name, text)
  write_program(tmp_path / ".venv" / "bin" / "python", PROGRAM)
  return Slurm(tmp_path, root / "launch" / "slurm.sbatch")


@pytest.mark.parametrize(
  ("code", "environment", "requeued"),
  [
    (0, {}, False),
    (2, {}, False),
    (75, {}, True),
    (1, {}, True),
    (134, {}, True),
    (143, {"SLURM_RESTART_COUNT": "19"}, True),
    (1, {"SLURM_RESTART_COUNT": "20"}, False),
    (1, {"SLURM_RESTART_COUNT": "2", "MAX_RESTARTS": "2"}, False),
    (75, {"SLURM_RESTART_COUNT": "500"}, True),
    (2, {"SLURM_RESTART_COUNT": "1"}, False),
  ],
)
def test_the_exit_code_of_training_decides_what_becomes_of_the_job(
  slurm, code, environment, requeued
):
  assert slurm.run(code, **environment)[:2] == (code, requeued)


@pytest.mark.parametrize(
  ("job", "requeued"),
  [
    ("JobState=COMPLETING Reason=None", False),  # cancelled
    ("JobState=COMPLETING Reason=BeginTime", False),  # requeued by someone else
    ("JobState=COMPLETING Reason=TimeLimit", True),
    ("", True),  # the controller does not answer
  ],
)
@pytest.mark.parametrize("code", [75, 137])
def test_a_job_that_was_cancelled_stays_away(slurm, job, requeued, code):
  assert slurm.run(code, JOB=job)[:2] == (code, requeued)


def test_a_requeue_that_is_refused_is_said(slurm):
  code, _, said = slurm.run(75, REQUEUE_EXIT="1")
  assert code == 75
  assert "not requeued; the same sbatch command continues" in said


def test_sigterm_at_the_batch_shell_lets_the_tasks_save(slurm):
  job = slurm.start("wait")
  wait_until((slurm.folder / "PID").exists)
  job.send_signal(signal.SIGTERM)
  assert slurm.end(job)[:2] == (75, True)
  assert slurm.seen()[-1] == "SIGINT"  # once, and not the SIGTERM that srun would have killed for


def test_sigterm_of_a_job_that_is_cancelled_is_not_sent_on(slurm):
  job = slurm.start("wait", JOB="JobState=COMPLETING Reason=None")
  wait_until((slurm.folder / "PID").exists)
  job.send_signal(signal.SIGTERM)
  time.sleep(0.3)
  os.kill(int((slurm.folder / "PID").read_text()), signal.SIGTERM)  # as SLURM does itself
  assert slurm.end(job)[:2] == (75, False)
  assert slurm.seen()[-1] == "SIGTERM"


def test_at_the_end_of_the_time_limit_the_job_is_requeued_at_once(slurm):
  job = slurm.start("wait", JOB="JobState=COMPLETING Reason=TimeLimit")
  wait_until((slurm.folder / "PID").exists)
  job.send_signal(signal.SIGTERM)
  wait_until(lambda: ["scontrol", "requeue", "4100"] in read_calls(slurm.folder / "CALLS"))
  os.kill(int((slurm.folder / "PID").read_text()), signal.SIGTERM)  # as SLURM does itself
  assert slurm.end(job)[:2] == (75, True)
  calls = read_calls(slurm.folder / "CALLS")
  assert sum(call[:2] == ["scontrol", "requeue"] for call in calls) == 1
  assert not any(call[0] == "scancel" for call in calls)


def test_training_gets_its_flags_its_folder_and_its_place_in_the_job(slurm):
  flags = ["--config=configs/a b.py", "--config.model.multipliers=(1, 2)", "it's"]
  assert slurm.run(0, *flags)[0] == 0
  folder, *rest = slurm.seen()
  *argv, address, number, process = rest
  assert Path(folder) == slurm.folder
  assert argv == ["-m", "diffusion_jax.train", *flags]
  assert (number, process) == ("2", "1")
  host, port = address.split(":")
  assert host == os.uname().nodename
  assert int(port) == 61440 + 4  # 4100 modulo 4096


def test_without_an_environment_to_run_in_the_user_hears_what_to_do(slurm, tmp_path):
  shutil.rmtree(slurm.folder / ".venv")
  code, _, said = slurm.run(0)
  assert (code, said.count("\n")) == (2, 1)
  assert "call sbatch in the checkout, or set PYTHON" in said
  assert slurm.run(0, PYTHON=str(write_program(tmp_path / "other", PROGRAM)))[0] == 0


def test_the_tasks_have_time_to_end_with_their_own_codes(slurm):
  slurm.run(2)
  srun = next(c for c in read_calls(slurm.folder / "CALLS") if c[0] == "srun")
  assert srun[1:3] == ["--kill-on-bad-exit=0", "--wait=60"]
