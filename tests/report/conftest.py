"""A realistic metrics.json, with pictures and training rows, for the tests of the report."""

import copy
import functools
import math

import numpy as np
import page
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.core.picture_grid import image_grid
from diffusion_jax.report import Part, Picture, Row, html

DIGITS_HASH = "9f2c1d7e" * 8
DATA_HASH = "41b0c6aa" * 8


def figure(value, better, **others):
  """A sample metric over three seeds."""
  values = [value * (1 + shift) for shift in (-0.011, 0.004, 0.007)]
  return {
    "value": value,
    "standard_deviation": float(np.std(values, ddof=1)),
    "values": values,
    "standard_error": None,
    "num_samples": 1500,
    "num_reference": 1500,
    "extractor": "digits",
    "reference": "train",
    "unit": None,
    "better": better,
    "protocol": "mean over seeds of 1,500 samples each",
    **others,
  }


def figures():
  """All sample metrics of a run."""
  nums = np.linspace(150, 1500, 15).round().astype(int)
  points = [[int(n), 2.83 + 610 / n + 0.06 * math.sin(7 * i)] for i, n in enumerate(nums)]
  infinity = figure(2.8312, "lower", values=None, standard_deviation=None, standard_error=0.0713)
  return {
    "fd_digits": figure(3.24718, "lower"),
    "fd_infinity_digits": {**infinity, "points": points},
    "kd_digits": figure(0.0004187, "lower"),
    "is_digits": figure(9.6132, "higher"),
    "precision_digits": figure(0.93467, "higher"),
    "recall_digits": figure(0.87213, "higher"),
    "density_digits": figure(1.0231, "higher"),
    "coverage_digits": figure(0.95123, "higher"),
  }


def sweep():
  """Two samplers, five lengths; guidance is on, so each step costs two evaluations."""
  rows = []
  for name, scale, bias in (("ddim", 40.0, 3.1), ("ancestral", 160.0, 2.9)):
    for steps in (5, 10, 20, 50, 100):
      value = bias + scale / steps**1.25
      rows.append(
        {
          "overrides": {"sampler.name": name, "sampler.steps": steps, "guidance.weight": 2.0},
          "num_evaluations": 2 * steps,
          "num_samples": 1500,
          "figures": {
            "fd_digits": {"value": value, "standard_deviation": 0.03 * value, "values": [1, 2, 3]},
            "precision_digits": {"value": 0.94 - bias * 0.3 / steps - scale / 4000},
          },
        }
      )
  return rows


def spectrum():
  """The denoising error of data of unit variance, with a gap where details are."""
  log_snr = np.linspace(-9.5, 9.5, 24)
  exact = 1 / (1 + np.exp(-0.55 * (log_snr + 2)))
  curves = {}
  for split, gap, num in (("train", 0.0, 1500), ("test", 0.11, 297)):
    mse = exact * (1 + gap / (1 + np.exp(-(log_snr - 1))))
    curves[split] = {
      "eps_mse": mse.tolist(),
      "standard_error": (0.4 * mse / math.sqrt(num)).tolist(),
      "num_images": num,
    }
  return {"log_snr": log_snr.tolist(), **curves}


def likelihood():
  """A variational bound of 1,000 steps."""
  t = np.arange(1, 1001) / 1000
  curve = 0.0305 * np.exp(-6.2 * t) + 0.00008
  denoising = float(curve.sum())
  prior, reconstruction = 0.000213, 0.07142
  total = prior + denoising + reconstruction
  return {
    "description": "variational bound of the diffusion model",
    "card": 2.0,
    "split": "test",
    "num_images": 297,
    "num_levels": 17,
    "conditional": True,
    "repeats": 2,
    "bits_per_dim": total,
    "standard_error": 0.01934,
    "standard_error_images": 0.01921,
    "standard_error_monte_carlo": 0.00224,
    "terms": {
      "prior": {"mean": prior, "standard_error": 0.0000012},
      "denoising": {"mean": denoising, "standard_error": 0.0187},
      "reconstruction": {"mean": reconstruction, "standard_error": 0.00193},
    },
    "curves": {"denoising": {"t": t.tolist(), "bits_per_dim": curve.tolist()}},
    "options": {"variance": "fixed_small", "clip": True, "cdf": "exact"},
  }


