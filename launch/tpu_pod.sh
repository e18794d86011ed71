#!/usr/bin/env bash
# Trains on Cloud TPU slices of one host or many; see launch/tpu_pod.sh --help.
#
# Cloud TPU's commands and states: https://docs.cloud.google.com/tpu/docs/queued-resources, /spot,
# /runtimes, /jax-pods and
# /multislice-introduction there. That API serves TPU v2 to v6e; for later TPUs use
# launch/gke_jobset.yaml.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launch/tpu_pod.sh SUBCOMMAND --name=NAME --zone=ZONE [flags] [-- flags of the program]

  create   requests the slice (a queued resource of the same name)
  setup    copies the last commit of this checkout to all workers and installs it
  run      starts training on all workers, in the background, with one log per worker
  logs     follows the log of worker 0 (--worker=N, --slice=N for another one)
  status   prints the state of the slice and of the training on each worker
  stop     saves and stops training on all workers; run continues it
  bench    runs benchmarks/tpu.py on one chip of worker 0 (--worker=N for another one), after
           setup; figures stay in ~/bench there, and the same command goes on after a break
  delete   deletes the slice
  watch    does all of this: creates, sets up and runs, and again after a preemption, a lost
           host or an error, until training is finished

  --name=NAME        name of the slice                                $TPU_NAME
  --zone=ZONE        e.g. us-west4-a                                  $ZONE
  --project=ID       gcloud's own by default                          $PROJECT_ID
  --type=TYPE        e.g. v5litepod-16 (create, watch)                $ACCELERATOR_TYPE
  --version=VERSION  runtime version; by default that of --type       $RUNTIME_VERSION
  --slices=N         number of such slices, joined by the data center's network; the same in every
                     call (1); run and watch add --config.mesh.dcn_data=N      $SLICES
  --spot             use a cheaper slice that may be preempted (create, watch)
  --config=CONFIG    name of a shipped config, or a file in this checkout (run, watch)
  --workdir=PATH     run's folder on storage shared by all workers (run, watch)
  --mount=SOURCE     storage mounted at /mnt/shared on every worker (run, watch): HOST:/SHARE
                     (NFS, such as Filestore) or gs://BUCKET (by gcsfuse; the bucket needs a
                     hierarchical namespace, because checkpoint folders are renamed)
  --worker=N         worker whose log is followed (logs) or that measures (bench), of the slice
  --slice=N          with that number, from 0
  --interval=SEC     seconds between two checks (watch; 60)
  --dry-run          print the commands, one per line, without running them

$MAX_RESTARTS (20): number of training errors after which watch gives up; preemptions do not count.
The workers take ssh keys from the agent: ssh-add ~/.ssh/google_compute_engine, once.

  launch/tpu_pod.sh watch --name=ddpm --zone=us-west4-a --type=v5litepod-16 --spot \
    --mount=10.0.0.2:/runs --config=configs/ddpm_cifar.py --workdir=/mnt/shared/ddpm_cifar \
    -- --config.training.batch_size=1024
HELP
}

fail() { printf 'error: %s\n' "$*" >&2 && exit 2; }
say() { printf '%s %s\n' "$(date '+%F %T')" "$*" >&2; }

# ---- words and commands

# quote WORD...: print the words as typed in a shell, with quotes if needed.
quote() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=\'${word//\'/\'\\\'\'}\'
    line+=${line:+ }$word
  done
  printf '%s' "$line"
}

# Runs a command; prints it instead with --dry-run.
do_() {
  if [[ $dry_run ]]; then
    quote "$@" && echo
  else
    "$@"
  fi
}

tpus() { do_ gcloud compute tpus "$@" "${where[@]}"; }

# Runs a shell command on every worker of every slice.
on_all() {
  local node
  for node in "${nodes[@]}"; do tpus tpu-vm ssh "$node" --worker=all --command="$1" || return; done
}

# Runs a shell command on the chosen worker.
on_one() { tpus tpu-vm ssh "${nodes[$slice]}" --worker="$worker" --command="$1"; }

# ---- commands run on the workers; ~/diffusion_jax is their checkout

