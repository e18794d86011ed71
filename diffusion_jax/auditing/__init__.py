"""Checks of every registered process, loss, estimator and sampler against known answers."""

from collections.abc import Mapping, Sequence

from diffusion_jax.auditing.estimator_rows import audit_likelihoods
from diffusion_jax.auditing.linear_vae import audit_linear_vae
from diffusion_jax.auditing.loss_rows import audit_losses
from diffusion_jax.auditing.process_rows import AUDITED, audit_processes
from diffusion_jax.auditing.rows import Row, as_table
from diffusion_jax.auditing.sampler_rows import audit_samplers
from diffusion_jax.core.registry import Registry
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.likelihood import DIFFUSION_LIKELIHOODS
from diffusion_jax.losses import DENOISING_LOSSES
from diffusion_jax.samplers import SAMPLERS
from diffusion_jax.types import UserError

AUDITS = {
  "processes": audit_processes,
  "losses": audit_losses,
  "samplers": audit_samplers,
  "likelihoods": audit_likelihoods,
  "linear_vae": audit_linear_vae,
}

REGISTRIES: Mapping[str, Registry] = {
  "processes": AUDITED,
  "losses": DENOISING_LOSSES,
  "samplers": SAMPLERS,
  "likelihoods": DIFFUSION_LIKELIHOODS,
}
"""Registries of the audits that can be restricted to some entries."""


def choose_entries(audits: Sequence[str], entries: Sequence[str]) -> dict[str, dict[str, type]]:
  """Return the classes of chosen entries, for each audit that has some.

  Args:
    audits: names in `AUDITS`.
    entries: names of parts, also of installed packages; with a single audit also "module:Class".

  Raises:
    UserError: no chosen audit has such an entry.
  """
  registries = {name: REGISTRIES[name] for name in audits if name in REGISTRIES}
  known = sorted({entry for registry in registries.values() for entry in registry.names()})
  chosen: dict[str, dict[str, type]] = {}
  for entry in entries:
    is_path = ":" in entry and len(registries) == 1
    if entry not in known and not is_path:
      if ":" in entry:
        raise UserError(f"--entries={entry}: name its kind too, e.g. --only=losses")
      raise UserError(f"--entries={entry}: no such part.{spelling_hint(entry, known)}")
    for name, registry in registries.items():
      if is_path or entry in registry.names():
        chosen.setdefault(name, {})[entry] = registry.find(entry, "--entries")
  return chosen


__all__ = ["AUDITS", "Row", "as_table", "choose_entries"]
