"""Print a plan as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from diffusion_jax.parallel import sharding
from diffusion_jax.planning.chips import Chip
from diffusion_jax.planning.communication import Traffic
from diffusion_jax.planning.compiled import Measured, Memory, Program
from diffusion_jax.planning.fit import Fit
from diffusion_jax.planning.flops import StepFlops
from diffusion_jax.planning.preview import Preview
from diffusion_jax.planning.roofline import Roofline
from diffusion_jax.training.train_state import count_parameters

NO_ROOFLINE = "none: unknown chip"
NOTHING_KNOWN = "none: neither the FLOPs nor the memory traffic is known"


class Plan(NamedTuple):
  """Everything that is printed.

  Attributes:
    config: path of the config file.
    topology: requested topology.
    program: the step before compilation.
    measured: the compiled step.
    device_kind: JAX's name of the device.
    chip: the chip; None if unknown.
    available: memory of a device, bytes; None if unknown.
    roofline: minimum time of a step; None for an unknown chip or unknown work.
    fit: largest batch; None if it was not requested or the memory is unknown.
    preview: memory while samples are drawn between two steps.
  """

  config: str
  topology: str
  program: Program
  measured: Measured
  device_kind: str
  chip: Chip | None
  available: int | None
  roofline: Roofline | None
  fit: Fit | None
  preview: Preview


def plan_text(plan: Plan) -> str:
  """Format the plan as a table."""
  layout = "\n".join(sharding.describe_layout(plan.program.mesh, plan.program.state))
  sections = [
    *(_head(plan), layout, _step(plan), _memory(plan)),
    *(_preview(plan), _bounds(plan), _largest(plan)),
  ]
  return "\n\n".join(section for section in sections if section)


def plan_json(plan: Plan) -> dict[str, Any]:
  """Return the figures of the table: bytes, seconds and counts.

  They are per device unless the name indicates otherwise.
  """
  m, mesh = plan.measured, plan.program.mesh
  chip, fit = plan.chip, plan.fit
  return {
    "config": plan.config,
    "topology": plan.topology,
    "jax": jax.__version__,
    "device_kind": plan.device_kind,
    "num_devices": mesh.size,
    "num_chips": mesh.size // chip.devices_per_chip if chip else None,
    "num_slices": sharding.num_slices(mesh),
    "mesh": dict(mesh.shape),
    "batch_size": m.batch_size,
    "batch_size_per_device": m.batch_size_per_device,
    "num_parameters": count_parameters(plan.program.state.params),
    "state": [row._asdict() for row in sharding.layout_rows(mesh, plan.program.state)],
    "step": {
      "model_flops": m.flops.model,
      "executed_flops": m.flops.executed,
      "unknown_flops": m.flops.unknown,
      **m.work._asdict(),
      "compile_sec": m.compile_sec,
    },
    "collectives": [row._asdict() for row in m.traffic],
    "collectives_between_slices": [row._asdict() for row in m.crossing],
    "memory": m.memory._asdict() | {"peak": m.memory.peak, "available": plan.available},
    "preview": {
      "num_images": plan.preview.num_images,
      "state": plan.preview.state,
      "peak": plan.preview.peak,
      **(plan.preview.memory._asdict() if plan.preview.memory else {}),
    },
    "chip": chip._asdict() if chip else None,
    "roofline": plan.roofline._asdict() if plan.roofline else None,
    "fit": fit._asdict() if fit else None,
  }


def _rows(title: str, rows: dict[str, str]) -> str:
  return "\n".join([title, *(f"  {name:<15}{text}" for name, text in rows.items())])


def _head(plan: Plan) -> str:
  mesh, m = plan.program.mesh, plan.measured
  chips = "unknown chip"
  if plan.chip is not None:
    chips = f"{mesh.size // plan.chip.devices_per_chip} chips, {plan.chip.name}"
  slices = sharding.num_slices(mesh)
  where = plan.topology if slices == 1 else f"{slices} slices of {plan.topology}"
  return _rows(
    f"{plan.config} on {where}, jax {jax.__version__}",
    {
      "devices": f"{mesh.size} x {plan.device_kind} ({chips})",
      "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
      "batch": f"{m.batch_size:,} images, {m.batch_size_per_device:,} {each(plan.program)}",
      "parameters": f"{count_parameters(plan.program.state.params):,}",
    },
  )


def each(program: Program) -> str:
  """Return the unit of the images "per device"."""
  group = program.mesh.shape["tensor"]
  return "per device" if group == 1 else f"per group of {group} devices"


def _step(plan: Plan) -> str:
  done, sent = plan.measured.work, plan.measured.traffic
  rows = {"FLOPs": flops_text(plan.measured.flops)}
  if done.accessed_bytes is None or done.memory_bytes is None:
    reason = f": calls to {', '.join(done.unknown_calls)}" if done.unknown_calls else ""
    rows["memory traffic"] = f"unknown{reason}"
  else:
    rows["accessed"] = f"{_bytes(done.accessed_bytes)} by all instructions, caches not seen"
    rows["memory traffic"] = f"{_bytes(done.memory_bytes)} of them outside on-chip memory"
  if done.unknown_loops:
    rows["loops"] = f"{done.unknown_loops} of unknown length, counted once: totals are too small"
  text = [_rows("one step, for each device", rows)]
  crossing = plan.measured.crossing
  if not sent and not crossing:
    return "\n".join([*text, "  collectives    none"])
  chip = plan.chip
  title = "within a slice" if crossing else "collectives"
  text += _collectives(title, sent, chip.link_bandwidth if chip else None)
  if crossing:
    text += _collectives("between slices", crossing, chip.dcn_bandwidth if chip else None)
  return "\n".join(text)


def _collectives(title: str, rows: Sequence[Traffic], bandwidth: float | None) -> list[str]:
  """Return the lines of a network's collectives."""
  text = [f"  {title:<21}{'times':>6}{'operands':>12}{'sent':>12}{'time':>12}"]
  for row in rows:
    time = "unknown" if bandwidth is None else _ms(row.wire_bytes / bandwidth)
    sizes = f"{_bytes(row.num_bytes):>12}{_bytes(row.wire_bytes):>12}"
    text.append(f"    {row.kind:<19}{row.times:>6,}{sizes}{time:>12}")
  return text if rows else []


