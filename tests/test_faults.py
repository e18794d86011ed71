"""The faults that are planted to try the tests are still faults of the lines that are there."""

import ast

import faults
import pytest


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.what)
def test_each_fault_changes_a_line_and_its_tests_are_there(fault, root, tmp_path):
  source = root / "diffusion_jax" / fault.file
  copy = tmp_path / "diffusion_jax" / fault.file
  copy.parent.mkdir(parents=True)
  copy.write_text(source.read_text())
  faults.plant(fault, tmp_path)
  assert ast.dump(ast.parse(copy.read_text())) != ast.dump(ast.parse(source.read_text()))
  assert all((root / path).exists() for path in fault.tests.split())


def test_a_line_that_is_gone_is_said(tmp_path):
  fault = faults.FAULTS[0]
  copy = tmp_path / "diffusion_jax" / fault.file
  copy.parent.mkdir(parents=True)
  copy.write_text("")
  with pytest.raises(SystemExit, match="adapt the fault 'a sign in the denoising loss'"):
    faults.plant(fault, tmp_path)
