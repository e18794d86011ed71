"""The first losses of four configs, so that no new version drifts unseen.

`python tests/golden.py` writes `tests/fixtures/first_losses.json` anew: only where an entry of the
changelog says why the numbers move.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "fixtures" / "first_losses.json"
CONFIGS = ("smoke", "ddpm_digits", "flow_digits", "vae_digits")
NUM_STEPS = 50


def first_losses(name: str, num_steps: int = NUM_STEPS) -> list[float]:
  """Return the training losses of a config's first steps, on one device."""
  import steps

  from diffusion_jax.data import TrainStream
  from diffusion_jax.runs.stored import load_experiment

  parts = load_experiment(str(ROOT / "configs" / f"{name}.py"), [])
  source, training = parts.data.load("train"), parts.training
  model = parts.create(source.spec)
  state, run = steps.begin(model, parts.optimizer, training, ema=parts.ema)
  stream = TrainStream(source, training.batch_size, training.seed, parts.data.flip)
  losses = []
  for number in range(num_steps):
    state, scalars = run(state, stream.batch(number))
    losses.append(float(scalars["loss"]))
  return losses


if __name__ == "__main__":
  import conftest  # sets the flags that the tests run with

  assert conftest.FLAGS
  names = sys.argv[1:] or CONFIGS
  record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
  record |= {name: [float(f"{loss:.7g}") for loss in first_losses(name)] for name in names}
  RECORD.write_text(json.dumps(record, indent=1) + "\n")
