"""Plant faults one at a time in a copy of the project and see whether its tests notice.

  .venv/bin/python tests/faults.py [--tree=DIR] [--only=WORD]

Each fault is one line of the package that is wrong in a way that could be overlooked, beside the
test files that should fail for it. A fault that no test notices ends the program with exit code 1.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

EXPRESSION = "not slow and not reference and not system"


class Fault(NamedTuple):
  """One wrong line: in `file`, the first match of the pattern `right` becomes `wrong`."""

  what: str
  file: str
  right: str
  wrong: str
  tests: str


FAULTS = (
  Fault("a sign in the denoising loss", "losses/denoising.py",
        r"predicted\.output - model\.target", "predicted.output + model.target",
        "tests/losses/test_denoising.py"),
  Fault("the bound's times are one step early", "likelihood/variational_bound.py",
        r"t_index / num_steps\)", "(t_index - 1) / num_steps)",
        "tests/likelihood/test_variational_bound.py"),
  Fault("the grid of trailing steps is one step late", "samplers/grids.py",
        r"return _apart\(steps, num_timesteps\) / num_timesteps",
        "return _apart(steps, num_timesteps) / num_timesteps - 1e-2",
        "tests/samplers/test_grids.py"),
  Fault("Heun's corrector weighs both slopes by 0.45", "samplers/heun.py",
        r"half = 0\.5 \* y_scale", "half = 0.45 * y_scale", "tests/samplers/test_any_process.py"),
  Fault("guidance starts at the guided estimate", "samplers/guidance.py",
        r"bad \+ self\.weight", "best + self.weight", "tests/samplers/test_guidance.py"),
  Fault("precision and recall change places", "metrics/neighbours.py",
        r"float\(precise\.mean\(\)\), float\(recalled\.mean\(\)\)",
        "float(recalled.mean()), float(precise.mean())", "tests/metrics/test_neighbours.py"),
  Fault("a covariance is divided by the number of images", "metrics/moments.py",
        r"\(self\.num - 1\)", "self.num", "tests/metrics/test_moments.py"),
  Fault("neighbouring examples share a key", "core/rng.py",
        r"jax\.random\.fold_in\(key, i\)", "jax.random.fold_in(key, i // 2)",
        "tests/core/test_pixels.py tests/training/test_step.py tests/samplers"),
  Fault("the average of the parameters is lost", "training/step.py",
        r"\n      offsets=offsets,", "\n      offsets=jax.tree.map(jnp.zeros_like, offsets),",
        "tests/training/test_step.py"),
  Fault("every run has the seed 0", "training/step.py",
        r"jax\.random\.key\(numbers\.seed\), Stream\.TRAINING",
        "jax.random.key(0), Stream.TRAINING",
        "tests/training/test_step.py tests/programs/test_train.py"),
  Fault("microbatches are cut in one piece", "training/step.py",
        r"lambda x: jnp\.moveaxis\(",
        "lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]) if True else jnp.moveaxis(",
        "tests/training/test_step.py"),
  Fault("every epoch has the order of the first", "data/pipeline.py",
        r"key=\[seed, epoch\]", "key=[seed, 0]", "tests/data/test_pipeline.py"),
  Fault("checksums are not compared", "checkpoints/leaves.py",
        r'if list\(sums\) != saved\[name\]\["checksum"\]', "if not saved[name]",
        "tests/checkpoints/test_store.py"),
  Fault("free bits are those of the example, not of the batch", "losses/elbo.py",
        r"average > self\.free_bits", "terms.kl > self.free_bits", "tests/losses/test_elbo.py"),
)  # fmt: skip


def plant(fault: Fault, tree: Path) -> None:
  """Write the fault into the copy `tree`.

  Raises:
    SystemExit: the line that it changes is not there.
  """
  path = tree / "diffusion_jax" / fault.file
  text, count = re.subn(fault.right, lambda _: fault.wrong, path.read_text(), count=1)
  if not count:
    sys.exit(f"{fault.file}: no line matches {fault.right}; adapt the fault '{fault.what}'")
  path.write_text(text)


def _ignored(tree: Path, path: str, names: list[str]) -> set[str]:
  """Return the names at the top of the project that no test needs."""
  needless = {".git", "runs", "build", ".pytest_cache"}
  return {n for n in names if Path(path) == tree and (n in needless or n.startswith(".venv"))}


def noticed(fault: Fault, tree: Path) -> str | None:
  """Return the first test that fails in a copy of `tree` with the fault, or None."""
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder) / "copy"
    shutil.copytree(tree, copy, ignore=lambda path, names: _ignored(tree, path, names))
    plant(fault, copy)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", EXPRESSION, *fault.tests.split()]
    env = {**os.environ, "PYTHONPATH": str(copy)}
    ran = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
  found = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
  if not found and ran.returncode != 0:
    sys.exit(f"the tests for '{fault.what}' did not run:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
  return found[1] if found else None


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--tree", type=Path, default=Path(__file__).parent.parent, help="the project")
  flags.add_argument("--only", default="", help="faults whose description has this word")
  args = flags.parse_args()
  missed = 0
  for fault in FAULTS:
    if args.only in fault.what:
      test = noticed(fault, args.tree.resolve())
      missed += test is None
      print(f"{fault.what:<54}{test or 'NOT NOTICED'}", flush=True)
  sys.exit(1 if missed else 0)


if __name__ == "__main__":
  main()
