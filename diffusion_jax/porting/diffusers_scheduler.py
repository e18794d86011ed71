"""The schedulers of diffusers: noise schedule, prediction and sampler, both ways."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.processes.base import EMBED_SCALE
from diffusion_jax.types import UserError

Sections = dict[str, dict[str, Any]]

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""diffusers' prediction_type -> ours."""

VARIANCES = {
  "fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned_range": "learned",
}  # fmt: skip

OLD_NAMES = {"timesteps": "num_train_timesteps"}
OLD_CLASSES = {"GaussianDDPMScheduler": "DDPMScheduler"}
"""Names in files of July 2022 -> today's, as in google/ddpm-cifar10-32."""

SPACINGS = ("leading", "trailing", "linspace")

OFF: Mapping[str, tuple[Any, ...]] = {
  "trained_betas": (None,), "thresholding": (False,), "rescale_betas_zero_snr": (False,),
  "clip_sample_range": (1.0, 1), "steps_offset": (0,), "set_alpha_to_one": (True,),
}  # fmt: skip
"""Fields of DDPMScheduler and DDIMScheduler with the values that our processes have."""

OFF_IN_FLOW: Mapping[str, tuple[Any, ...]] = {
  "use_dynamic_shifting": (False,), "invert_sigmas": (False,), "shift_terminal": (None,),
  "use_karras_sigmas": (False,), "use_exponential_sigmas": (False,), "use_beta_sigmas": (False,),
  "stochastic_sampling": (False,),
}  # fmt: skip


def read_scheduler(stored: Mapping[str, Any], where: str) -> Sections:
  """Return the sections of our config that a scheduler's config determines.

  Raises:
    UserError: an unknown scheduler, or a setting that we do not have.
  """
  stored = {OLD_NAMES.get(name, name): value for name, value in stored.items()}
  kind = OLD_CLASSES.get(str(stored.get("_class_name")), stored.get("_class_name"))
  readers = {
    "DDPMScheduler": _read_ddpm,
    "DDIMScheduler": _read_ddim,
    "FlowMatchEulerDiscreteScheduler": _read_flow,
  }
  if kind not in readers:
    raise UserError(f"{where}: the scheduler {kind} is not supported; {', '.join(readers)} are")
  return readers[kind](stored, where)


def _check(stored: Mapping[str, Any], where: str, off: Mapping[str, tuple[Any, ...]]) -> None:
  for field, allowed in off.items():
    if (value := stored.get(field, allowed[0])) not in allowed:
      raise UserError(f"{where}: {field}={value!r} is not supported; needed {allowed[0]!r}")


def _choice(stored: Mapping[str, Any], where: str, field: str, default: str, known: Any) -> Any:
  value = stored.get(field, default)
  if value not in known:
    raise UserError(f"{where}: {field}={value!r} is not supported; {', '.join(known)} are")
  return known[value] if isinstance(known, Mapping) else value


def _read_noise(stored: Mapping[str, Any], where: str) -> Sections:
  """Return the sections that all schedulers with betas have in common."""
  _check(stored, where, OFF)
  num = stored.get("num_train_timesteps", 1000)
  first, last = stored.get("beta_start", 1e-4), stored.get("beta_end", 0.02)
  linear = {"name": "linear_vp", "num_timesteps": num, "beta_start": first, "beta_end": last}
  schedules = {
    "linear": linear,
    "scaled_linear": {**linear, "beta_schedule": "scaled_linear"},
    "squaredcos_cap_v2": {"name": "cosine_vp", "num_timesteps": num},
  }  # fmt: skip
  process = _choice(stored, where, "beta_schedule", "linear", schedules)
  prediction = _choice(stored, where, "prediction_type", "epsilon", PREDICTIONS)
  return {
    "generative": {"name": "diffusion", "prediction": prediction},
    "process": process,
    "loss": {"name": "simple"},
  }


def _read_ddpm(stored: Mapping[str, Any], where: str) -> Sections:
  sections = _read_noise(stored, where)
  variance = _choice(stored, where, "variance_type", "fixed_small", VARIANCES)
  sampler = {
    "name": "ancestral", "steps": sections["process"]["num_timesteps"], "variance": variance,
    "clip": stored.get("clip_sample", True),
    "spacing": _choice(stored, where, "timestep_spacing", "leading", SPACINGS),
  }  # fmt: skip
  loss = {"name": "hybrid"} if variance == "learned" else sections["loss"]
  return sections | {"sampler": sampler, "loss": loss}


