"""Check every process, loss, likelihood and sampler against closed forms.

  python -m diffusion_jax.audit

Each part is audited by what it declares, so your own part is audited once it is registered; one
without a declaration fails. Exit code 1 if any row fails.
"""

import functools
import time

from diffusion_jax.auditing import AUDITS, as_table, choose_entries
from diffusion_jax.core import progress
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
  audits = {name: AUDITS[name] for name in names}
  if args.entries is not None:
    chosen = choose_entries(names, args.entries.split(","))
    audits = {name: functools.partial(AUDITS[name], classes) for name, classes in chosen.items()}
  command_line.enable_compilation_cache()
  failed = total = 0
  for name, audit in audits.items():
    begun, rows = time.perf_counter(), []
    with progress.phase(f"checking {name}", unit="rows") as phase:
      for row in audit():
        rows.append(row)
        phase.advance()
    print(f"{name}\n{as_table(rows)}\n", flush=True)
    failed += sum(not row.passed for row in rows)
    total += len(rows)
    print(f"{len(rows)} rows in {time.perf_counter() - begun:.0f} s\n", flush=True)
  print(f"{total - failed} of {total} rows pass")
  return command_line.FAILED if failed else command_line.DONE


def parser() -> command_line.Parser:
  flags = command_line.Parser("audit", description=__doc__)
  flags.add_argument("--only", help=f"comma-separated, some of {','.join(AUDITS)}")
  flags.add_argument(
    "--entries", help="comma-separated parts to audit, e.g. your own: pseudo_huber,dpm_solver_2"
  )
  return flags


if __name__ == "__main__":
  command_line.run_main(main)
