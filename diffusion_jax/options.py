"""List the fields of a config with type, default, allowed values and documentation.

  python -m diffusion_jax.options                              every section, every entry
  python -m diffusion_jax.options sampler                      one section
  python -m diffusion_jax.options sampler.heun[.steps]         one entry of it, or a field of that
  python -m diffusion_jax.options training.seed                one field
  python -m diffusion_jax.options --config=ddpm_digits         the values of a config
  python -m diffusion_jax.options --workdir=runs/ddpm_digits   the values of a run

Each line is a flag that can be typed as it is printed.
"""

from diffusion_jax.core.files import run_folder
from diffusion_jax.runs.command_line import Parser, run_main
from diffusion_jax.runs.config_help import help_on


def main(argv: list[str]) -> None:
  args, overrides = parser().parse(argv)
  print(help_on(args.section or "", args.config, args.workdir, overrides))


def parser() -> Parser:
  flags = Parser("options", description=__doc__)
  flags.add_argument("section", nargs="?", help="a section, section.entry or section.field")
  flags.add_argument("--config", help="config whose values are shown: a shipped name or a file")
  flags.add_argument("--workdir", type=run_folder, help="run whose values are shown")
  return flags


if __name__ == "__main__":
  run_main(main)