def _read_ddim(stored: Mapping[str, Any], where: str) -> Sections:
  sections = _read_noise(stored, where)
  sampler = {
    "name": "ddim", "steps": min(50, sections["process"]["num_timesteps"]),
    "clip": stored.get("clip_sample", True),
    "spacing": _choice(stored, where, "timestep_spacing", "leading", SPACINGS),
  }  # fmt: skip
  return sections | {"sampler": sampler}


def _read_flow(stored: Mapping[str, Any], where: str) -> Sections:
  _check(stored, where, OFF_IN_FLOW)
  num, shift = stored.get("num_train_timesteps", 1000), stored.get("shift", 1.0)
  if num < 2 or shift <= 0:
    raise UserError(f"{where}: num_train_timesteps={num}, shift={shift} are not supported")
  least = 1 / num
  return {
    "generative": {"name": "diffusion", "prediction": "velocity"},
    # diffusers shifts the least time twice: when it makes the schedule, and again for the steps
    "process": {
      "name": "flow", "shift": shift, "min_time": shift * least / (1 + (shift - 1) * least),
    },
    "model": {"time_scale": num / EMBED_SCALE},
    "loss": {"name": "flow_matching", "times": "uniform"},
    "sampler": {"name": "euler", "steps": 50, "spacing": "uniform"},
  }  # fmt: skip


def write_scheduler(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Return the config of the scheduler with a run's noise, prediction and sampler.

  It is DDIMScheduler for the sampler ddim, unless a U-Net gives variances, which the DDIMPipeline
  of diffusers does not expect; FlowMatchEulerDiscreteScheduler for flow; else DDPMScheduler.

  Args:
    config: all sections of the run.

  Raises:
    UserError: diffusers has no such process or prediction; the message names the field.
  """
  process, sampler = config["process"], config["sampler"]
  prediction = config["generative"]["prediction"]
  time_scale = config["model"].get("time_scale", 1.0)
  if process["name"] == "flow":
    return _write_flow(process, prediction, time_scale)
  if time_scale != 1.0:
    raise UserError(f"`model.time_scale={time_scale}`: diffusers' networks get the step's number")
  betas = {"linear_vp": "linear", "cosine_vp": "squaredcos_cap_v2"}
  if process["name"] not in betas:
    raise UserError(
      f"`process.name={process['name']}`: diffusers' schedulers here have {', '.join(betas)}, flow"
    )
  _check_cosine(process)
  theirs = {ours: name for name, ours in PREDICTIONS.items()}
  if prediction not in theirs:
    raise UserError(
      f"`generative.prediction={prediction}`: diffusers' schedulers have {', '.join(theirs)}"
    )
  learned = config["model"].get("learned_variance", False)
  spacing = sampler.get("spacing", "auto")
  common = {
    "num_train_timesteps": process["num_timesteps"],
    "beta_schedule": process.get("beta_schedule", betas[process["name"]]),
    **{name: process[name] for name in ("beta_start", "beta_end") if name in process},
    "prediction_type": theirs[prediction],
    "clip_sample": bool(sampler.get("clip", True)),
    "timestep_spacing": spacing if spacing in SPACINGS else "trailing",
  }
  if sampler["name"] == "ddim" and not (learned and config["model"]["name"] == "unet"):
    return {"_class_name": "DDIMScheduler", **common}
  names = {ours: name for name, ours in VARIANCES.items()} | {"auto": "fixed_large"}
  variance = "learned_range" if learned else names[sampler.get("variance", "fixed_small")]
  return {"_class_name": "DDPMScheduler", **common, "variance_type": variance}


def _write_flow(process: Mapping[str, Any], prediction: str, time_scale: float) -> dict[str, Any]:
  """Return the scheduler of straight paths whose times are those that the network embeds."""
  if prediction != "velocity":
    raise UserError(
      f"`generative.prediction={prediction}`: diffusers' flow-matching scheduler has velocity"
    )
  last = EMBED_SCALE * time_scale
  if abs(last - round(last)) > 1e-6 * last or round(last) < 2:
    raise UserError(
      f"`model.time_scale={time_scale}`: the network's times end at {last:g}, and diffusers' "
      "flow-matching scheduler counts whole steps, at least 2"
    )
  return {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": round(last),
    "shift": process["shift"],
  }


def _check_cosine(process: Mapping[str, Any]) -> None:
  for field, value in (("offset", 0.008), ("max_beta", 0.999), ("network_steps", None)):
    if field in process and process[field] != value:
      raise UserError(
        f"`process.{field}={process[field]}`: diffusers' cosine schedule has {value} only"
      )
