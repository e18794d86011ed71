"""Flags and exit codes of a program, and its start and stop."""

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

from diffusion_jax import __version__, parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.core import bucket_files, buckets, files, shipped, storage
from diffusion_jax.core.config import Override, parse_override
from diffusion_jax.core.wording import with_flags
from diffusion_jax.parallel import compilation_cache
from diffusion_jax.runs import flag_help, signals, streams
from diffusion_jax.runs.config_help import help_on
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.jax_settings import hold_jax_as_written
from diffusion_jax.types import UserError

DONE, FAILED, USER_ERROR, STOPPED_EARLY, INTERRUPTED = 0, 1, 2, 75, 130


class Parser(argparse.ArgumentParser):
  """An argparse parser that raises UserErrors and leaves --config.* to this package's parser.

  Every program also has --help and --version, and one that reads a config --help_config.
  """

  def __init__(self, program: str, description: str | None):
    super().__init__(
      f"python -m diffusion_jax.{program}", description=description, allow_abbrev=False,
      add_help=False, formatter_class=flag_help.Formatter,
    )  # fmt: skip
    self._positionals.title, self._optionals.title = "arguments", "flags"

  def error(self, message: str) -> NoReturn:
    if "required: --config" in message:
      message += f"; shipped configs: {', '.join(shipped.configs())}"
    end = "" if message.endswith("?") else ";"
    raise UserError(f"{message}{end} try {self.prog} --help")

  def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Override]]:
    """Split --config.section.field=value from the program's own flags.

    Raises:
      UserError: a flag is unknown, missing, given twice or has a wrong value.
    """
    _expect_job()
    takes_config = any(action.dest in ("config", "workdir") for action in self._actions)
    self.usage = flag_help.usage(self.prog, self._actions)
    self._add_help(takes_config)
    required = [action for action in self._actions if action.required]
    for action in self._actions:  # including those of groups
      flag_help.complete(action)
      action.type = _naming_its_flag(action)
      action.required = False  # report an unknown flag first: it may be the missing one, misspelt
    overrides = [parse_override(a) for a in argv if a.startswith("--config.")]
    flags = [a for a in argv if not a.startswith("--config.")]
    args, unknown = self.parse_known_args(flags)
    if unknown:
      self.error(flag_help.explain_unknown(unknown, self._option_string_actions, takes_config))
    if takes_config and args.help_config is not None:
      workdir = getattr(args, "workdir", None)
      print(help_on(args.help_config, getattr(args, "config", None), workdir, overrides))
      self.exit()
    for action in required:
      action.required = True
    return self.parse_args(flags), overrides

  def _add_help(self, takes_config: bool) -> None:
    group = self.add_argument_group("help")
    group.add_argument("-h", "--help", action="help", help="print this")
    group.add_argument(
      "--version", action="version", version=shipped.versions(), help="print the versions"
    )
    if takes_config:
      group.add_argument(
        "--help_config", nargs="?", const="", metavar="SECTION",
        help="list the fields of the config, which --config.SECTION.FIELD=VALUE sets; with "
        "--config or --workdir, their values",
      )  # fmt: skip


def _expect_job() -> None:
  """Tell the copies of buckets that this process may be one of several."""
  with contextlib.suppress(UserError):  # `join_job` reports it
    if parallel.detect(os.environ) is not None:
      buckets.expect_job()


def _naming_its_flag(action: argparse.Action) -> Any:
  """Return the type of a flag; it rejects an empty path (an unset shell variable) by name."""
  name = action.option_strings[0] if action.option_strings else action.dest
  if action.type is files.run_folder:
    return functools.partial(files.run_folder, flag=name)
  for read_path in (files.user_path, files.bucket_path):
    if action.type is read_path:
      return files.flag_path(name, read_path)
  return action.type


