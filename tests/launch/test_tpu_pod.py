"""launch/tpu_pod.sh with a stand-in for gcloud that runs the workers' commands in two folders."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from stand_ins import read_calls, wait_until, write_program

GCLOUD = r"""#!/bin/bash
printf '%q ' "$@" >>"$POD/calls"; echo >>"$POD/calls"
shopt -s nullglob
case $5 in  # a slice with both workers, or one of two slices with one each
  *-[01]) homes=("$POD/worker-${5##*-}") ;;
  *) homes=("$POD"/worker-*) ;;
esac
on_workers() {
  for home in "${homes[@]}"; do (cd "$home" && HOME=$home bash -c "$1") || return; done
}
for flag in "$@"; do [[ $flag != --command=* ]] || command=${flag#--command=}; done
case "$3 $4" in
  "queued-resources list") [[ ! -e $POD/slice ]] || cat "$POD/slice" ;;
  "queued-resources create")
    for bin in "$POD"/worker-{0,1}/.local/bin; do mkdir -p "$bin"; cp "$POD/uv" "$bin/uv"; done
    echo ACTIVE >"$POD/slice"; echo READY >"$POD/machines" ;;
  "queued-resources delete") rm -rf "$POD/slice" "$POD"/worker-* ;;
  "tpu-vm describe") cat "$POD/machines.$5" 2>/dev/null || cat "$POD/machines" ;;
  "tpu-vm scp")
    [[ $6 != *-[01]:* ]] || { node=${6%%:*}; homes=("$POD/worker-${node##*-}"); }
    for home in "${homes[@]}"; do cp "$5" "$home/${6#*:}"; done ;;
  "tpu-vm ssh") on_workers "$command" ;;
esac
"""

UV = """#!/bin/bash
[[ $1 != venv ]] || { mkdir -p .venv/bin && cp "$POD/train" .venv/bin/python; }
"""

TRAIN = r"""#!/bin/bash
next=$(head -n 1 "$POD/plan.${HOME##*/}"); sed -i 1d "$POD/plan.${HOME##*/}"
echo "next: $next; $(printf '%q ' "$@")"
case $next in
  wait) trap 'echo saved; exit 75' TERM; while :; do sleep 0.05; done ;;
  preempt) echo SUSPENDED >"$POD/slice"; exit 1 ;;
  *) exit "$next" ;;
