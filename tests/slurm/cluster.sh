#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, for trying launch/slurm.sbatch.
#
#   tests/slurm/cluster.sh up FOLDER     starts munged, slurmctld and two slurmd; needs root and
#                                        apt-get install munge slurmctld slurmd slurm-client
#   export SLURM_CONF=FOLDER/slurm.conf  then sinfo, sbatch, squeue, scancel as on any cluster
#   tests/slurm/cluster.sh down FOLDER   ends them
#
# All state is in FOLDER, which must be absolute; nothing outside it is changed.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
if [ $# -ne 2 ] || [ "${2:0:1}" != / ]; then usage; fi
folder=$2
conf=$folder/slurm.conf

free_port() { python3 -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])'; }

write_config() {
  local cpus memory
  cpus=$(nproc)
  memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024 / 2))
  cat >"$conf" <<CONF
ClusterName=home
SlurmctldHost=$(hostname)
SlurmctldPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=$(hostname) Port=$(free_port) CPUs=$cpus RealMemory=$memory
NodeName=node2 NodeHostname=$(hostname) Port=$(free_port) CPUs=$cpus RealMemory=$memory
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

up() {
  mkdir -p "$folder"/{state,spool-node1,spool-node2}
  write_config
  printf 'CgroupPlugin=autodetect\n' >"$folder/cgroup.conf"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  chmod 711 "$folder"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  export SLURM_CONF=$conf
  slurmctld -f "$conf"
  slurmd -f "$conf" -N node1
  slurmd -f "$conf" -N node2
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null | tr -d ' ')" = 2 ] && return 0
    sleep 1
  done
  sinfo >&2 || true
  tail -n 5 "$folder"/*.log >&2
  echo "tests/slurm/cluster.sh: the two nodes did not come up in 60 s; see the logs above" >&2
  down
  exit 1
}

down() {
  local name pid
  for name in slurmd-node1 slurmd-node2 slurmctld munged; do
    if pid=$(cat "$folder/$name.pid" 2>/dev/null); then
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
      kill -9 "$pid" 2>/dev/null || true
    fi
  done
}

case $1 in
  up) up ;;
  down) down ;;
  *) usage ;;
esac
