"""Checks of every registered process, loss, estimator and sampler against known answers."""

from diffusion_jax.auditing.estimator_rows import audit_likelihoods
from diffusion_jax.auditing.linear_vae import audit_linear_vae
from diffusion_jax.auditing.loss_rows import audit_losses
from diffusion_jax.auditing.process_rows import audit_processes
from diffusion_jax.auditing.rows import Row, as_table
from diffusion_jax.auditing.sampler_rows import audit_samplers

AUDITS = {
  "processes": audit_processes,
  "losses": audit_losses,
  "samplers": audit_samplers,
  "likelihoods": audit_likelihoods,
  "linear_vae": audit_linear_vae,
}

__all__ = ["AUDITS", "Row", "as_table"]