# The images have too old a Python; uv, installed once, provides a newer one.
install_command() {
  printf '%s' 'set -e; git init -q diffusion_jax; cd diffusion_jax;' \
    ' git fetch -q ../diffusion_jax.bundle HEAD; git checkout -q --force --detach FETCH_HEAD;' \
    ' PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv;' \
    ' [ -x .venv/bin/python ] || ~/.local/bin/uv venv -q --python 3.12 .venv;' \
    " ~/.local/bin/uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}

mount_command() {
  local at=/mnt/shared
  printf '%s' "set -e; if mountpoint -q $at; then exit 0; fi; sudo mkdir -p $at; "
  if [[ $mount == gs://* ]]; then
    # shellcheck disable=SC2016  # expanded on the worker
    printf '%s' 'if ! command -v gcsfuse >/dev/null; then' \
      ' key=/usr/share/keyrings/cloud.google.asc; apt=https://packages.cloud.google.com/apt;' \
      ' curl -fsS $apt/doc/apt-key.gpg | sudo tee $key >/dev/null;' \
      ' echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -c -s) main"' \
      ' | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null;' \
      ' sudo apt-get -q update; sudo apt-get -q install -y gcsfuse; fi;' \
      ' sudo chown "$(id -u):$(id -g)" '"$at; gcsfuse --implicit-dirs $(quote "${mount#gs://}") $at"
  else
    printf '%s' 'sudo apt-get -q update; sudo apt-get -q install -y nfs-common;' \
      " sudo mount -t nfs -o hard $(quote "$mount") $at; sudo chmod 1777 $at"
  fi
}

# Tests whether training runs on the worker; after a reboot another process may have its number.
# shellcheck disable=SC2016  # expanded on the worker
running='grep -qs diffusion_jax.train "/proc/$(cat ~/train.pid 2>/dev/null)/cmdline"'

# Writes train.log, train.pid and, at the end, train.exit; outlives the connection.
run_command() {
  local train
  train=$(quote .venv/bin/python -u -m diffusion_jax.train --config="$config" \
    --workdir="$workdir" ${dcn_data:+"$dcn_data"} ${extra[@]+"${extra[@]}"})
  # shellcheck disable=SC2016  # expanded on the worker
  printf '%s' "if $running; then echo 'already running'; exit 0; fi;" \
    ' cd diffusion_jax || exit 1; rm -f ~/train.pid ~/train.exit ~/train.stop;' \
    " nohup bash -c '\"\$@\" & echo \$! >~/train.pid; wait \$!; echo \$? >~/train.exit' train" \
    " $train </dev/null >>~/train.log 2>&1 & until [ -s ~/train.pid ]; do sleep 0.1; done"
}

# One chip, so that the other hosts of a larger slice need not take part.
bench_command() {
  printf '%s' "if $running; then echo 'training runs here: launch/tpu_pod.sh stop' >&2; exit 2; fi;" \
    ' cd diffusion_jax || exit 1; MEGASCALE_NUM_SLICES=1 TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1 TPU_PROCESS_BOUNDS=1,1,1' \
    ' TPU_VISIBLE_CHIPS=0 .venv/bin/python -u benchmarks/tpu.py --out=../bench' \
    "${extra[*]:+ $(quote ${extra[@]+"${extra[@]}"})}"
}

# State of a worker: new (nothing is installed), ready, running, stopped (by stop), exit N.
# shellcheck disable=SC2016  # expanded on the worker
state_command='if [ ! -x diffusion_jax/.venv/bin/python ]; then echo new;'" elif $running;"' then
 echo running; elif [ -e train.stop ]; then echo stopped; elif [ -e train.exit ]; then
 echo "exit $(cat train.exit)"; elif [ -e train.pid ]; then echo "exit 1"; else echo ready; fi'
state_command=${state_command//$'\n'/}

# shellcheck disable=SC2016  # expanded on the worker
stop_command="if $running;"' then touch train.stop; kill -TERM "$(cat train.pid)"; fi'

# ---- subcommands

create() {
  local node=(--node-id="$name")
  ((slices == 1)) || node=(--node-count="$slices" --node-prefix="$name") # NAME-0, NAME-1, ...
  tpus queued-resources create "$name" "${node[@]}" --accelerator-type="$type" \
    --runtime-version="$version" ${spot:+--spot}
}

copy() {
  local node
  for node in "${nodes[@]}"; do
    tpus tpu-vm scp build/diffusion_jax.bundle "$node:diffusion_jax.bundle" --worker=all || return
  done
}

# The steps are joined by &&, because `set -e` has no effect in watch, which survives failures.
setup() {
  [[ $dry_run ]] || git diff --quiet HEAD || say "uncommitted changes are not copied"
  do_ mkdir -p build \
    && do_ git bundle create -q build/diffusion_jax.bundle HEAD \
    && copy \
    && on_all "$(install_command)"
}

run() {
  { [[ -z $mount ]] || on_all "$(mount_command)"; } && on_all "$(run_command)"
}

logs() { on_one 'tail -n 100 -F train.log'; }
bench() { on_one "$(bench_command)"; }
stop() { on_all "$stop_command"; }
delete() { tpus queued-resources delete "$name" --force --quiet; }

# State of the slice ("none" if it does not exist); once it is ACTIVE, state of its machines.
ask_slice() { tpus queued-resources list --filter="name~/$name\$" --format='value(state.state)'; }
ask_machines() {
  local node
  for node in "${nodes[@]}"; do tpus tpu-vm describe "$node" --format='value(state)' || return; done
}
ask_training() { on_all "$state_command"; }

status() {
  if [[ $dry_run ]]; then
    ask_slice && ask_machines && ask_training
    return
  fi
  local found
  found=$(ask_slice)
  echo "slice: ${found:-none}"
  [[ $found == ACTIVE ]] || return 0
  found=$(ask_machines)
  echo "machines: ${found//$'\n'/, }"
  ask_training
}

# ---- watch

slice_state() {
  local found
  found=$(ask_slice) || return
  [[ $found != ACTIVE ]] || found=$(ask_machines) || return
  # Of several slices, the state of one that is not ready.
  echo "${found:-none}" | awk '!seen || $0 != "READY" { state = $0; seen = 1 } END { print state }'
}

# next_of STATES: next action for the workers' states, one per line: wait, setup, run, again (run
# after an error or an early stop), or the exit code of watch.
next_of() {
  case "$1" in
    "") echo wait ;;
    *stopped*) echo 75 ;;
    *new*) echo setup ;;
    *running*) echo wait ;; # the watchdog ends workers that have lost a partner
    *"exit 2"$'\n'*) echo 2 ;;
    *exit\ [1-9]*) echo again ;;
    *ready*) echo run ;;
    *) echo 0 ;;
  esac
}