def full_metrics():
  """A full metrics.json of schema 1."""
  return {
    "schema": 1,
    "model": {
      "workdir": "runs/ddpm_digits",
      "step": 1000,
      "images_seen": 64000,
      "weights": "ema",
      "ema": {"decay": 0.995, "warmup": True},
      "kind": "diffusion",
      "kind_description": "diffusion model",
      "parameters": 621697,
      "config": {
        "generative": {"name": "diffusion", "prediction": "eps", "conditional": True},
        "model": {"name": "unet", "channels": 32, "multipliers": [1, 2]},
        "optimizer": {"name": "adam", "learning_rate": 0.002, "clip": None},
      },
      "data": {"name": "digits", "num": 1500, "fingerprint": DATA_HASH, "spec": [8, 8, 1, 17, 10]},
    },
    "samples": {
      "source": "runs/ddpm_digits step 1000",
      "num": 1500,
      "seeds": [0, 1, 2],
      "sampler": {"name": "ddim", "steps": 50, "eta": 0.0, "spacing": "trailing"},
      "guidance": {"weight": 2.0},
      "num_evaluations": 100,
      "labels": "classes in turn",
      "quantisation": "floor(127.5 x + 128)",
      "resolution": [8, 8, 1],
      "folder": "samples/seed_0",
    },
    "extractors": {
      "digits": {
        "name": "digits",
        "kind": "domain",
        "sha256": DIGITS_HASH,
        "resize": "none",
        "input": "8x8x1",
        "accuracy": 0.9899,
      }
    },
    "references": {
      "train": {
        "data": "digits",
        "split": "train",
        "num": 1500,
        "fingerprint": DATA_HASH,
        "resolution": [8, 8, 1],
        "augmentation": "none",
        "quantisation": "levels to 0..255",
        "extractor_sha256": DIGITS_HASH,
      }
    },
    "figures": figures(),
    "likelihoods": {"vlb": likelihood()},
    "baseline": {"independent_pixels": 2.42853},
    "spectrum": spectrum(),
    "memorization": {
      "extractor": "digits",
      "num_samples": 1500,
      "samples_to_train": {"median": 4.5123, "mean": 4.7031},
      "test_to_train": {"median": 4.6017, "mean": 4.9312},
      "closer_than_test": 0.5273,
      "c_t": -0.8361,
      "verdict": "No sign of copying: samples are as far from training images as held-out ones.",
    },
    "sweep": sweep(),
    "missing": [
      "fid: no Inception weights; python -m diffusion_jax.prepare inception fetches them"
    ],
    "repeat": "python -m diffusion_jax.evaluate --workdir=runs/ddpm_digits --step=1000 "
    "--config.eval.num_samples=1500 --config.eval.seeds=0,1,2",
    "code": {"version": "0.1.0", "git_revision": "9a632e5d0c1f"},
    "run": {
      "time": "2026-01-02T03:04:05+00:00",
      "seconds": {"samples": 41.26, "figures": 3.91, "likelihoods": 88.04, "spectrum": 12.5},
      "devices": ["TFRT_CPU_0", "TFRT_CPU_1"],
      "device_kind": "cpu",
      "num_processes": 1,
      "packages": {"jax": "0.10.2", "numpy": "2.3.1"},
    },
  }


def another_run():
  """The same run guided less, measured on fewer samples with another extractor."""
  run = full_metrics()
  run["model"]["workdir"] = "runs/ddpm_digits_wide"
  run["samples"]["guidance"] = {"weight": 1.0}
  run["extractors"]["digits"]["sha256"] = "77aa55ee" * 8
  for entry in run["figures"].values():
    entry.update(value=entry["value"] * 0.9, num_samples=500)
  run["likelihoods"]["vlb"]["bits_per_dim"] -= 0.071
  for row in run["sweep"]:
    row["figures"]["fd_digits"]["value"] *= 0.9
  return run


@functools.cache
def digits():
  """All 8x8 digits as [N, 8, 8, 1] bytes, and their labels."""
  data = load_digits()
  return (data.images * (255 / 16)).round().astype(np.uint8)[..., None], data.target


