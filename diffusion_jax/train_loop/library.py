"""Training from Python: `diffusion_jax.train("ddpm_digits", training=dict(num_steps=20))`."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.core.config import load_file
from diffusion_jax.core.files import user_path
from diffusion_jax.core.wording import in_python
from diffusion_jax.inference.run import Run, load_run
from diffusion_jax.runs import experiment as experiments
from diffusion_jax.runs.command_line import AS_WRITTEN, enable_compilation_cache
from diffusion_jax.runs.experiment import Experiment
from diffusion_jax.runs.signals import stop_requests
from diffusion_jax.runs.workdir import default_workdir, lock, prepare_workdir
from diffusion_jax.train_loop.loop import train_run
from diffusion_jax.train_loop.setup import prepare_job
from diffusion_jax.types import UserError


def train(
  config: str | Mapping[str, Any],
  *,
  workdir: str | Path | None = None,
  fresh: bool = False,
  **sections: Any,
) -> Run:
  """Train a model, or continue its run, as the command line does, in this process.

  Args:
    config: name of a shipped config, path of a config file, or the sections themselves.
    workdir: the run's folder; None: `runs/NAME` of the config.
    fresh: start over; the old run is moved aside.
    sections: changes per section, as a mapping of fields (`training=dict(num_steps=20)`; another
      `name` starts from that entry's defaults) or as a built part (`sampler=samplers.Heun()`).

  Returns:
    The trained run, with its averaged weights.

  Raises:
    UserError: a config, data or folder that cannot be trained.
    StoppedEarly: a signal stopped it after its state was saved; the same call continues.
  """
  with in_python(), _settings():
    experiment = make_experiment(config, sections)
    if workdir is None and not isinstance(config, str):
      raise UserError("workdir is missing: a config of sections needs the folder of its run")
    folder = user_path(workdir) if workdir is not None else default_workdir(str(config))
    with stop_requests() as stop_requested:
      job = prepare_job(experiment, folder)
      prepare_workdir(folder, fresh)
      with lock(folder):
        train_run(job, stop_requested, None)
    return load_run(folder)


def make_experiment(config: str | Mapping[str, Any], sections: Mapping[str, Any]) -> Experiment:
  """Return the experiment of a config with changed sections; see `train`."""
  raw = load_file(config).to_dict() if isinstance(config, str) else dict(config)
  built = {name: part for name, part in sections.items() if dataclasses.is_dataclass(part)}
  for name, fields in sections.items():
    if name in built:
      continue
    if not isinstance(fields, Mapping):
      raise UserError(f"{name}={fields!r}: must be a mapping of fields, or a built part")
    old = dict(raw.get(name, {}))
    kept = old if fields.get("name", old.get("name")) == old.get("name") else {}
    raw[name] = kept | dict(fields)
  return experiments.build_experiment(raw).replace(**built)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
  """Hold JAX at the settings that the programs run with."""
  enable_compilation_cache()
  before = {name: getattr(jax.config, name) for name in AS_WRITTEN}
  try:
    for name, value in AS_WRITTEN.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
