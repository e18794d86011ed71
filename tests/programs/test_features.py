"""The program that makes a data set's own features: what it refuses, before it reads any data."""

import pytest

from diffusion_jax import features


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--seed=-1"], "--seed=-1: must be between 0 and 2^31 - 1"),
    (["--num_steps=0"], "--num_steps=0: must be at least 1"),
    (["--out=features"], "--out=features: must end in .npz"),
    (["--out=/proc/none/f.npz"], "--out=/proc/none/f.npz cannot be written"),
  ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags, message, call, root):
  code, out, err = call(features.main, f"--config={root}/configs/smoke.py", *flags)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert message in err
