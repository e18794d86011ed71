"""A plug-in package for diffusion_jax; pyproject.toml declares its parts as entry points."""
