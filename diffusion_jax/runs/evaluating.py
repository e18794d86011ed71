"""The section `eval` of a config."""

import dataclasses
from typing import ClassVar, Literal

from diffusion_jax.core.parts import Part
from diffusion_jax.core.settings import Facts, setting


@dataclasses.dataclass(frozen=True)
class Evaluating(Part):
  """The measurements while training and by the evaluation program.

  Attributes:
    preset: quick: a first look, with 1,000 samples, 256 images for the likelihoods and no spectrum;
      full: the numbers of a paper, with samples as many as the reference split has, at most 50,000,
      in three sets, and all images for the likelihoods. It fills in the fields of this section that
      have no flag; in a config it also leaves fields with another value than the default. none: no
      field.
    every_steps: steps between two passes over the test split in training; none: only at the end.
    training_likelihoods: likelihoods of these passes; a model without an elbo omits it.
    batch_size: images per batch of a pass, and per chunk of samples.
    num_samples: images drawn for the sample metrics; none: the size of the reference split, at most
      50,000.
    num_seeds: sets of samples from successive seeds; their spread is the error bar of the metrics.
    reference_split: split that samples are compared with.
    metrics: sample metrics: names such as fid, kid, or "module:Class" of your own; all: every one
      of this package and of installed packages; none: no metric.
    likelihoods: likelihoods that the evaluation program measures: names of figures, "module:Class"
      of your own or the name of an entry point; all: every one of this package; none: no
      likelihood. The fields of your own are a section with the name of its class or entry point.
    likelihood_split: split on which they are measured.
    likelihood_images: images on which they are measured, evenly spaced; none: all of the split.
    likelihood_repeats: independent draws per image; two or more separate the error of these draws
      from that of the images.
    spectrum_images: images of each split for the loss by log-SNR, evenly spaced; 0: no spectrum.
  """

  # figures depend on num_samples, metrics and likelihoods, but those are compared by their results
  preset: Literal["quick", "full"] | None = setting(None, affects_figures=False)
  every_steps: int | None = setting(None, affects_figures=False)
  training_likelihoods: tuple[str, ...] = setting(("elbo",), affects_figures=False)
  batch_size: int = setting(256, affects_figures=False)
  num_samples: int | None = setting(None, affects_figures=False)
  num_seeds: int = 1
  reference_split: Literal["train", "test"] = "train"
  metrics: Literal["all"] | tuple[str, ...] = setting("all", affects_figures=False)
  likelihoods: Literal["all"] | tuple[str, ...] = setting("all", affects_figures=False)
  likelihood_split: Literal["train", "test"] = "test"
  likelihood_images: int | None = None
  likelihood_repeats: int = 1
  spectrum_images: int = 2048

  setting_facts: ClassVar[Facts] = Facts(may_change=True, affects_samples=False)

  def __post_init__(self):
    for name in (
      "every_steps",
      "batch_size",
      "num_seeds",
      "likelihood_repeats",
      "likelihood_images",
    ):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if self.num_samples is not None and self.num_samples < 2:
      raise ValueError(f"num_samples={self.num_samples} must be at least 2, or none")
    if self.spectrum_images < 0:
      raise ValueError(f"spectrum_images={self.spectrum_images} must not be negative")
