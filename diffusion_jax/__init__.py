"""Train and measure diffusion models and variational autoencoders in JAX."""

import signal
import sys

# `python -m diffusion_jax.train` takes seconds to import what it needs. Until it handles signals
# itself, Ctrl-C ends it silently: a KeyboardInterrupt would come as a traceback, or be swallowed.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
