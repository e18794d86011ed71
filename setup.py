"""Put configs/, which lies at the top of the checkout, into the wheel as diffusion_jax/configs.

pyproject.toml has everything else. The folder is copied when a wheel is built, and not mapped to a
package: an editable install would then need an import hook, which type checkers and editors cannot
follow.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
  """Build the package together with the shipped configs."""

  def run(self):
    super().run()
    if self.editable_mode:
      return  # they are found beside the package
    target = Path(self.build_lib, "diffusion_jax", "configs")
    self.mkpath(str(target))
    for file in sorted(Path("configs").glob("*.py")):
      self.copy_file(str(file), str(target / file.name))

  def get_outputs(self, include_bytecode=True):
    target = Path(self.build_lib, "diffusion_jax", "configs")
    configs = [str(target / file.name) for file in sorted(Path("configs").glob("*.py"))]
    return [*super().get_outputs(include_bytecode), *configs]


setup(
  packages=find_packages(include=["diffusion_jax*"]),
  package_dir={"": "."},
  cmdclass={"build_py": WithConfigs},
)