# Counts an error; a stop with a checkpoint (75) does not count.
count_error() {
  [[ $1 != *"exit 75"* ]] || return 0
  errors=$((errors + 1))
  ((errors <= max_restarts)) || { say "more than $max_restarts errors; look into logs" && exit 1; }
}

train_on() {
  local states next
  states=$(ask_training) || { say "the workers do not answer" && return 0; }
  next=$(next_of "$states"$'\n')
  [[ $next == wait ]] || say "workers: ${states//$'\n'/, }; next: $next"
  case $next in
    wait) ;;
    setup) setup && run ;;
    run) run ;;
    again) count_error "$states" && run ;;
    *) exit "$next" ;;
  esac || say "that failed; once more in $interval s"
}

look() {
  local state
  state=$(slice_state) || { say "Cloud TPU does not answer" && return 0; }
  [[ $state == "$last" ]] || say "slice: $state"
  last=$state
  case $state in
    READY) train_on ;;
    none) create || say "cannot create it" ;;
    SUSPENDED | FAILED | PREEMPTED | TERMINATED) { delete && create; } || say "cannot renew it" ;;
  esac
}

watch() {
  if [[ $dry_run ]]; then
    status && delete && create && setup && run
    return
  fi
  while look; do sleep "$interval"; done
}

# ---- flags

