"""EDM on CIFAR-10, class-conditional: the published recipe of Karras et al. 2022.

As edm_cifar.py, which has the facts, but with the class: DDPM++ with 55,735,299 parameters (55.7M).
No label is dropped, so there is no guidance. NCSN++ is the same with
--config.model.embedding=fourier --config.model.noise_multiplier=2
--config.model.resample_filter=1,3,3,1 --config.model.input_residual=true: 56,400,643 parameters
(56.4M).

Command:  python -m diffusion_jax.train --config=edm_cifar_cond
Data:     cifar10 of tensorflow-datasets, downloaded (170 MB) and prepared at first use.
Hardware: GPUs or TPUs. On a CPU it only shows that it runs.
Time:     about 2 days on 8 V100 for the authors; not yet measured with this code.
Score:    the paper's FID is 1.79 (arXiv 2206.00364; 50,000 samples, the minimum of three); not yet
          reproduced with this code.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = runpy.run_path(str(Path(__file__).resolve().with_name("edm_cifar.py")))["get_config"]()
  config.generative.update({"conditional": True, "label_dropout": 0.0})
  return config
