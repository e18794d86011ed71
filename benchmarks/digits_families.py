"""Every family on the embedded digits: python benchmarks/digits_families.py

Trains each family's config with several seeds, as its docstring says (a run that is there is not
made again), measures held-out bits/dim by the bound that the family has, draws samples of
each digit and counts how many a classifier reads as what was asked for. Prints a table of means
over the seeds with their standard errors, and writes it to families.json in the folder of the runs.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from digits_agreement import agreement, fit_classifier

CONFIGS = {
  "ddpm": "ddpm_digits", "iddpm": "iddpm_digits", "edm": "edm_digits", "flow": "flow_digits",
  "vdm": "vdm_digits", "dit": "dit_digits", "latent": "latent_digits", "vae": "vae_digits",
}  # fmt: skip
BOUNDS = {"ddpm": "vlb", "iddpm": "vlb", "dit": "vlb", "vae": "elbo,iwae_500"}
"""Estimators of bits/dim; of the other families, `continuous_vlb`."""

ONLY_BITS = ["--features=none", "--inception=none", "--config.eval.num_samples=20",
             "--config.eval.num_seeds=1", "--config.eval.spectrum_images=0",
             "--config.eval.batch_size=99", "--config.eval.likelihood_repeats=1"]  # fmt: skip


def run(program: str, *flags: str) -> float:
  """Runs a program of the package; seconds."""
  begun = time.perf_counter()
  subprocess.run([sys.executable, "-m", f"diffusion_jax.{program}", *flags], check=True)
  return time.perf_counter() - begun


def train(family: str, seed: int, workdir: Path) -> None:
  """Trains a family, a latent one on the latents of an autoencoder of the same seed."""
  if (workdir / "seconds.json").is_file():
    return
  flags, seconds = [f"--config.training.seed={seed}"], {}
  if family == "latent":
    first, latents = workdir.with_name(f"autoencoder_{seed}"), workdir.with_name(f"latents_{seed}")
    config = "--config=configs/autoencoder_digits.py"
    seconds["autoencoder"] = run("train", config, f"--workdir={first}", *flags)
    seconds["encode"] = run("encode", f"--workdir={first}", f"--out={latents}")
    flags.append(f"--config.data.path={latents}")
  config = f"--config=configs/{CONFIGS[family]}.py"
  seconds["train"] = run("train", config, f"--workdir={workdir}", *flags)
  (workdir / "seconds.json").write_text(json.dumps(seconds))


def measure(family: str, seed: int, workdir: Path, num: int, classifier: Any) -> dict[str, float]:
  """Bits/dim of one run by estimator, its agreement, and its seconds."""
  figures = {"seconds": sum(json.loads((workdir / "seconds.json").read_text()).values())}
  found = sorted(workdir.glob("eval/*/metrics.json"))
  if not found:
    names = f"--config.eval.likelihoods={BOUNDS.get(family, 'continuous_vlb')}"
    run("evaluate", f"--workdir={workdir}", names, *ONLY_BITS)
    found = sorted(workdir.glob("eval/*/metrics.json"))
  for name, estimate in json.loads(found[-1].read_text())["likelihoods"].items():
    figures[name] = estimate["bits_per_dim"]
  samples = workdir / "families.npz"
  if family != "vae":  # it draws digits of no class
    if not samples.is_file():
      flags = [f"--workdir={workdir}", f"--num={num}", f"--out={samples}", "--batch_size=250"]
      run("sample", *flags, f"--seed={seed}")
    figures["agreement"] = agreement(classifier, samples)
  return figures


def table(rows: dict[str, list[dict[str, float]]]) -> str:
  """Mean and standard error over the seeds of every figure."""
  names = sorted({name for runs in rows.values() for figures in runs for name in figures})
  lines = [["family", *names]]
  for family, runs in rows.items():
    cells = [[figures[name] for figures in runs if name in figures] for name in names]
    lines.append([family, *(_cell(values) for values in cells)])
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: list[float]) -> str:
  if not values:
    return "-"
  error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
  return f"{np.mean(values):.4g} ± {error:.2g}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=Path, default=Path("runs/families"))
  parser.add_argument("--families", default=",".join(CONFIGS))
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--num", type=int, default=500, help="samples of each run")
  args = parser.parse_args()
  args.runs.mkdir(parents=True, exist_ok=True)
  classifier, accuracy = fit_classifier()
  rows: dict[str, list[dict[str, float]]] = {}
  for seed in range(args.seeds):
    for family in args.families.split(","):
      workdir = args.runs / f"{family}_{seed}"
      train(family, seed, workdir)
      rows.setdefault(family, []).append(measure(family, seed, workdir, args.num, classifier))
  (args.runs / "families.json").write_text(json.dumps(rows, indent=2))
  print(f"classifier on held-out digits: {accuracy:.1%}")
  print(table(rows))


if __name__ == "__main__":
  main()
