"""The flags of a run that compiles in a moment, for tests of the programs around the network.

Each program is run once with a U-Net, in tests/programs/test_programs.py.
"""

MODEL = ["--config.model.name=mlp", "--config.model.hidden=32", "--config.model.depth=1"]
TINY = ["--config=configs/smoke.py", *MODEL]
