"""Several real processes over loopback: one process's figures, and nothing lost when one dies."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import xla_flags
from tiny import TINY

from diffusion_jax.checkpoints import store
from diffusion_jax.parallel import sharding
from diffusion_jax.runs.stored import stored_experiment
from diffusion_jax.runs.workdir import _lock, lock
from diffusion_jax.train_loop.setup import prepare_job, state_shapes

pytestmark = pytest.mark.process
NUM_STEPS = 40
TRAIN = [
  "train", *TINY, f"--config.training.num_steps={NUM_STEPS}",
  "--config.checkpoint.every_steps=10", "--config.checkpoint.keep_last=100",
  "--config.logging.every_steps=1", "--config.logging.num_samples=8",
  "--config.logging.tensorboard=false", "--config.data.flip=true", "--config.model.dropout=0.1",
  "--config.distributed.heartbeat_sec=10",
]  # fmt: skip
EVALUATE = ["evaluate", "--config.eval.num_samples=64", "--config.eval.batch_size=32",
            "--inception=none"]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def at_the_root(request):
  os.chdir(request.config.rootpath)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
  """Features of the data set are trained once, by the first that needs them."""
  os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
  yield
  del os.environ["XDG_CACHE_HOME"]


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def environment(devices, **extra):
  flags = f"--xla_force_host_platform_device_count={devices} {xla_flags.FAST}"
  return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **extra}


def alone(program, *flags, devices=4):
  """Runs a program in one process, to its end."""
  command = [sys.executable, "-m", f"diffusion_jax.{program}", *map(str, flags)]
  done = subprocess.run(command, env=environment(devices), capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def together(*words, devices=2):
  """Runs a program in two processes, as a user does."""
  command = [sys.executable, "launch/local.py", "--processes=2", f"--devices={devices}", *words]
  return subprocess.run(list(map(str, command)), env=environment(1), capture_output=True, text=True)


class Pair:
  """Two processes of one job, each to be handled on its own."""

  def __init__(self, *words, count=2, address=None, **extra):
    port = free_port()
    self.lines = [[], []]
    self.processes = []
    for number in range(2):
      variables = {
        "JAX_COORDINATOR_ADDRESS": address or f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
      } | extra.get(f"env{number}", {})
      command = [sys.executable, "-m", f"diffusion_jax.{words[0]}", *map(str, words[1:])]
      self.processes.append(
        subprocess.Popen(command, env=environment(2, **variables), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
      )  # fmt: skip
    self.threads = [
      threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(len(self.lines))
    ]
    for thread in self.threads:
      thread.start()

  def _read(self, number):
    for line in self.processes[number].stdout:
      self.lines[number].append(line)

  def wait_for_step(self, step, timeout_sec=180):
    deadline = time.monotonic() + timeout_sec
    while time.monotonic() < deadline:
      for line in self.lines[0]:
        found = re.match(r"step +([0-9]+)/", line)
        if found and int(found[1]) >= step:
          return
      if any(p.poll() is not None for p in self.processes):
        break
      time.sleep(0.02)
    pytest.fail(f"step {step} was not reached: {self.output()}")

  def wait_for_a_checkpoint(self, workdir, timeout_sec=60):
    """Wait for the save in the background; the next save waits for it too."""
    deadline = time.monotonic() + timeout_sec
    while not store.saved_steps(workdir / "checkpoints"):
      assert time.monotonic() < deadline, self.output()
      time.sleep(0.02)

  def finish(self, timeout_sec=240):
    """Exit codes of both."""
    deadline = time.monotonic() + timeout_sec
    try:
      for process in self.processes:
        process.wait(max(deadline - time.monotonic(), 0.1))
    finally:
      self.kill()
    for thread in self.threads:
      thread.join()
    return [p.returncode for p in self.processes]

  def output(self, number=None):
    return "".join(
      line for n, lines in enumerate(self.lines) if number in (None, n) for line in lines
    )

  def kill(self):
    for process in self.processes:
      with contextlib.suppress(OSError):
        process.send_signal(signal.SIGCONT)
        process.kill()


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}


def final_state(workdir):
  job = prepare_job(stored_experiment(workdir, []), workdir)
  shapes = state_shapes(job)
  target = sharding.as_target(shapes, sharding.state_shardings(job.mesh, shapes))
  restored = store.restore_checkpoint(workdir / "checkpoints", target)
  assert (restored.step, restored.damaged) == (NUM_STEPS, ())
  return jax.device_get(restored.state)


def assert_bitwise_equal_end(workdir, other):
  for a, b in zip(
    jax.tree.leaves(final_state(workdir)), jax.tree.leaves(final_state(other)), strict=True
  ):
    assert a.tobytes() == b.tobytes()
  assert losses(workdir) == losses(other)
  assert sorted(losses(workdir)) == list(range(1, NUM_STEPS + 1))


def assert_equal_to_rounding(workdir, other, tolerance=2e-5):
  ours, theirs = losses(workdir), losses(other)
  assert sorted(ours) == sorted(theirs) == list(range(1, NUM_STEPS + 1))
  np.testing.assert_allclose(
    [ours[s] for s in sorted(ours)], [theirs[s] for s in sorted(theirs)], rtol=tolerance
  )


def in_turn(commands, folder, processes, devices):
  """Runs programs one after the other in the same processes: what each of them printed."""
  file = folder / "commands.json"
  file.write_text(json.dumps([list(map(str, command)) for command in commands]))
  job, port = [], free_port()
  for number in range(processes):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(number),
                 "JAX_NUM_PROCESSES": str(processes)} if processes > 1 else {}  # fmt: skip
    job.append(subprocess.Popen(
      [sys.executable, "tests/in_turn.py", str(file)], env=environment(devices, **variables),
      stderr=subprocess.PIPE, text=True))  # fmt: skip
  errors = [process.communicate()[1] for process in job]
  assert [process.returncode for process in job] == [0] * processes, errors
  return [file.with_name(f"{file.name}.{n}").read_text() for n in range(len(commands))]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  """One process with four devices."""
  workdir = tmp_path_factory.mktemp("single")
  alone(*TRAIN, f"--workdir={workdir}")
  return workdir


class LookedAt(NamedTuple):
  """What two processes did in turn, and what one process with one device did after them.

  Attributes:
    pair: the run of two processes, sampled into two.npz beside it and evaluated there, twice.
    copy: the run as it was trained, sampled into one.npz beside it and evaluated by one process.
    said: what the two printed in training and in both evaluations.
  """

  pair: Path
  copy: Path
  said: tuple[str, str, str]


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
  folder = tmp_path_factory.mktemp("in_turn")
  pair, copy = folder / "pair", folder / "copy"
  where = f"--workdir={pair}"
  sampling = ["sample", where, "--num=24", f"--out={folder / 'two.npz'}"]
  commands = [[*TRAIN, where], sampling, [*EVALUATE, where], [*EVALUATE, where]]
  trained, _, measured, again = in_turn(commands, folder, 2, 2)
  shutil.copytree(pair, copy, ignore=shutil.ignore_patterns("eval"))
  where = f"--workdir={copy}"
  sampling = ["sample", where, "--num=24", f"--out={folder / 'one.npz'}"]
  in_turn([sampling, [*EVALUATE, where]], folder, 1, 1)
  return LookedAt(pair, copy, (trained, measured, again))


@pytest.fixture(scope="module")
def pair(looked_at):
  """A run of two processes with two devices each, that nothing disturbs."""
  return looked_at.pair


def test_two_processes_train_as_one_does(pair, single, looked_at):
  """Losses of every step, and the pictures; each line is printed once."""
  assert_equal_to_rounding(pair, single)
  said = looked_at.said[0]
  assert "4 x cpu, 2 processes on" in said
  assert said.count(f"step      {NUM_STEPS}/{NUM_STEPS}") == 1
  held_out = [json.loads((w / "held_out.json").read_text()) for w in (pair, single)]
  assert held_out[0].keys() == held_out[1].keys()
  for name, value in held_out[0].items():
    np.testing.assert_allclose(value, held_out[1][name], rtol=1e-4, err_msg=name)


def test_two_processes_sample_as_one_does(looked_at):
  """The same checkpoint; at most one grey level on few pixels, whose sums round otherwise."""
  folder = looked_at.pair.parent
  two, one = (np.load(folder / name)["images"].astype(int) for name in ("two.npz", "one.npz"))
  assert two.shape == (24, 8, 8, 1)
  assert np.abs(two - one).max() <= 1
  assert (two != one).mean() < 1e-2


def test_two_processes_evaluate_as_one_does(looked_at):
  pair, copy, (_, measured, again) = looked_at
  assert (pair / "eval" / str(NUM_STEPS) / "report.html").is_file()
  two, one = (
    json.loads((w / "eval" / str(NUM_STEPS) / "metrics.json").read_text()) for w in (pair, copy)
  )
  assert [m["run"]["num_processes"] for m in (two, one)] == [2, 1]
  assert two["identity"] == one["identity"]
  for name, figure in one["figures"].items():
    np.testing.assert_allclose(
      two["figures"][name]["value"], figure["value"], rtol=1e-3, atol=1e-3, err_msg=name
    )
  np.testing.assert_allclose(
    two["likelihoods"]["vlb"]["bits_per_dim"], one["likelihoods"]["vlb"]["bits_per_dim"], rtol=1e-5
  )
  assert "evaluated already" in again
  assert "evaluated already" not in measured


def test_named_arrays_reach_their_examples_in_two_processes_as_in_one(tmp_path):
  """Each process reads its own rows of the arrays; every loss and sample is that of one process."""
  code = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
  images = np.random.default_rng(1).integers(0, 256, (48, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "data.npz", train_images=images, train_code=code, test_images=images[:8],
           test_code=code[:8])  # fmt: skip
  steps = ["--config.training.num_steps=4", "--config.logging.every_steps=1"]
  named = [f"--config.data.path={tmp_path}/data.npz", "--config.data.name=arrays",
           "--config.data.fields=code", "--config.generative.fields=code",
           "--config.generative.conditional=false", "--config.generative.dropped=code",
           "--config.guidance.weight=2", "--config.sampler.steps=2"]  # fmt: skip
  found = {}
  for processes, devices in ((2, 2), (1, 4)):
    folder = tmp_path / str(processes)
    folder.mkdir()
    where = f"--workdir={folder / 'run'}"
    drawn = ["sample", where, "--num=8", f"--out={folder / 'a.npz'}"]
    in_turn([["train", *TINY, *steps, *named, where], drawn], folder, processes, devices)
    found[processes] = losses(folder / "run"), np.load(folder / "a.npz")["images"].astype(int)
  (two, drawn_by_two), (one, drawn_by_one) = found[2], found[1]
  assert sorted(two) == [1, 2, 3, 4]
  np.testing.assert_allclose([two[s] for s in two], [one[s] for s in two], rtol=2e-5)
  assert np.abs(drawn_by_two - drawn_by_one).max() <= 1
  assert (drawn_by_two != drawn_by_one).mean() < 1e-2


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_one_is_killed_the_other_ends_and_the_job_continues(pair, tmp_path, victim):
  """kill -9; the survivor leaves within heartbeat_sec, and a restart ends bit for bit equal."""
  job = Pair(*TRAIN, f"--workdir={tmp_path}")
  job.wait_for_step(14)
  job.wait_for_a_checkpoint(tmp_path)
  job.processes[victim].kill()
  begun = time.monotonic()
  codes = job.finish(60)
  assert time.monotonic() - begun < 40
  assert codes[victim] == -signal.SIGKILL
  assert codes[1 - victim] not in (0, 2, 75), job.output()
  saved = store.saved_steps(tmp_path / "checkpoints")
  assert saved[-1] < NUM_STEPS
  done = together(*TRAIN, f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"resuming at step {saved[-1]}" in done.stdout
  assert_bitwise_equal_end(tmp_path, pair)


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_saves_on_both(pair, tmp_path, asked):
  """SIGTERM on any host: both exit with 75, at one step, and the job continues bit for bit."""
  job = Pair(*TRAIN, f"--workdir={tmp_path}")
  job.wait_for_step(14)
  job.processes[asked].send_signal(signal.SIGTERM)
  assert job.finish(60) == [75, 75], job.output()
  assert "Traceback" not in job.output()
  (step,) = re.findall(r"saved step ([0-9]+)", job.output(0))
  assert store.saved_steps(tmp_path / "checkpoints")[-1] == int(step)
  done = together(*TRAIN, f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"resuming at step {step}" in done.stdout
  assert_bitwise_equal_end(tmp_path, pair)


def test_when_one_cannot_save_both_end_with_what_to_do_about_it(tmp_path):
  """Files of process 1 may have 32 kB: Orbax would wait for it for 20 minutes, then fail."""
  one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  flags = ["--config.model.hidden=256", "--config.mesh.fsdp=2"]
  job = Pair(*TRAIN, f"--workdir={tmp_path}", *flags, env0=one, env1=one)
  resource.prlimit(job.processes[1].pid, resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))
  codes = job.finish(120)
  assert codes == [2, 2], job.output()
  for number, lines in enumerate(job.lines):
    said = [line for line in lines if "error: " in line]
    assert len(said) == 1, job.output()
    assert said[0].startswith(f"[{number} of 2] error: saving ")
    assert f"failed: File too large: {tmp_path}/checkpoints (" in said[0]
    assert not any("Traceback" in line for line in lines)


def test_when_one_hangs_the_watchdog_ends_the_other_with_its_stacks(tmp_path):
  """SIGSTOP: alive for its kernel, dead for the job, and its heartbeat is not missed yet."""
  job = Pair(*TRAIN, f"--workdir={tmp_path}", "--config.distributed.watchdog_sec=60",
             "--config.distributed.heartbeat_sec=300")  # fmt: skip
  try:
    job.wait_for_step(12)
    job.processes[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert job.processes[0].wait(150) == 1
    assert 50 < time.monotonic() - begun < 120
  finally:
    job.kill()
    job.finish()
  assert "nothing finished for 60 s" in job.output(0)
  assert re.search(r"Thread 0x.*train\.py", job.output(0), re.DOTALL)


def test_a_run_that_moves_between_meshes_ends_where_one_that_stayed_does(single, tmp_path):
  """Eight devices, two hosts of two, two devices, one; the loss of every step, to 1e-4 of it.

  A batch in another order, or another noise, moves single losses by tens of percent.
  """

  def until(step):
    length = "--config.training.num_steps="
    return [*[f for f in TRAIN if length not in f], f"{length}{step}", f"--workdir={tmp_path}"]

  said = alone(*until(10), "--config.mesh.fsdp=8", devices=8)
  assert "mesh       data 1, fsdp 8, tensor 1" in said
  done = together(*until(20), "--config.mesh.fsdp=4")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "fsdp 4" in done.stdout
  assert "resuming at step 10" in done.stdout
  assert "resuming at step 20" in alone(*until(30), "--config.mesh.fsdp=2", devices=2)
  assert "resuming at step 30" in alone(*TRAIN, f"--workdir={tmp_path}", devices=1)
  assert_equal_to_rounding(tmp_path, single, 1e-4)


def test_a_damaged_checkpoint_is_passed_over_by_both(pair, tmp_path):
  copy = tmp_path / "copy"
  subprocess.run(["cp", "-r", pair, copy], check=True)
  (copy / "held_out.json").unlink()
  meta = copy / "checkpoints" / str(NUM_STEPS) / "meta" / "metadata"
  meta.write_text(meta.read_text().replace("smoke", "smoky").replace('"num": 256', '"num": 255'))
  done = together(*TRAIN, f"--workdir={copy}")
  assert done.returncode == 0, done.stdout + done.stderr
  assert f"checkpoint {NUM_STEPS} is damaged" in done.stdout
  assert f"resuming at step {NUM_STEPS - 10}" in done.stdout
  assert_bitwise_equal_end(copy, pair)


def refused(*words, timeout_sec=60, **extra):
  """Both processes of a job that cannot run: what each says, within a minute of its start."""
  begun = time.monotonic()
  job = Pair(*words, **extra)
  codes = job.finish(timeout_sec + 30)
  assert time.monotonic() - begun < timeout_sec
  assert codes == [2, 2], job.output()
  said = [job.output(n) for n in range(2)]
  for number, text in enumerate(said):
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if "error: " in line]
    assert len(errors) == 1, text
    assert errors[0].startswith((f"[{number} of 2] error: ", "error: "))
  return said


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.training.batch_size=6", "training.batch_size=6 is not divisible by 4 device"),
    ("--config.mesh.fsdp=8", "mesh data=-1, fsdp=8, tensor=1 does not fit 4 device"),
    ("--config.distributed.num_processes=3", "num_processes=3, but JAX_* variables has 2"),
  ],
)
def test_what_does_not_fit_is_said_by_every_process(tmp_path, flag, words):
  for said in refused(*TRAIN, f"--workdir={tmp_path}", flag):
    assert words in said


def test_a_run_that_is_being_trained_is_refused_by_every_process(tmp_path):
  with _lock(tmp_path, "training"):
    for said in refused(*TRAIN, f"--workdir={tmp_path}"):
      assert "is already training there" in said


def test_a_folder_that_is_not_shared_is_refused_by_every_process(tmp_path):
  """Each process finds another folder under the same relative name."""
  places = [tmp_path / "a", tmp_path / "b"]
  for place in places:
    place.mkdir()
  script = "import os, sys; os.chdir(os.environ['PLACE']); from diffusion_jax import train; "
  script += "from diffusion_jax.runs.command_line import run_main; "
  script += "sys.argv = ['train', *sys.argv[1:]]; run_main(train.main)"
  command = [sys.executable, "-c", script, f"--config={os.getcwd()}/configs/smoke.py"]
  port = free_port()
  processes = []
  for number, place in enumerate(places):
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                 "JAX_PROCESS_ID": str(number), "PLACE": str(place)}  # fmt: skip
    processes.append(subprocess.Popen([*command, "--workdir=run"], stderr=subprocess.PIPE,
                                      text=True, env=environment(1, **variables)))  # fmt: skip
  for process in processes:
    said = process.communicate(timeout=90)[1]
    assert process.returncode == 2
    assert "--workdir=run: process 1 does not see the files of process 0" in said


def test_another_command_is_refused_by_every_process(tmp_path):
  job = Pair(*TRAIN, f"--workdir={tmp_path}", env1={"JAX_NUM_PROCESSES": "3"})
  assert job.finish(60) == [2, 2]
  for number in range(2):
    assert re.search(r"process 1 \(.*\) expects 3 processes", job.output(number))


def test_a_launcher_that_is_killed_leaves_nobody_behind_and_the_run_saved(tmp_path):
  """Its processes would train on, hold the folder's lock, and be known to nobody."""
  command = [sys.executable, "launch/local.py", "--processes=2", "--devices=1", *TRAIN,
             f"--workdir={tmp_path}", "--config.training.num_steps=100000"]  # fmt: skip
  launcher = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)  # fmt: skip
  for line in launcher.stdout:
    if re.match(r"step +[1-9]", line):
      break
  launcher.kill()
  said, _ = launcher.communicate(timeout=120)  # the pipe ends with the last process
  assert "the launcher has ended" in said
  saved = re.search(r"saved step ([0-9,]+); the same command continues", said)
  assert store.saved_steps(tmp_path / "checkpoints")[-1] == int(saved[1].replace(",", ""))
  with lock(tmp_path):
    pass