def all_pictures():
  """Every picture of a run, from real digits."""
  images, labels = digits()
  by_class = np.stack([images[labels == i][:8] for i in range(10)], axis=1).reshape(-1, 8, 8, 1)
  rng = np.random.default_rng(0)
  rows = []
  for image in images[:5]:
    for noise in np.linspace(1, 0, 10):
      mixed = (1 - noise) * image + noise * rng.uniform(0, 255, image.shape)
      rows.append(mixed.astype(np.uint8))
  nearest = np.concatenate(
    [images[[i, *np.flatnonzero(labels == labels[i])[1:6]]] for i in range(6)]
  )
  return {
    "samples": Picture(image_grid(images[:100], 10), "100 samples of seed 0."),
    "classes": Picture(image_grid(by_class, 10), "One column a class, 0 to 9."),
    "progression": Picture(
      image_grid(np.stack(rows), 10), "One row an image: estimates of it from noise to the end."
    ),
    "nearest": Picture(
      image_grid(nearest, 6), "Each row: a sample, then its five nearest training images."
    ),
    "interpolation": Picture(image_grid(images[100:110], 10), "From one digit to another."),
  }


def training_rows():
  """Rows of a metrics.jsonl of 1,000 steps."""
  rows = []
  for step in range(20, 1001, 20):
    loss = 0.09 + 0.9 * math.exp(-step / 90) + 0.008 * math.sin(step)
    rows.append(
      {
        "step": step,
        "time": 1.7e9 + step,
        "train/loss": loss,
        "train/images_per_sec": 410.0 + step % 60,
      }
    )
    if step % 200 == 0:
      rows.append({"step": step, "time": 1.7e9 + step, "held_out/loss": 1.06 * loss})
  return rows


def tiled_pictures():
  """Samples by class beside real images, one by one: small ones, and large ones."""
  images, labels = digits()
  names = ["zero", "one", "two"]
  rows = [
    Row(name, [Part("real", images[labels == i][:5]), Part("samples", images[labels == i][5:10])])
    for i, name in enumerate(names)
  ]
  large = np.zeros((2, 256, 200, 3), np.uint8) + np.arange(200, dtype=np.uint8)[:, None]
  one = [Row("", [Part("", images[:40], [names[0]] * 40)])]
  return {
    "samples": Picture(image_grid(images[:40], 8), "The first 40 samples.", one),
    "classes": Picture(image_grid(images[:30], 10), "Real and drawn.", rows),
    "large": Picture(large[0], "Large ones.", [Row("", [Part("", large)])]),
  }


@pytest.fixture
def metrics():
  return full_metrics()


@pytest.fixture
def other():
  return another_run()


@pytest.fixture
def pictures():
  return all_pictures()


@pytest.fixture
def training():
  return training_rows()


@pytest.fixture(scope="session")
def full():
  """The page with everything in it."""
  return html.render(full_metrics(), all_pictures(), page.beside(training_rows(), another_run()))


@pytest.fixture(scope="session")
def hostile():
  """Every name and text that a user decides, set to markup."""
  metrics, pictures, other, hostile = full_metrics(), all_pictures(), another_run(), page.HOSTILE
  metrics["model"]["workdir"] = other["model"]["workdir"] = f"runs/{hostile}"
  metrics["repeat"] = f"--workdir={hostile}"
  metrics["missing"] = [hostile]
  metrics["model"]["config"][hostile] = {hostile: hostile}
  metrics["samples"]["folder"] = hostile
  metrics["memorization"]["verdict"] = hostile
  metrics["figures"][hostile] = copy.deepcopy(metrics["figures"]["fd_infinity_digits"])
  metrics["figures"]["fd_digits"]["protocol"] = hostile
  metrics["likelihoods"][hostile] = copy.deepcopy(metrics["likelihoods"]["vlb"])
  metrics["likelihoods"][hostile]["terms"] = {hostile: {"mean": 1.0, "standard_error": 0.1}}
  metrics["likelihoods"][hostile]["curves"][hostile] = {"t": [0, 1], "bits_per_dim": [1, 2]}
  metrics["extractors"][hostile] = {"sha256": hostile}
  metrics["run"]["seconds"][hostile] = 1.0
  for row in metrics["sweep"][:5]:
    row["overrides"]["sampler.name"] = hostile
    row["figures"][hostile] = {"value": 1.0}
  pictures[hostile] = Picture(np.zeros((2, 2, 3), np.uint8), hostile)
  return html.render(metrics, pictures, page.beside(training_rows(), other))


@pytest.fixture(scope="session")
def doc(full):
  return page.read(full)
