"""Tests run on the CPU with 8 virtual devices, whatever the machine has."""

import os

# The last flag halves the time spent compiling; programs that the tests start do without it.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
