"""The command line of `evaluate`: flags that exclude each other, and skipped steps."""

import re
from collections.abc import Sequence
from typing import Any

from diffusion_jax import parallel
from diffusion_jax.checkpoints import store
from diffusion_jax.checkpoints.store import Unreadable
from diffusion_jax.core.config import Override
from diffusion_jax.evaluation.context import EvaluationContext, Request
from diffusion_jax.extractors import VISION
from diffusion_jax.types import UserError


def check_request(args: Any, overrides: Sequence[Override]) -> None:
  """Raise an error for flags that exclude each other, before anything is loaded.

  Raises:
    UserError: a flag does not fit; the message names it and its requirement.
  """
  if (args.workdir is None) == (args.samples is None):
    raise UserError("give --workdir=RUN to measure a run, or --samples=DIR|file.npz; see --help")
  if args.workdir is not None and args.config:
    raise UserError("--config belongs to --samples; --workdir needs none")
  if args.samples is not None and (args.watch or args.sweep or args.compare or args.ema):
    raise UserError("--watch, --sweep, --compare and --ema need --workdir")
  if args.samples is not None and (args.reference is None) == (args.config is None):
    raise UserError(
      "--samples needs exactly one of --reference (folder, .npz or statistics) and --config"
    )
  if overrides and args.samples is not None and args.config is None:
    raise UserError(f"{overrides[0].flag}: --samples without --config takes no config")
  if args.out is not None and (args.out.suffix == ".json") != (args.samples is not None):
    which = "must end in .json" if args.samples else "is a folder with --workdir"
    raise UserError(f"--out={args.out}: {which}, e.g. --out=metrics{'.json' * bool(args.samples)}")
  if not 0 <= args.seed < 2**31 - 1000:
    raise UserError(f"--seed={args.seed}: must be between 0 and 2^31 - 1001")
  if not re.fullmatch("latest|all|[0-9]+", args.step):
    raise UserError(f"--step={args.step}: must be latest, all or a number, e.g. --step=1000")
  if args.watch and args.step != "latest":
    raise UserError(f"--step={args.step}: --watch takes every checkpoint; leave --step out")


def vision_flags(args: Any) -> dict[str, str | None]:
  """Return the flags --dinov2 and --clip; both are off if all other features are."""
  others_off = args.features == args.inception == "none"
  return {name: getattr(args, name) or ("none" if others_off else None) for name in VISION}


def check_measures(context: EvaluationContext, request: Request) -> EvaluationContext:
  """Return the context, with a line on requests that cannot be measured.

  Raises:
    UserError: a sweep is requested, but there are no features for its samples.
  """
  if context.extractors or request.features is None:
    return context
  reason = "; ".join(context.missing) or "--features=none and --inception=none"
  if context.sweep:
    flags = " ".join(f"--sweep={axis}" for axis in request.sweep)
    raise UserError(
      f"{flags}: no feature network for the samples ({reason}); give --features=FILE or "
      "--inception=FILE, or leave --sweep out"
    )
  said = [] if context.missing else [f"samples: there is no feature network ({reason})"]
  return context._replace(missing=[*context.missing, *said])


def why_left_out(context: EvaluationContext, step: int | None, error: UserError) -> str | None:
  """Return why one of several steps is skipped; None if the error is not the step's own.

  A collective.

  Args:
    context: evaluation of the run.
    step: step that could not be measured.
    error: reason of the failure.
  """
  gone = step not in store.saved_steps(context.checkpoints)
  if parallel.broadcast_object(gone):
    return "the run has deleted this checkpoint; skipped"
  if not isinstance(error, Unreadable):
    return None
  return f"this checkpoint is damaged ({error.damaged[-1].reason}); skipped"
