"""Parts for diffusion_jax from outside; pyproject.toml names them as entry points."""