take() {
  local flags='name|zone|project|type|version|slices|config|workdir|mount|worker|slice|interval'
  if [[ $1 =~ ^--($flags)(=(.*))?$ ]]; then
    [[ ${BASH_REMATCH[3]} ]] || fail "$1 has no value; write --${BASH_REMATCH[1]}=VALUE"
    printf -v "${BASH_REMATCH[1]}" '%s' "${BASH_REMATCH[3]}"
    return
  fi
  case "$1" in
    --spot) spot=yes ;;
    --dry-run) dry_run=yes ;;
    -*) fail "unknown flag $1; flags of the program stand after --; try launch/tpu_pod.sh --help" ;;
    create | setup | run | logs | status | stop | bench | delete | watch)
      [[ -z $subcommand ]] || fail "$subcommand and $1: one subcommand at a time"
      subcommand=$1
      ;;
    *) fail "unknown subcommand $1; create, setup, run, logs, status, stop, bench, delete or watch" ;;
  esac
}

runtime_of() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "--type=$1: its runtime is not known here; give --version=VERSION too" ;;
  esac
}

# needs FLAG EXAMPLE
needs() { [[ ${!1} ]] || fail "$subcommand needs --$1, e.g. --$1=$2"; }

check() {
  [[ $subcommand ]] || fail "no subcommand; try launch/tpu_pod.sh --help"
  needs name ddpm
  needs zone us-west4-a
  [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "--name=$name: small letters, digits and - only"
  [[ $slices =~ ^[1-9][0-9]?$ ]] || fail "--slices=$slices: give a number from 1 to 99"
  [[ $slice =~ ^[0-9]+$ && $slice -lt $slices ]] \
    || fail "--slice=$slice: give a number from 0 to $((slices - 1)), with --slices=N of several"
  [[ $subcommand != create && $subcommand != watch ]] || check_create
  if [[ $subcommand == run || $subcommand == watch ]]; then
    check_run
  elif ((${#extra[@]})) && [[ $subcommand != bench ]]; then
    fail "${extra[0]}: flags of a program go to run, watch and bench only"
  fi
  [[ $interval =~ ^[0-9]+$ ]] || fail "--interval=$interval: give a number of seconds"
  [[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker: give a number, 0 for the first"
  [[ $max_restarts =~ ^[0-9]+$ ]] || fail "MAX_RESTARTS=$max_restarts: give a number"
}

check_create() {
  needs type v5litepod-16
  [[ $version ]] || version=$(runtime_of "$type")
}

check_run() {
  needs config configs/ddpm_cifar.py
  needs workdir /mnt/shared/ddpm_cifar
  [[ $workdir == /* ]] || fail "--workdir=$workdir: give a path on storage that all workers share"
  [[ -z $mount || $mount == gs://?* || $mount == ?*:/* ]] \
    || fail "--mount=$mount: give HOST:/SHARE or gs://BUCKET"
  [[ $mount || $workdir != /mnt/shared/* ]] \
    || fail "--workdir=$workdir: say what is to be mounted at /mnt/shared, --mount=HOST:/SHARE"
  [[ $subcommand != watch || " ${extra[*]-} " != *" --fresh "* ]] \
    || fail "--fresh: watch would start over after each preemption; use it with run"
}

name=${TPU_NAME:-} zone=${ZONE:-} project=${PROJECT_ID:-} type=${ACCELERATOR_TYPE:-}
version=${RUNTIME_VERSION:-} config='' workdir='' mount='' spot='' dry_run='' subcommand=''
worker=0 slice=0 slices=${SLICES:-1} dcn_data='' interval=60 errors=0 last='' extra=()
max_restarts=${MAX_RESTARTS:-20}
while (($#)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --config.*) extra+=("$1") ;;
    --) shift && extra+=("$@") && break ;;
    *) take "$1" ;;
  esac
  shift
done
check
where=(--zone="$zone" ${project:+--project="$project"})
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
  [[ " ${extra[*]-}" == *" --config.mesh.dcn_data="* ]] || dcn_data=--config.mesh.dcn_data=$slices
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"$subcommand"
