"""The suites of the chips: what they run, what they keep, and how they go on."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def suite(root, monkeypatch):
  monkeypatch.syspath_prepend(root / "benchmarks")
  monkeypatch.setenv("PYTHONPATH", "")
  import suite

  monkeypatch.setattr(suite.networks, "missing", lambda *_: None)
  return suite


@pytest.fixture
def run(suite, tmp_path, monkeypatch):
  """Run a suite of three parts, whose programs end as told; returns those that were started."""

  def part(name, suite=suite):
    return suite.Part(name, f"the {name}", 60, [name], lambda figures: figures["cell"], "a goal")

  def once(ends, *typed):
    started = []

    def stand_in(command, seconds):
      name = command[1].rpartition("/")[2]
      started.append(name)
      if ends.get(name):
        return ends[name]
      about = {"cores": 2, "processor": "P", "python": "3", "date": "today", "jax": "0.1",
               "device": "chip", "peers": {"dewml": "jax 0.2"}}  # fmt: skip
      figures = {"cell": f"{name} | done", "about": about}
      out = command[2].removeprefix("--out=")
      with open(out, "w") as file:
        json.dump(figures, file)
      return 0, []

    monkeypatch.setattr(suite, "run_and_show", stand_in)
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--out={tmp_path / 'out'}", *typed])
    flags = suite.suite_parser("")
    suite.run_suite(flags, lambda *_: [part("a"), part("b"), part("c")], ["dewml"])
    return started

  return once


def test_a_part_that_fails_is_told_and_the_rest_go_on(run, tmp_path):
  said = ["Traceback", "RuntimeError: out of | memory", "left"]
  assert run({"b": (1, said), "c": (None, [])}) == ["a", "b", "c"]
  lines = (tmp_path / "out/table.md").read_text().splitlines()
  assert lines[0] == "2 cores of P, Python 3, jax 0.1; dewml: jax 0.2; today"
  assert "| the a | a / done | a goal | chip |" in lines
  failed = "| the b | not measured: exit code 1: RuntimeError: out of / memory | a goal |  |"
  assert failed in lines
  assert "| the c | not measured: longer than 60 s | a goal |  |" in lines


def test_a_second_call_measures_only_what_is_missing(run, tmp_path):
  run({"b": (1, ["no"])})
  assert run({}) == ["b"]
  assert run({}) == []
  assert "not measured" not in (tmp_path / "out/table.md").read_text()


def test_nothing_begins_without_time(run, tmp_path):
  assert run({}, "--minutes=0.1") == []
  assert "no time was left" in (tmp_path / "out/table.md").read_text()


def test_only_the_parts_asked_for_are_measured(run, tmp_path, capsys):
  assert run({}, "--only=c") == ["c"]
  assert "| the a | not measured: not asked for yet |" in (tmp_path / "out/table.md").read_text()
  with pytest.raises(SystemExit, match="2"):
    run({}, "--only=d")
  assert "--only=d: 'd' is no part of a, b, c" in capsys.readouterr().err


def test_a_folder_without_wheels_is_told(run, tmp_path, capsys):
  with pytest.raises(SystemExit, match="2"):
    run({}, f"--wheels={tmp_path}")
  assert f"--wheels={tmp_path}: there is no *.whl; pip wheel" in capsys.readouterr().err


def parts_of(suite, program, *typed):
  module = __import__(program)
  args = suite.suite_parser("").parse_args(["--out=x", *typed])
  peers = ["diffusers", "dewml"] if program == "gpu" else ["dewml"]
  return {part.name: part for part in module.make_parts(args, peers)}


ORDER = ["ddpm_128", "sampling", "dit_xl2", "attention", "group_norm", "upsampled_conv", "stall",
         "start"]  # fmt: skip


@pytest.mark.parametrize("typed", [[], ["--tiny", "--python.dewml=/bin/true"]])
@pytest.mark.parametrize("program", ["gpu", "tpu"])
def test_every_part_has_flags_that_its_program_takes(suite, program, typed):
  parts = parts_of(suite, program, *typed)
  assert [name for name in parts if name in ORDER] == ORDER
  networks = suite.networks
  takes = {
    "train_step.py": (list(networks.NETWORKS), list(networks.PEERS)),
    "sampling.py": (["ddpm_cifar"], ["diffusers"]),
  }
  for part in parts.values():
    name, *flags = part.arguments
    assert (suite.harness.HERE / name).is_file()
    if name in takes:
      parser = networks.network_parser("", *takes[name])
      parser.add_argument("--steps")
      parser.parse_args(flags)


def test_on_a_tpu_one_process_has_the_chip_and_nothing_needs_torch(suite):
  for part in parts_of(suite, "tpu").values():
    name, *flags = part.arguments
    assert not {"--compile", "--channels_last"} & set(flags)
    assert "--one_at_a_time" in flags or name not in ("train_step.py", "sampling.py")


def test_a_cell_has_our_rate_and_how_many_times_the_others_it_is(suite):
  rows = [
    {"name": "diffusion_jax", "per_sec": 3000.0, "ratio_range": [1.4, 1.6]},
    {"name": "diffusers", "per_sec": 2000.0},
    {"name": "dewml", "per_sec": 2500.0},
  ]
  figures = {"rows": rows, "floor": {"mfu": 0.4567, "hfu": 0.5}, "left_out": ["lucidrains"]}
  assert suite.step_cell(figures) == (
    "3,000 images/s, 1.50 times diffusers (1.40 to 1.60), 1.20 times dewml, lucidrains failed; "
    "MFU 45.7%, HFU 50.0%"
  )


HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("RuntimeError: here", child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.process
def test_what_takes_too_long_is_ended_with_all_that_it_started(suite):
  code, lines = suite.run_and_show([sys.executable, "-c", HANGS], 3)
  assert (code, lines[0][:18]) == (None, "RuntimeError: here")
  child = lines[0].split()[-1]
  state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True).stdout
  assert not state.strip() or state.startswith("Z"), state  # gone, or only not waited for


@pytest.mark.process
@pytest.mark.parametrize("program", ["gpu", "tpu"])
def test_the_suites_run_small_on_a_cpu(root, tmp_path, program):
  command = [sys.executable, root / "benchmarks" / f"{program}.py", "--tiny", f"--out={tmp_path}"]
  subprocess.run([*command, "--only=pointwise"], check=True, capture_output=True)
  table = (tmp_path / "table.md").read_text()
  assert table.startswith("Small sizes: no figure means anything.")
  assert "| pointwise, value and gradient | 2x4x4x8 to 8: faster" in table
