"""Train and measure diffusion models and variational autoencoders in JAX.

  import diffusion_jax as dj

`dj.train` and `dj.load_run` give a `Run`; the rooms `dj.processes`, `dj.models`, `dj.losses`,
`dj.samplers`, `dj.likelihood`, `dj.metrics` and `dj.data` have the parts; `dj.Denoiser` binds a
network to a process. Names that are not in `__all__` are not public.
"""

import importlib
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from diffusion_jax import data as data
  from diffusion_jax import likelihood as likelihood
  from diffusion_jax import losses as losses
  from diffusion_jax import metrics as metrics
  from diffusion_jax import models as models
  from diffusion_jax import processes as processes
  from diffusion_jax import samplers as samplers
  from diffusion_jax.inference.run import Run as Run
  from diffusion_jax.inference.run import load_run as load_run
  from diffusion_jax.processes import Denoiser as Denoiser
  from diffusion_jax.runs.signals import StoppedEarly as StoppedEarly
  from diffusion_jax.train_loop.library import train as train
  from diffusion_jax.types import Batch as Batch
  from diffusion_jax.types import Condition as Condition
  from diffusion_jax.types import Examples as Examples
  from diffusion_jax.types import ImageSpec as ImageSpec
  from diffusion_jax.types import UserError as UserError

# `python -m diffusion_jax.train` takes seconds to import what it needs. Until it handles signals
# itself, Ctrl-C ends it silently: a KeyboardInterrupt would come as a traceback, or be swallowed.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

# The current folder may hold a json.py, which the doctor has to report rather than import.
if sys.argv[:2] == ["-m", "doctor"] and not sys.flags.safe_path:
  del sys.path[0]

__version__ = "0.1.0"

_ROOMS = ("data", "likelihood", "losses", "metrics", "models", "processes", "samplers")
_PLACES = {
  "Run": "inference.run",
  "load_run": "inference.run",
  "Batch": "types",
  "Denoiser": "processes",
  "Examples": "types",
  "Condition": "types",
  "ImageSpec": "types",
  "StoppedEarly": "runs.signals",
  "UserError": "types",
}

__all__ = [
  "Batch",
  "Condition",
  "Denoiser",
  "Examples",
  "ImageSpec",
  "Run",
  "StoppedEarly",
  "UserError",
  "__version__",
  "data",
  "likelihood",
  "load_run",
  "losses",
  "metrics",
  "models",
  "processes",
  "samplers",
  "train",
]


if not TYPE_CHECKING:  # otherwise a type checker would accept every name

  def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _ROOMS or name == "train":  # the module `train` can be called
      return importlib.import_module(f"{__name__}.{name}")
    if name in _PLACES:
      value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
      globals()[name] = value
      return value
    from diffusion_jax.core.spelling import spelling_hint

    raise AttributeError(
      f"module 'diffusion_jax' has no attribute '{name}'.{spelling_hint(name, __all__)}"
    )


def __dir__() -> list[str]:
  """Return the public names."""
  return sorted(__all__)
