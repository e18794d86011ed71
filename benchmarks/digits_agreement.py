"""How often a classifier reads the digit that was asked for: python benchmarks/digits_agreement.py

Fits a support-vector classifier on the real training digits, prints its accuracy on the held-out
ones, then its agreement with the labels of samples that `diffusion_jax.sample` draws from a run of
configs/ddpm_digits.py.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from diffusion_jax.data import Digits


def fit_classifier() -> tuple[SVC, float]:
  """A classifier of 8x8 digits in [0, 16], and its accuracy on the held-out ones."""
  splits = {name: Digits().load(name) for name in ("train", "test")}
  arrays = {name: split.gather(np.arange(len(split))) for name, split in splits.items()}
  flat = {name: images.reshape(len(images), -1) for name, (images, _) in arrays.items()}
  classifier = SVC(gamma=0.001).fit(flat["train"], arrays["train"][1])
  return classifier, float(classifier.score(flat["test"], arrays["test"][1]))


def agreement(classifier: SVC, file: Path) -> float:
  """Share of the images in an .npz of `diffusion_jax.sample` that are read as their labels."""
  with np.load(file) as samples:
    levels = np.round(samples["images"].reshape(len(samples["images"]), -1) / 255.0 * 16.0)
    return float(np.mean(classifier.predict(levels) == samples["labels"]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", default="runs/ddpm_digits")
  parser.add_argument("--num", type=int, default=500)
  parser.add_argument("overrides", nargs="*", help="e.g. --config.guidance.weight=1 after --")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "samples.npz"
    flags = [f"--workdir={args.workdir}", f"--num={args.num}", f"--out={file}", "--batch_size=250"]
    command = [sys.executable, "-m", "diffusion_jax.sample", *flags, *args.overrides]
    subprocess.run(command, check=True)
    classifier, accuracy = fit_classifier()
    share = agreement(classifier, file)
  print(f"classifier on held-out digits: {accuracy:.1%}")
  print(f"agreement with the label asked for: {share:.1%} of {args.num} samples")


if __name__ == "__main__":
  main()