def run_main(main: Callable[[list[str]], int | None]) -> NoReturn:
  """Run a program's main and exit with the code of its outcome.

  0: done. 2: the user must change something; one line and no traceback. 75: stopped early; the same
  command continues. 1: anything else, with its traceback. Ctrl-C ends it by that signal, which a
  shell reports as 130.
  """
  logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it writes
  streams.leave_out_repeats()
  hold_jax_as_written()
  # All that a program prints passes here, so that each error, warning and log line names flags.
  out, err = (streams.Unbreakable(s, _as_given) for s in (sys.stdout, sys.stderr))
  signals.stop_with_launcher(os.environ)
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    with signals.interruptible():
      code = _exit_code(main)
      code = _end_uploads(code)
    out.flush()
    err.flush()
    parallel.leave(code)
    if code == INTERRUPTED:
      signals.end_by(signal.SIGINT)
  sys.exit(code)


def _as_given(text: str) -> str:
  """Return a text with flags in place of fields, and with a bucket's addresses."""
  return with_flags(buckets.with_addresses(text))


def _end_uploads(code: int) -> int:
  """Upload the last changes to buckets; a failure changes the code of a finished program."""
  if (line := buckets.end_uploads()) is None:
    return code
  print(f"error: {files.printable(line)}", file=sys.stderr)
  return USER_ERROR if code in (DONE, STOPPED_EARLY) else code


def _exit_code(main: Callable[[list[str]], int | None]) -> int:
  try:
    return main(sys.argv[1:]) or DONE
  except UserError as error:
    print(f"error: {files.printable(str(error))}", file=sys.stderr)
    return USER_ERROR
  except signals.StoppedEarly as stopped:
    print(stopped)
    return STOPPED_EARLY
  except KeyboardInterrupt:
    print(signals.INTERRUPTED, file=sys.stderr)
    return INTERRUPTED
  except Exception as error:
    if (line := users_part(error)) is not None:
      print(f"error: {files.printable(line)}", file=sys.stderr)
      return USER_ERROR
    traceback.print_exc()
    return FAILED


def users_part(error: Exception) -> str | None:
  """Return the line for an error that only the user can fix, None for any other."""
  first = str(error).strip().partition("\n")[0]
  if isinstance(error, MemoryError):
    return first or "not enough memory"
  if (line := store.explain_failed_save(error) or storage.explain_storage(error)) is not None:
    return line
  if storage.could_not_reach(error):
    return (
      f"a bucket could not be reached or used ({bucket_files.explain(error)}); repair that, then "
      "start the same command again"
    )
  if "RESOURCE_EXHAUSTED" in first:
    return (
      f"the device's memory is too small ({first[:200]}); try in this order: a smaller "
      "`training.batch_size=N`, `training.accumulation_steps=2` or more, `model.remat=block`, "
      "`mesh.fsdp=N` on several devices; python -m diffusion_jax.plan shows what fits"
    )
  frames = traceback.extract_tb(error.__traceback__)
  if frames and frames[-1].filename.endswith("xla_bridge.py"):  # where JAX looks for devices
    asked = os.environ.get("JAX_PLATFORMS", "")
    why = f" ({first[:200]})" if first else ""
    return (
      f"JAX_PLATFORMS={asked}: that device cannot be used here{why}; unset JAX_PLATFORMS, or "
      "install what it needs, e.g. pip install 'diffusion_jax[cuda12]'"
    )
  return None


def join_job(experiment: Experiment) -> None:
  """Join a job of several processes, if this process was started as part of one.

  Afterwards only process 0 writes to stdout, and each process labels its lines on stderr. Call it
  before anything that uses a device.

  Raises:
    UserError: the job cannot start, see `parallel.join_processes`.
  """
  world = parallel.choose(experiment.distributed, os.environ)
  if world is None:
    buckets.joined_job(0, 1)
    return
  if world.process_id is not None:
    streams.label_lines(world.process_id, world.num_processes or 0)
  facts = [sys.argv[1:], experiment.to_dict(), __version__, jax.__version__]
  identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
  parallel.join_processes(experiment.distributed, world, identity)
  if world.process_id is None:
    streams.label_lines(jax.process_index(), jax.process_count())
  buckets.joined_job(jax.process_index(), jax.process_count())


def enable_compilation_cache() -> None:
  """Keep compiled programs in the user's cache, unless JAX's own variables disagree."""
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "xla"))
  if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  compilation_cache.replace_damaged_entries()