def flops_text(flops: StepFlops) -> str:
  """Return a step's FLOPs, with those executed if they are more, and what is unknown."""
  if flops.executed is None:
    return f"unknown: {', '.join(flops.unknown)}"
  if flops.model is None or flops.executed < 1.0005 * flops.model:
    return f"{_scaled(flops.executed)}FLOP"
  return f"{_scaled(flops.model)}FLOP; {_scaled(flops.executed)}FLOP with what is computed twice"


def _memory(plan: Plan) -> str:
  memory: Memory = plan.measured.memory
  rows = {name: _bytes(size) for name, size in memory._asdict().items()}
  part = ""
  if plan.available:
    part = f" of {_bytes(plan.available)} ({memory.peak / plan.available:.1%})"
  rows["peak"] = f"{_bytes(memory.peak)}{part}: arguments + outputs - aliased + temporaries + code"
  return _rows("memory of each device", rows)


def _preview(plan: Plan) -> str:
  seen = plan.preview
  title = f"memory of each device while a preview of {seen.num_images:,} images is drawn"
  rows = {"state": _bytes(seen.state)}
  if seen.memory is None or seen.peak is None:
    rows["peak"] = "does not fit: lower `logging.num_samples`"
    return _rows(title, rows)
  rows |= {"average": _bytes(seen.memory.arguments), "temporaries": _bytes(seen.memory.temporaries)}
  part = ""
  if plan.available:
    part = f" of {_bytes(plan.available)} ({seen.peak / plan.available:.1%})"
  rows["peak"] = f"{_bytes(seen.peak)}{part}: state + average + temporaries + images + code"
  return _rows(title, rows)


def _bounds(plan: Plan) -> str:
  if plan.chip is None:
    return _rows("bound", {"roofline": f"{NO_ROOFLINE} ({plan.device_kind})"})
  if plan.roofline is None:
    return _rows("bound", {"roofline": NOTHING_KNOWN})
  roofline, chip = plan.roofline, plan.chip
  roofs = {
    "compute": f"{chip.flops / 1e12:,.1f} TFLOP/s in bfloat16",
    "memory": f"{chip.memory_bandwidth / 1e9:,.0f} GB/s",
    "interconnect": f"{chip.link_bandwidth / 1e9:,.0f} GB/s one way, all links",
  }
  if plan.measured.crossing:
    rate = "unknown" if chip.dcn_bandwidth is None else f"{chip.dcn_bandwidth / 1e9:,.3g} GB/s"
    roofs["dcn"] = f"{rate} one way, between slices"
  rows = dict.fromkeys(roofs, "   unknown") | {
    name: f"{_ms(seconds):>10}  at {roofs[name]}{'  <- binds' * (name == roofline.binds)}"
    for name, seconds in roofline.seconds.items()
  }
  per_chip, total = roofline.images_per_sec_per_chip, roofline.images_per_sec
  rows["images/s"] = f"{per_chip:,.0f} per chip, {total:,.0f} in total, at most"
  for name, share in (("MFU", roofline.mfu), ("HFU", roofline.hfu)):
    rows[name] = "unknown" if share is None else f"{share:.1%}, at most"
  return _rows("bound on a step, every resource at its peak, all at the same time", rows)


def _largest(plan: Plan) -> str:
  if plan.available is None:
    return f"largest batch    unknown: the memory of {plan.device_kind} is not known"
  if plan.fit is None:
    return ""
  size = plan.fit.batch_size_per_device
  shown = "none" if size is None else f"{size:,} images {each(plan.program)}"
  return f"largest batch    {shown}, {plan.fit.how}"


def _bytes(amount: int | float) -> str:
  return f"{_scaled(amount)}B"


def _scaled(amount: int | float) -> str:
  """Format three digits with a decimal prefix: "2.28 T"."""
  for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if amount >= factor:
      return f"{amount / factor:.3g} {prefix}"
  return f"{amount:.3g} "


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:,.3g} ms"