def test_an_unreachable_process_0_is_named_within_a_minute(tmp_path):
  """Nobody listens there; and process 0 says who is missing."""
  flags = ["--config.distributed.start_timeout_sec=45"]
  job = Pair(*TRAIN, f"--workdir={tmp_path}", *flags,
             env1={"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"})  # fmt: skip
  begun = time.monotonic()
  assert job.finish(90) == [2, 2], job.output()
  assert time.monotonic() - begun < 60
  assert "process 1 cannot reach process 0 at 127.0.0.1:" in job.output(1)
  assert "missing: process 1 of 2; here: 0 (" in job.output(0)
  assert "after 30 s; waiting" in job.output(0)


def test_a_state_in_shards_over_several_devices_of_each_process_is_saved(tmp_path):
  """The sums of many split leaves at once left each process waiting for the other, for ever."""
  mlp = ["--config.model.name=mlp", "--config.model.hidden=128", "--config.model.depth=2"]
  pair = Pair(
    "train", "--config=configs/smoke.py", *mlp, "--config.mesh.fsdp=4", f"--workdir={tmp_path}",
    "--config.training.num_steps=2", "--config.logging.num_samples=4",
  )  # fmt: skip
  assert pair.finish(timeout_sec=120) == [0, 0], pair.output()
  assert "fsdp 4" in pair.output(0)