esac
"""

FLAGS = ["--name=d", "--zone=us-west4-a", "--project=p"]
TRAINING = ["--config=configs/a.py", "--workdir=/runs/a", "--", "--config.x.y=it's (1, 2)"]
WATCH = [*FLAGS, "--type=v5litepod-16", *TRAINING]


class Pod(NamedTuple):
  """A slice with two workers, folders that the stand-in of gcloud runs commands in."""

  folder: Path
  script: Path

  def run(self, *flags, **environment) -> subprocess.CompletedProcess:
    names = ("TPU_NAME", "ZONE", "PROJECT_ID", "ACCELERATOR_TYPE", "RUNTIME_VERSION", "SLICES")
    env = {k: v for k, v in os.environ.items() if k not in names}
    env |= {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "POD": str(self.folder)} | environment
    command = [self.script, *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

  def calls(self) -> list[list[str]]:
    """What gcloud was called with since the last look."""
    calls = read_calls(self.folder / "calls")
    (self.folder / "calls").unlink(missing_ok=True)
    return [["gcloud", *call] for call in calls]

  def plan(self, *steps):
    """What each start of training does, on both workers."""
    for worker in (0, 1):
      (self.folder / f"plan.worker-{worker}").write_text("".join(f"{s}\n" for s in steps))

  def states(self) -> list[str]:
    return self.run("status", *FLAGS).stdout.splitlines()[2:]


@pytest.fixture
def pod(tmp_path, root):
  checkout = tmp_path / "checkout"
  script = checkout / "launch" / "tpu_pod.sh"
  script.parent.mkdir(parents=True)
  shutil.copy(root / "launch" / "tpu_pod.sh", script)
  git = ["git", "-C", checkout, "-c", "user.name=x", "-c", "user.email=x@example.org"]
  for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
    subprocess.run([*git, *command], check=True)
  write_program(tmp_path / "bin" / "gcloud", GCLOUD)
  write_program(tmp_path / "bin" / "python3", "#!/bin/sh\n")  # installs uv: it is there already
  write_program(tmp_path / "bin" / "tail", "#!/bin/sh\n")  # follows for ever
  write_program(tmp_path / "uv", UV)
  write_program(tmp_path / "train", TRAIN)
  return Pod(tmp_path, script)


def dry(pod, *flags) -> list[list[str]]:
  """The commands that --dry-run prints."""
  ran = pod.run("--dry-run", *flags)
  assert (ran.returncode, ran.stderr) == (0, "")
  return [shlex.split(line) for line in ran.stdout.splitlines()]


QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
NODE = ["gcloud", "compute", "tpus", "tpu-vm"]
WHERE = ["--zone=us-west4-a", "--project=p"]


def test_create_prints_the_command_of_the_documentation(pod):
  command = [*QUEUED, "create", "d", "--node-id=d", "--accelerator-type=v5litepod-16",
             "--runtime-version=v2-alpha-tpuv5-lite"]  # fmt: skip
  assert dry(pod, "create", *FLAGS, "--type=v5litepod-16") == [[*command, *WHERE]]
  assert dry(pod, "--type=v5litepod-16", "--spot", *FLAGS, "create") == [
    [*command, "--spot", *WHERE]
  ]


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [("v6e-64", "v2-alpha-tpuv6e"), ("v5p-32", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_the_runtime_follows_from_the_type_unless_it_is_given(pod, kind, runtime):
  assert f"--runtime-version={runtime}" in dry(pod, "create", *FLAGS, f"--type={kind}")[0]
  other = dry(pod, "create", *FLAGS, f"--type={kind}", "--version=mine")[0]
  assert "--runtime-version=mine" in other


def test_dry_run_may_stand_anywhere(pod):
  printed = [
    pod.run(*f).stdout for f in (["--dry-run", "stop", *FLAGS], ["stop", *FLAGS, "--dry-run"])
  ]
  assert printed[0] == printed[1] != ""


def test_the_other_subcommands_print_their_commands(pod):
  assert dry(pod, "delete", *FLAGS) == [[*QUEUED, "delete", "d", "--force", "--quiet", *WHERE]]
  follow = "--command=tail -n 100 -F train.log"
  assert dry(pod, "logs", *FLAGS) == [[*NODE, "ssh", "d", "--worker=0", follow, *WHERE]]
  assert dry(pod, "logs", "--worker=3", *FLAGS) == [
    [*NODE, "ssh", "d", "--worker=3", follow, *WHERE]
  ]
  (stop,) = dry(pod, "stop", *FLAGS)
  assert stop[:6] == [*NODE, "ssh", "d"]
  assert 'kill -TERM "$(cat train.pid)"' in stop[7]
  _, bundle, copy, install = dry(pod, "setup", *FLAGS)
  assert bundle == ["git", "bundle", "create", "-q", "build/diffusion_jax.bundle", "HEAD"]
  assert copy == [*NODE, "scp", bundle[4], "d:diffusion_jax.bundle", "--worker=all", *WHERE]
  assert "-e '.[tpu]'" in install[7]
  slice_, machines, _ = dry(pod, "status", *FLAGS)
  assert slice_ == [*QUEUED, "list", "--filter=name~/d$", "--format=value(state.state)", *WHERE]
  assert machines == [*NODE, "describe", "d", "--format=value(state)", *WHERE]


@pytest.mark.parametrize(
  ("mount", "holds"),
  [
    ("10.0.0.2:/runs", "sudo mount -t nfs -o hard 10.0.0.2:/runs /mnt/shared;"),
    ("gs://bucket", "gcsfuse --implicit-dirs bucket /mnt/shared"),
  ],
)
def test_run_mounts_first(pod, mount, holds):
  flags = [*FLAGS, "--config=a.py", "--workdir=/mnt/shared/a", f"--mount={mount}"]
  first, second = dry(pod, "run", *flags)
  assert first[:7] == second[:7] == [*NODE, "ssh", "d", "--worker=all"]
  assert holds in first[7]
  assert "diffusion_jax.train" in second[7]
  check = subprocess.run(["bash", "-n", "-c", first[7].removeprefix("--command=")])
  assert check.returncode == 0


@pytest.mark.parametrize(
  "name", ["create", "setup", "run", "logs", "status", "stop", "bench", "delete"]
)
def test_what_is_run_is_what_dry_run_prints(pod, name):
  flags = [*FLAGS, "--type=v5litepod-16", *(TRAINING if name == "run" else [])]
  flags = ["--dry-run", name, *flags]
  for earlier in ("create", "setup"):
    pod.run(earlier, *WATCH[:4])
  pod.calls()
  pod.plan("0")
  printed = [shlex.split(line) for line in pod.run(*flags).stdout.splitlines()]
  assert pod.calls() == []  # nothing was run
  ran = pod.run(*flags[1:])
  assert ran.returncode == 0, ran.stderr
  assert pod.calls() == [command for command in printed if command[0] == "gcloud"]


def test_variables_of_the_environment_stand_for_flags(pod):
  environment = {"TPU_NAME": "d", "ZONE": "us-west4-a", "PROJECT_ID": "p",
                 "ACCELERATOR_TYPE": "v6e-8", "RUNTIME_VERSION": "mine"}  # fmt: skip
  printed = pod.run("create", "--dry-run", **environment).stdout
  assert shlex.split(printed) == [
    *QUEUED, "create", "d", "--node-id=d", "--accelerator-type=v6e-8",
    "--runtime-version=mine", *WHERE,
  ]  # fmt: skip


def test_setup_installs_the_last_commit_on_every_worker(pod):
  pod.run("create", *WATCH[:4])
  (pod.script.parent / "local.txt").write_text("not committed")
  pod.script.write_text(pod.script.read_text() + "# changed\n")
  ran = pod.run("setup", *FLAGS)
  assert ran.returncode == 0, ran.stderr
  assert "uncommitted changes are not copied" in ran.stderr
  for worker in (0, 1):
    copied = pod.folder / f"worker-{worker}" / "diffusion_jax"
    assert not (copied / "launch" / "local.txt").exists()
    assert "# changed" not in (copied / "launch" / "tpu_pod.sh").read_text()
    assert (copied / ".git" / "HEAD").exists()  # so that a run notes its revision
  assert pod.run("setup", *FLAGS).returncode == 0  # again, over what is there


def test_status_says_where_things_stand(pod):
  assert pod.run("status", *FLAGS).stdout == "slice: none\n"
  (pod.folder / "slice").write_text("WAITING_FOR_RESOURCES\n")
  assert pod.run("status", *FLAGS).stdout == "slice: WAITING_FOR_RESOURCES\n"
  pod.run("create", *WATCH[:4])
  assert pod.run("status", *FLAGS).stdout == "slice: ACTIVE\nmachines: READY\nnew\nnew\n"


def test_training_outlives_the_connection_and_stops_with_a_checkpoint(pod):
  pod.run("create", *WATCH[:4])
  assert pod.states() == ["new", "new"]
  pod.run("setup", *FLAGS)
  assert pod.states() == ["ready", "ready"]
  pod.plan("wait", "0")
  assert pod.run("run", *FLAGS, *TRAINING).returncode == 0
  assert pod.states() == ["running", "running"]
  assert pod.run("run", *FLAGS, *TRAINING).stdout == "already running\n" * 2
  assert pod.run("stop", *FLAGS).returncode == 0
  wait_until(lambda: pod.states() == ["stopped", "stopped"])
  for worker in (0, 1):
    log = (pod.folder / f"worker-{worker}" / "train.log").read_text()
    assert shlex.split(log.splitlines()[0])[2:] == [
      "-u", "-m", "diffusion_jax.train", "--config=configs/a.py", "--workdir=/runs/a",
      "--config.x.y=it's (1, 2)",
    ]  # fmt: skip
    assert log.endswith("saved\n")
  pod.run("run", *FLAGS, *TRAINING)
  wait_until(lambda: pod.states() == ["exit 0", "exit 0"])


def test_bench_runs_the_suite_on_one_chip_of_one_worker(pod):
  pod.run("create", *WATCH[:4])
  pod.run("setup", *FLAGS)
  pod.plan("0", "0")
  pod.calls()
  ran = pod.run("bench", *FLAGS, "--worker=1", "--", "--only=it's")
  assert ran.returncode == 0, ran.stderr
  ((*called, command, zone, project),) = pod.calls()
  assert [*called, zone, project] == [*NODE, "ssh", "d", "--worker=1", *WHERE]
  assert "TPU_VISIBLE_CHIPS=0 .venv/bin/python" in command
  printed = [line for line in ran.stdout.splitlines() if line.startswith("next:")]
  assert shlex.split(printed[0].replace("next: 0; ", ""))[1:] == [
    "benchmarks/tpu.py", "--out=../bench", "--only=it's"
  ]  # fmt: skip


def test_bench_leaves_a_running_training_alone(pod):
  pod.run("create", *WATCH[:4])
  pod.run("setup", *FLAGS)
  pod.plan("wait")
  pod.run("run", *FLAGS, *TRAINING)
  ran = pod.run("bench", *FLAGS)
  assert ran.returncode == 2
  assert "training runs here: launch/tpu_pod.sh stop" in ran.stderr
  pod.run("stop", *FLAGS)
  wait_until(lambda: pod.states() == ["stopped", "stopped"])


def subcommands(calls) -> list[str]:
  """What was done, without the looks: create, delete, scp, and ssh by what it starts."""
  names = {"launch": "diffusion_jax.train --config", "install": "git init"}
  done = []
  for call in calls:
    command = next((f for f in call if f.startswith("--command=")), "")
    done += [name for name, text in names.items() if text in command]
    done += [call[4]] if call[4] in ("create", "delete", "scp") else []
  return done


def test_watch_goes_on_through_a_preemption_and_a_stop_until_training_is_finished(pod):
  pod.plan("preempt", "75", "1", "0")
  ran = pod.run("watch", "--spot", "--interval=0", *WATCH)
  assert ran.returncode == 0, ran.stderr
  setup = ["create", "scp", "install", "launch"]
  assert subcommands(pod.calls()) == [*setup, "delete", *setup, "launch", "launch"]
  assert "slice: SUSPENDED" in ran.stderr


@pytest.mark.parametrize(
  ("plan", "environment", "code"),
  [
    (["2"], {}, 2),  # the user must change something
    (["1", "1", "1", "0"], {"MAX_RESTARTS": "2"}, 1),
    (["75", "75", "75", "0"], {"MAX_RESTARTS": "2"}, 0),
  ],
)
def test_watch_ends_where_starting_again_does_not_help(pod, plan, environment, code):
  pod.plan(*plan)
  ran = pod.run("watch", "--interval=0", *WATCH, **environment)
  assert ran.returncode == code, ran.stderr


def test_watch_ends_when_training_was_stopped_by_hand(pod):
  pod.run("create", *WATCH[:4])
  pod.run("setup", *FLAGS)
  pod.plan("wait")
  pod.run("run", *FLAGS, *TRAINING)
  pod.run("stop", *FLAGS)
  wait_until(lambda: "stopped" in pod.states())
  assert pod.run("watch", "--interval=0", *WATCH).returncode == 75


@pytest.mark.parametrize("answer", ["WAITING_FOR_RESOURCES", "PROVISIONING", None], ids=str)
def test_watch_only_looks_while_the_slice_is_queued_or_gcloud_does_not_answer(pod, answer):
  if answer is None:
    (pod.folder / "slice").mkdir()  # the stand-in's `cat` fails
  else:
    (pod.folder / "slice").write_text(f"{answer}\n")
  path = f"{pod.folder / 'bin'}:{os.environ['PATH']}"
  watching = subprocess.Popen(
    [pod.script, "watch", "--interval=0", *WATCH],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    env=os.environ | {"PATH": path, "POD": str(pod.folder)},
  )  # fmt: skip
  try:
    wait_until(lambda: len(read_calls(pod.folder / "calls")) > 8)
    assert watching.poll() is None
  finally:
    watching.kill()
    watching.wait()
  calls = pod.calls()
  assert len(calls) > 8
  assert all(call[3:5] == ["queued-resources", "list"] for call in calls)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    ([], "no subcommand; try launch/tpu_pod.sh --help"),
    (["fly"], "unknown subcommand fly; create, setup"),
    (["run", "stop"], "run and stop: one subcommand at a time"),
    (["create", "--foo=1"], "unknown flag --foo=1; flags of the program stand after --"),
    (["create", "--namex=1"], "unknown flag --namex=1"),
    (["create", "--name"], "--name has no value; write --name=VALUE"),
    (["create", "--name="], "--name= has no value; write --name=VALUE"),
    (["create", "--zone=z"], "create needs --name, e.g. --name=ddpm"),
    (["create", "--name=d"], "create needs --zone, e.g. --zone=us-west4-a"),
    (["create", *FLAGS], "create needs --type, e.g. --type=v5litepod-16"),
    (["create", *FLAGS, "--type=h100"], "--type=h100: its runtime is not known here"),
    (["create", *FLAGS, "--name=A b"], "--name=A b: small letters, digits and - only"),
    (["run", *FLAGS, "--workdir=/a"], "run needs --config, e.g. --config=configs/ddpm_cifar.py"),
    (["run", *FLAGS, "--config=a"], "run needs --workdir, e.g. --workdir=/mnt/shared"),
    (["run", *FLAGS, "--config=a", "--workdir=gs://b"], "give a path on storage that all workers"),
    (["run", *FLAGS, "--config=a", "--workdir=/mnt/shared/a"], "what is to be mounted at"),
    (["run", *FLAGS, "--config=a", "--workdir=/a", "--mount=x"], "give HOST:/SHARE or gs://"),
    (["watch", *WATCH, "--fresh"], "--fresh: watch would start over after each preemption"),
    (["stop", *FLAGS, "--slices=0"], "--slices=0: give a number from 1 to 99"),
    (["logs", *FLAGS, "--slice=1"], "--slice=1: give a number from 0 to 0, with --slices=N"),
    (["watch", "--interval=soon", *WATCH], "--interval=soon: give a number of seconds"),
    (["logs", *FLAGS, "--worker=all"], "--worker=all: give a number"),
    (
      ["stop", *FLAGS, "--", "--fresh"],
      "--fresh: flags of a program go to run, watch and bench only",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_2(pod, flags, says):
  ran = pod.run(*flags)
  assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
  assert says in ran.stderr
  assert pod.calls() == []


def test_help_names_every_subcommand_and_runs_nothing(pod):
  ran = pod.run("--help")
  assert ran.returncode == 0
  for name in ("create", "setup", "run", "logs", "status", "stop", "delete", "watch"):
    assert f"\n  {name} " in ran.stdout
  assert pod.calls() == []


def test_several_slices_are_one_queued_resource_with_a_node_each(pod):
  slices, node = [*FLAGS, "--slices=2"], ["--node-count=2", "--node-prefix=d"]
  (create,) = dry(pod, "create", *slices, "--type=v5litepod-16")
  assert create == [*QUEUED, "create", "d", *node, "--accelerator-type=v5litepod-16",
                    "--runtime-version=v2-alpha-tpuv5-lite", *WHERE]  # fmt: skip
  assert [call[4:7] for call in dry(pod, "stop", *slices)] == [
    ["ssh", "d-0", "--worker=all"], ["ssh", "d-1", "--worker=all"],
  ]  # fmt: skip
  assert dry(pod, "delete", *slices) == dry(pod, "delete", *FLAGS)
  assert dry(pod, "stop", *FLAGS, "--slices=1") == dry(pod, "stop", *FLAGS)
  (logs,) = dry(pod, "logs", *slices, "--slice=1", "--worker=3")
  assert logs[4:7] == ["ssh", "d-1", "--worker=3"]
  copies = [call[6] for call in dry(pod, "setup", *slices) if "scp" in call]
  assert copies == ["d-0:diffusion_jax.bundle", "d-1:diffusion_jax.bundle"]
  first, second = dry(pod, "run", *slices, *TRAINING)
  assert first[7] == second[7]
  assert "--workdir=/runs/a --config.mesh.dcn_data=2 '" in first[7]
  own = dry(pod, "run", *slices, *TRAINING, "--config.mesh.dcn_data=-1")[0][7]
  assert "dcn_data=-1" in own
  assert "dcn_data=2" not in own


def test_watch_waits_until_all_slices_are_ready_and_trains_on_each(pod):
  pod.plan("0")
  (pod.folder / "machines.d-1").write_text("CREATING\n")
  path = f"{pod.folder / 'bin'}:{os.environ['PATH']}"
  watching = subprocess.Popen(
    [pod.script, "watch", "--interval=0", "--slices=2", *WATCH],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    env=os.environ | {"PATH": path, "POD": str(pod.folder)},
  )  # fmt: skip
  try:
    looked = ["tpu-vm", "describe", "d-1"]
    wait_until(lambda: [c[2:5] for c in read_calls(pod.folder / "calls")].count(looked) > 1)
    (pod.folder / "machines.d-1").unlink()
    _, said = watching.communicate(timeout=60)
  finally:
    watching.kill()
    watching.wait()
  assert watching.returncode == 0, said
  assert "slice: CREATING" in said
  assert subcommands(pod.calls()) == ["create", "scp", "scp", "install", "install"] + ["launch"] * 2
  for worker in (0, 1):
    log = (pod.folder / f"worker-{worker}" / "train.log").read_text()
    assert "--config.mesh.dcn_data=2" in log


@pytest.mark.system
def test_gcloud_knows_every_flag(pod):
  gcloud = shutil.which("gcloud")
  if gcloud is None:
    pytest.skip("gcloud is not installed")
  for command in dry(pod, *WATCH[:5], "watch", "--spot", *WATCH[5:]):
    if command[0] == "gcloud":  # its parser names what it does not know, and calls nobody
      ran = subprocess.run([gcloud, *command[1:], "--unheard-of"], capture_output=True, text=True)
      assert ran.stderr.splitlines()[0].endswith("unrecognized arguments: --unheard-of ")
