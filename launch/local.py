"""Run several processes on one machine as a cluster would, each with its own devices.

  python launch/local.py --processes=2 --devices=2 train --config=configs/smoke.py

starts `python -m diffusion_jax train --config=...` twice. The processes find each other through
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Ctrl-C and signals that request a
stop are sent to each of them once, as SIGTERM; if this launcher itself is killed, they save and
stop too. Without --devices each process gets one of the machine's own (JAX_LOCAL_DEVICE_IDS).

Exit code: 0 if all processes ended with 0; else 2 if one ended with 2, else 75 if one ended with
75, else 1.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

ASKING = (
  signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip

PATIENCE_SEC = 30.0
"""Seconds, in addition to distributed.heartbeat_sec, to notice that a process has failed."""


def main() -> int:
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to report or save yet
  args = parse()
  workers: list[subprocess.Popen] = []
  asked = forward_signals(workers)
  port = args.port or free_port()
  alive, _held = os.pipe()  # the other end closes when this process ends, for any reason
  try:
    while len(workers) < args.processes and not asked:
      workers.append(start(args, len(workers), port, alive))
    if asked:  # perhaps during a start
      forward(workers)
    wait(workers, args.patience_sec)
  finally:
    for worker in workers:
      if worker.poll() is None:
        worker.kill()
        worker.wait()
  return outcome([worker.returncode for worker in workers]) if workers else 1


def parse() -> argparse.Namespace:
  flags = argparse.ArgumentParser(
    "launch/local.py", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  flags.add_argument("--processes", type=int, default=2, help="number of processes (2)")
  flags.add_argument("--devices", type=int, help="virtual CPU devices per process")
  flags.add_argument("--port", type=int, help="port of process 0; a free one by default")
  flags.add_argument("--patience_sec", type=float, default=90.0 + PATIENCE_SEC,
                     help="seconds until the others are killed after one has failed")  # fmt: skip
  flags.add_argument("program", help="train, evaluate or sample, followed by its flags")
  flags.add_argument("flags", nargs=argparse.REMAINDER)
  args = flags.parse_args()
  if args.processes < 1 or (args.devices is not None and args.devices < 1):
    flags.error(f"--processes={args.processes}, --devices={args.devices}: at least 1 each")
  return args


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def forward_signals(workers: list[subprocess.Popen]) -> list[int]:
  """Pass on signals that request a stop; append each to the returned list.

  A SIGHUP that is already ignored, as after nohup, stays ignored.
  """
  asked: list[int] = []

  def handle(number, frame):
    del frame
    asked.append(number)
    forward(workers)

  for number in ASKING:
    if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
      signal.signal(number, handle)
  return asked


def start(args: argparse.Namespace, number: int, port: int, alive: int) -> subprocess.Popen:
  """Start one process, in its own session: a terminal's Ctrl-C reaches it only through us.

  Args:
    args: flags.
    number: number of the process.
    port: port of process 0.
    alive: end of a pipe; the process stops when the other end is closed.
  """
  env = {
    **os.environ,
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(args.processes),
    "JAX_PROCESS_ID": str(number),
    "DIFFUSION_JAX_LAUNCHER": str(alive),
  }
  if args.devices is None:
    env["JAX_LOCAL_DEVICE_IDS"] = str(number)
  else:
    virtual = f"--xla_force_host_platform_device_count={args.devices}"
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {virtual}".strip()
    env["JAX_PLATFORMS"] = "cpu"
  command = [sys.executable, "-m", "diffusion_jax", args.program, *args.flags]
  return subprocess.Popen(command, env=env, start_new_session=True, pass_fds=(alive,))


def forward(workers: list[subprocess.Popen]) -> None:
  for worker in workers:
    if worker.poll() is None:
      worker.send_signal(signal.SIGTERM)


def wait(workers: list[subprocess.Popen], patience_sec: float) -> None:
  """Return when all processes have ended, or `patience_sec` after one has failed."""
  failed_at = None
  while any(worker.poll() is None for worker in workers):
    if failed_at is None and any(worker.poll() not in (None, 0) for worker in workers):
      failed_at = time.monotonic()
    if failed_at is not None and time.monotonic() - failed_at > patience_sec:
      return
    time.sleep(0.1)


def outcome(codes: list[int]) -> int:
  if not any(codes):
    return 0
  return next((code for code in (2, 75) if code in codes), 1)


if __name__ == "__main__":
  sys.exit(main())
