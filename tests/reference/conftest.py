"""torchvision beside torch's CPU build, which both diffusers and torch-fidelity import."""

from importlib.util import find_spec

if find_spec("torch") is not None and find_spec("torch_fidelity") is not None:
  from make_inception_fixture import import_torch_fidelity

  import_torch_fidelity()
