"""Check every process, loss, likelihood and sampler against closed forms.

  python -m diffusion_jax.audit

Each part is audited by what it declares, so your own part is audited once it is registered; one
without a declaration fails. Exit code 1 if any row fails.
"""

import time

from diffusion_jax.auditing import AUDITS, as_table
from diffusion_jax.core.spelling import spelling_hint
from diffusion_jax.runs import command_line
from diffusion_jax.types import UserError


def main(argv: list[str]) -> int:
  args, overrides = parser().parse(argv)
  if overrides:
    raise UserError(f"{overrides[0].flag}: audit takes no config; see --help")
  names = list(AUDITS) if args.only is None else args.only.split(",")
  for name in names:
    if name not in AUDITS:
      raise UserError(f"--only={name}: no such audit.{spelling_hint(name, AUDITS)}")
  command_line.enable_compilation_cache()
  failed = total = 0
  for name in names:
    begun = time.perf_counter()
    rows = list(AUDITS[name]())
    print(f"{name}\n{as_table(rows)}\n", flush=True)
    failed += sum(not row.passed for row in rows)
    total += len(rows)
    print(f"{len(rows)} rows in {time.perf_counter() - begun:.0f} s\n", flush=True)
  print(f"{total - failed} of {total} rows pass")
  return command_line.FAILED if failed else command_line.DONE


def parser() -> command_line.Parser:
  flags = command_line.Parser("audit", description=__doc__)
  flags.add_argument("--only", help=f"comma-separated, some of {','.join(AUDITS)}")
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
