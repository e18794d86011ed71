"""Makes tests/models/network_fixture.npz: outputs of diffusers' networks on drawn weights.

  pip install -e '.[test,reference]' && python tests/reference/make_network_fixture.py

Weights and images are those of tests/models/network_cases.py; the networks are diffusers' U-Net and
diffusion transformer with the settings of DDPM, Improved DDPM, DiT and SiT.
"""

import json
from importlib import metadata

import diffusers_networks
import network_cases
import numpy as np


def main():
  made = {
    name: diffusers_networks.outputs(case, diffusers_networks.counterpart(case))
    for name, case in network_cases.CASES.items()
  }
  versions = {name: metadata.version(name) for name in ("torch", "diffusers", "numpy")}
  np.savez_compressed(network_cases.FIXTURE, about=json.dumps({"versions": versions}), **made)
  size = network_cases.FIXTURE.stat().st_size
  print(f"{network_cases.FIXTURE}: {size:,} bytes, {json.dumps(versions)}")


if __name__ == "__main__":
  main()
