"""The two moons: a model of points in the plane, trained, drawn from and measured."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_moons.py"


@pytest.mark.costly
def test_the_model_comes_near_the_true_density(tmp_path, capsys):
  """A fifth of the training leaves 0.1 nats per point; points on the wrong moon would cost many."""
  main = runpy.run_path(str(EXAMPLE))["main"]
  missing = main([f"--out={tmp_path / 'moons.png'}", "--num_steps=1500"])
  assert -0.05 < missing < 0.3
  assert "held-out log-likelihood" in capsys.readouterr().out
  picture = np.asarray(Image.open(tmp_path / "moons.png").convert("RGB"), np.float32)
  thirds = np.array_split(picture, 3, axis=1)
  assert all(part.std() > 10 for part in thirds)  # data, samples and density are drawn
