"""diffusion-jax: the list of the commands, what starts one, and what is refused in one line."""

import os
import runpy
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest

from diffusion_jax import __main__ as command
from diffusion_jax import __version__
from diffusion_jax.core import shipped


@pytest.fixture
def typed(monkeypatch, capsys):
  """Types diffusion-jax with these words: (exit code, stdout, stderr, what was started)."""

  def run(*words):
    started = []
    monkeypatch.setattr(sys, "argv", ["/bin/diffusion-jax", *words])
    monkeypatch.setattr(
      runpy, "run_module", lambda name, **how: started.append((name, how, sys.argv[1:]))
    )
    before = signal.getsignal(signal.SIGINT)
    try:
      code = command.main()
    except SystemExit as ended:
      code = ended.code
    finally:
      signal.signal(signal.SIGINT, before)
    return code, *capsys.readouterr(), started

  return run


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",), ("--helpfull",)])
def test_the_list_has_a_line_for_each_command(typed, words):
  code, out, err, started = typed(*words)
  assert (code, err, started) == (0, "", [])
  for name in (*command.PROGRAMS, *command.OWN):
    [line] = [line for line in out.splitlines() if line.split()[:1] == [name]]
    assert len(line.split()) > 3, line
    assert len(line) < 100
  assert "diffusion-jax train --config=ddpm_digits" in out


def test_the_programs_are_the_loose_modules_that_start_something():
  modules = {
    path.stem for path in shipped.PACKAGE.glob("*.py") if "run_main(main)" in path.read_text()
  }
  assert modules == set(command.PROGRAMS)


def test_the_list_needs_neither_jax_nor_a_second():
  code = (
    "import sys; from diffusion_jax.__main__ import main; sys.argv = ['diffusion-jax']; main();"
    "print({name.partition('.')[0] for name in sys.modules} & {'jax', 'numpy', 'flax', 'absl'})"
  )
  ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert ran.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
  ("words", "name", "argv"),
  [
    (
      ["train", "--config=ddpm_digits", "--dry_run"],
      "train",
      ["--config=ddpm_digits", "--dry_run"],
    ),
    (["sample", "--help"], "sample", ["--help"]),
    (["help", "evaluate"], "evaluate", ["--help"]),
    (["options", "sampler.heun"], "options", ["sampler.heun"]),
  ],
)
def test_a_program_is_started_as_python_m_would(typed, words, name, argv):
  code, out, err, started = typed(*words)
  how = {"run_name": "__main__", "alter_sys": True}
  assert (code, out, err) == (0, "", "")
  assert started == [(f"diffusion_jax.{name}", how, argv)]


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (["trian"], r"error: trian: no such command. Did you mean 'train'? Allowed: "),
    (["help", "trian"], r"error: trian: no such command. Did you mean 'train'? Allowed: "),
    (["sampler"], "Did you mean 'sample'?"),
    (["config"], "Did you mean 'configs'?"),
    (["TRAIN"], "Did you mean 'train'?"),
    (["--config=ddpm_digits"], "as diffusion-jax train --config=ddpm_digits"),
    (["configs", "--foo"], "configs --foo: no such flag; write configs or configs NAME"),
    (["configs", "ddpm_digit"], "ddpm_digit: no shipped config. Did you mean 'ddpm_digits'?"),
  ],
)
def test_a_mistake_is_one_line_that_names_what_was_meant(typed, words, expected):
  code, out, err, started = typed(*words)
  assert (code, out, err.count("\n"), started) == (2, "", 1, [])
  assert err.startswith("error: ")
  assert expected in err


def test_the_version_is_that_of_the_project_and_of_jax(typed):
  for word in ("--version", "version", "-V"):
    assert typed(word)[:2] == (0, f"diffusion_jax {__version__}, jax {version('jax')}\n")


def test_configs_lists_the_shipped_ones_with_a_line_each(typed):
  code, out, _, _ = typed("configs")
  assert code == 0
  for name, path in shipped.configs().items():
    assert f"  {name} " in out
    assert shipped.first_line(path) in out
  code, out, _, _ = typed("configs", "ddpm_cifar")
  assert code == 0
  assert out.startswith(str(shipped.folder() / "ddpm_cifar.py"))
  assert "3.17" in out


def test_until_a_program_handles_ctrl_c_it_ends_without_a_traceback(typed, monkeypatch):
  """The console script does not start with -m, which __init__ looks for."""
  seen = []
  monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
  monkeypatch.setattr(signal, "signal", lambda *args: seen.append(args))
  typed("train")
  assert seen[0] == (signal.SIGINT, signal.SIG_DFL)


@pytest.mark.process
@pytest.mark.parametrize(
  "words", [["train"], ["trian"], ["sample", "--workdir=nowhere", "--out=a.png"]]
)
def test_python_m_package_ends_as_the_program_does(words, tmp_path):
  ran = subprocess.run(
    [sys.executable, "-m", "diffusion_jax", *words], cwd=tmp_path, capture_output=True, text=True,
    env={**os.environ, "PYTHONPATH": str(shipped.PACKAGE.parent)},
  )  # fmt: skip
  assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
  assert ran.stderr.startswith("error: ")
