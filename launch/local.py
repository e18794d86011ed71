"""A pod at home: several processes on one machine, each with virtual CPU devices of its own.

  python launch/local.py --processes=2 --devices=2 train --config=configs/smoke.py

starts `python -m diffusion_jax.train --config=...` twice, as a cluster would: the processes find
each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. SIGTERM and Ctrl-C go
to all of them. Without --devices each gets one of the machine's own (JAX_LOCAL_DEVICE_IDS).

Exit code: 0 if all ended with 0; else 2 if one did, else 75 if one did, else 1.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

PATIENCE_SEC = 30.0
"""What the processes get to notice that one has failed, beside distributed.heartbeat_sec."""


def main() -> int:
  args = parse()
  port = args.port or free_port()
  workers = [start(args, number, port) for number in range(args.processes)]
  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: forward(workers))
    wait(workers, args.patience_sec)
  finally:
    for worker in workers:
      if worker.poll() is None:
        worker.kill()
        worker.wait()
  return outcome([worker.returncode for worker in workers])


def parse() -> argparse.Namespace:
  flags = argparse.ArgumentParser(
    "launch/local.py", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  flags.add_argument("--processes", type=int, default=2, help="how many (2)")
  flags.add_argument("--devices", type=int, help="virtual CPU devices of each")
  flags.add_argument("--port", type=int, help="of process 0; a free one by default")
  flags.add_argument("--patience_sec", type=float, default=90.0 + PATIENCE_SEC,
                     help="once one has failed, the others are killed after so long")  # fmt: skip
  flags.add_argument("program", help="train, evaluate or sample, then its own flags")
  flags.add_argument("flags", nargs=argparse.REMAINDER)
  args = flags.parse_args()
  if args.processes < 1 or (args.devices is not None and args.devices < 1):
    flags.error(f"--processes={args.processes}, --devices={args.devices}: at least 1 each")
  return args


def free_port() -> int:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(args: argparse.Namespace, number: int, port: int) -> subprocess.Popen:
  """Starts one process, in a session of its own: a terminal's Ctrl-C comes from us, once."""
  env = {
    **os.environ,
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(args.processes),
    "JAX_PROCESS_ID": str(number),
  }
  if args.devices is None:
    env["JAX_LOCAL_DEVICE_IDS"] = str(number)
  else:
    virtual = f"--xla_force_host_platform_device_count={args.devices}"
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {virtual}".strip()
    env["JAX_PLATFORMS"] = "cpu"
  command = [sys.executable, "-m", f"diffusion_jax.{args.program}", *args.flags]
  return subprocess.Popen(command, env=env, start_new_session=True)


def forward(workers: list[subprocess.Popen]) -> None:
  for worker in workers:
    if worker.poll() is None:
      worker.send_signal(signal.SIGTERM)


def wait(workers: list[subprocess.Popen], patience_sec: float) -> None:
  """Returns when all have ended, or some time after one has failed."""
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
