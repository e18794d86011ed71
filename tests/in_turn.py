"""Run several programs one after the other in one process: python in_turn.py FILE

FILE holds a JSON list of commands, each a list of a program's name and its flags. What the n-th
writes to stdout goes to FILE.n, of a job's processes what the first of them writes. The first
command joins the job that the environment describes, if any, and the process leaves it after the
last. A program that fails ends the process with its exit code.
"""

import contextlib
import importlib
import json
import os
import sys

from diffusion_jax import parallel
from diffusion_jax.runs import command_line


def run(program, flags):
  """The exit code of a program's main, called as its own process calls it."""
  sys.argv = [program, *flags]
  try:
    command_line.run_main(importlib.import_module(f"diffusion_jax.{program}").main)
  except SystemExit as ended:
    return ended.code


def main(path):
  with open(path) as file:
    commands = json.load(file)
  join, leave = command_line.join_job, parallel.leave

  def join_once(experiment):
    join(experiment)
    command_line.join_job = lambda experiment: None

  command_line.join_job, parallel.leave = join_once, lambda code: None
  is_first = os.environ.get("JAX_PROCESS_ID", "0") == "0"
  for number, (program, *flags) in enumerate(commands):
    out = f"{path}.{number}" if is_first else os.devnull
    with open(out, "w") as file, contextlib.redirect_stdout(file):
      code = run(program, flags)
    if code:
      break
  leave(code)
  sys.exit(code)


if __name__ == "__main__":
  main(sys.argv[1])
