"""Begin a run on a user's own data: choose its config, and say what was found."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from diffusion_jax import parallel
from diffusion_jax.core.config import Override
from diffusion_jax.core.files import write_whole
from diffusion_jax.data.finding import find_data
from diffusion_jax.runs import command_line, own_data
from diffusion_jax.runs.data_argument import naming_data
from diffusion_jax.runs.experiment import Experiment, build_experiment
from diffusion_jax.runs.own_data import Chosen
from diffusion_jax.train_loop.setup import Job


class OwnRun(NamedTuple):
  """A run whose config was chosen from its data.

  Attributes:
    experiment: the chosen config with the overrides.
    chosen: the choice, with reasons.
    saved_as: file for the config, and its content; None: it is not written.
  """

  experiment: Experiment
  chosen: Chosen
  saved_as: tuple[Path, str] | None

  def show(self, job: Job) -> None:
    """Print the table of classes, and write the config file if one was named."""
    if table := own_data.class_table(job.train, job.test):
      print(table, flush=True)
    if self.saved_as is not None:
      path, content = self.saved_as
      write_whole(path, content)
      print(f"config written to {path}: edit it, and train it with --config={path}", flush=True)


def begin_own_run(
  text: str, overrides: Sequence[Override], workdir: Path, fresh: bool, save_config: Path | None
) -> OwnRun:
  """Join the job, look at the data, choose a config and print it.

  Raises:
    UserError: the data or a flag cannot be used.
  """
  recipe = build_experiment(own_data.recipe_of(text), overrides)
  command_line.join_job(recipe)
  chosen = choose_for_run(text, workdir, fresh, recipe, [(o.section, o.field) for o in overrides])
  experiment = build_experiment(chosen.raw, overrides)
  saved_as = None
  if save_config is not None:
    saved_as = save_config, own_data.config_source(experiment, chosen, text)
    own_data.check_config_target(*saved_as)
  print(own_data.describe_choice(chosen, overrides), flush=True)
  return OwnRun(experiment, chosen, saved_as)


def choose_for_run(
  text: str, workdir: Path, fresh: bool, recipe: Experiment, fields: Iterable[tuple[str, str]]
) -> Chosen:
  """Return the config that the run began with, or choose one for its data and these devices.

  Args:
    text: the value of --data.
    workdir: folder of the run.
    fresh: choose anew.
    recipe: the experiment before the data are looked at, with the user's own fields.
    fields: section and field of these.
  """
  stored = None if fresh else own_data.stored_choice(workdir, find_data(text))
  if stored is not None:
    return stored
  devices = (jax.default_backend(), jax.device_count())
  given = {(s, f): getattr(recipe.sections[s], f) for s, f in fields if f != "name"}
  with naming_data(text):
    return parallel.process_0_first(lambda: own_data.choose_config(text, *devices, given))
