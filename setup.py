"""Install configs/, which lies at the top of the checkout, as the package diffusion_jax.configs.

pyproject.toml has everything else: it can find packages or map a folder to one, not both.
"""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["diffusion_jax*"]), "diffusion_jax.configs"],
  package_dir={"diffusion_jax.configs": "configs"},
)
