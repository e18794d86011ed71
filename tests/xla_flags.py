"""Flags of XLA with which programs of the tests compile in half of the time, and run slower."""

from importlib.metadata import version

_KNOWN_UNTIL = (0, 11)
"""Version of jaxlib from which on the second flag ends the process, as unknown."""

FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if tuple(int(n) for n in version("jaxlib").split(".")[:2]) < _KNOWN_UNTIL:
  FAST += " --xla_cpu_use_fusion_emitters=false"
