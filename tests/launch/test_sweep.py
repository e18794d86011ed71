"""launch/sweep.py: a grid of overrides becomes commands; a bad one is refused before that."""

import runpy
import shlex
import subprocess
import sys

import pytest

from diffusion_jax import train
from diffusion_jax.runs.stored import load_experiment

SEEDS = "--grid=training.seed=0,1,2"


@pytest.fixture(scope="module")
def main(pytestconfig):
  return runpy.run_path(str(pytestconfig.rootpath / "launch" / "sweep.py"))["main"]


@pytest.fixture
def sweep(call, main, root, monkeypatch):
  """Runs the program in the project's folder: flags -> (exit code, stdout, stderr)."""
  monkeypatch.chdir(root)
  return lambda *flags: call(main, "--config=configs/ddpm_digits.py", *flags)


def commands(out: str) -> list[list[str]]:
  return [shlex.split(line) for line in out.splitlines()]


def test_a_shipped_config_is_found_by_its_name(call, main, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, err = call(main, "--config=smoke", "--grid=training.seed=0")
  assert (code, err) == (0, "")
  [words] = commands(out)
  assert words[3:5] == ["--config=smoke", "--workdir=runs/smoke_sweep/training.seed=0"]


def test_every_point_of_the_grid_becomes_one_command(sweep):
  code, out, _ = sweep("--grid=optimizer.learning_rate=1e-4,2e-4", SEEDS)
  assert code == 0
  start = [sys.executable, "-m", "diffusion_jax.train", "--config=configs/ddpm_digits.py"]
  assert all(words[:4] == start for words in commands(out))
  assert [words[5:] for words in commands(out)] == [
    [f"--config.optimizer.learning_rate={rate}", f"--config.training.seed={seed}"]
    for rate in ("1e-4", "2e-4") for seed in "012"
  ]  # fmt: skip


def test_training_reads_each_command_as_its_point(sweep):
  _, out, _ = sweep("--grid=model.multipliers=(1,2),(1,2,2)", "--grid=ema.decay=0.9,0.99")
  read = []
  for words in commands(out):
    args, overrides = train.parser().parse(words[3:])
    experiment = load_experiment(args.config, overrides).to_dict()
    read.append((tuple(experiment["model"]["multipliers"]), experiment["ema"]["decay"]))
  assert read == [((1, 2), 0.9), ((1, 2), 0.99), ((1, 2, 2), 0.9), ((1, 2, 2), 0.99)]


def test_every_command_has_a_folder_named_after_its_overrides(sweep):
  _, out, _ = sweep("--grid=model.multipliers=(1,2),(1,2,2)", "--workdir=a b/c", SEEDS)
  folders = [words[4].removeprefix("--workdir=") for words in commands(out)]
  assert folders[0] == "a b/c/model.multipliers=1,2,training.seed=0"
  assert len(set(folders)) == len(folders) == 6
  _, out, _ = sweep(SEEDS)
  assert commands(out)[2][4] == "--workdir=runs/ddpm_digits_sweep/training.seed=2"


def test_submit_replaces_the_program_and_the_rest_goes_to_every_command(sweep):
  code, out, _ = sweep("--submit=sbatch --comment='two words' launch/slurm.sbatch",
                       "--config.training.num_steps=5", SEEDS, "--", "--fresh")  # fmt: skip
  assert code == 0
  for seed, words in enumerate(commands(out)):
    assert words[:3] == ["sbatch", "--comment=two words", "launch/slurm.sbatch"]
    assert words[5:] == [
      f"--config.training.seed={seed}",
      "--config.training.num_steps=5",
      "--fresh",
    ]


@pytest.mark.parametrize("runner", ["sh", "xargs -d '\\n' -n 1 -P 2 sh -c"])
def test_a_shell_runs_what_is_printed(sweep, runner, tmp_path):
  show = tmp_path / "show it.py"
  show.write_text('import os, sys; os.write(1, f"{sys.argv[1:]}\\n".encode())')
  submit = shlex.join([sys.executable, str(show)])
  _, out, _ = sweep(f"--submit={submit}", "--grid=model.multipliers=(1,2),(1, 2, 2)")
  ran = subprocess.run(["sh", "-c", runner], input=out, capture_output=True, text=True, timeout=60)
  assert sorted(ran.stdout.splitlines()) == sorted(str(words[2:]) for words in commands(out))
  assert "--config.model.multipliers=(1, 2, 2)" in ran.stdout


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--grid=training.sed=1"], "no field 'sed'. Did you mean 'seed'?"),
    (["--grid=trainin.seed=1"], "no section 'trainin'. Did you mean --config.training.seed=1?"),
    (["--grid=training.seed=1,x"], "--config.training.seed=x: 'x' is not an integer"),
    (["--grid=training.batch_size=64,0"], "config.training: batch_size"),
    (["--grid=training.seed=1,,2"], "--grid=training.seed=1,,2: a value is empty"),
    (["--grid=training.seed="], "--grid=training.seed=: a value is empty"),
    (["--grid=training.seed"], "a value is empty; write --grid=training.seed=value,value"),
    (["--grid=seed=1,2"], "--grid=seed=1,2: write --grid=section.field=value,value"),
    (["--grid=training.seed=1,1"], "--grid=training.seed=1,1: 1 is repeated"),
    ([SEEDS, "--grid=training.seed=5"], "training.seed is given twice"),
    ([SEEDS, "--config.training.seed=5"], "training.seed is given twice"),
    ([SEEDS, "--", "--config.training.seed=5"], "training.seed is given twice"),
    (["--grid=model.multipliers=(1,2),[1,2]"], "multipliers=1,2: two points have this folder"),
    ([f"--grid=training.seed={'1'.zfill(200)}"], "longer than 200 characters"),
    ([SEEDS, "--", "--workdir=x"], "--workdir=x after --: every command has its own"),
    ([SEEDS, "--config.training.sed=5"], "no field 'sed'"),
    ([SEEDS, "--submit="], "--submit= is empty"),
    ([SEEDS, "--submit=a 'b"], "--submit=a 'b: No closing quotation"),
    ([SEEDS, "--workdir="], "is empty; give a folder or leave it out"),
    ([SEEDS, "--foo"], "unrecognized arguments: --foo; try python launch/sweep.py --help"),
    ([], "required: --grid; try python launch/sweep.py --help"),
    ([SEEDS, "--config=nowhere.py"], "--config=nowhere.py: no such file"),
  ],
)  # fmt: skip
def test_a_bad_grid_is_refused_in_one_line_and_nothing_is_printed(sweep, flags, says):
  code, out, err = sweep(*flags)
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert says in err


@pytest.mark.process
def test_the_file_itself_is_the_program(root):
  command = [
    sys.executable,
    "launch/sweep.py",
    "--config=configs/smoke.py",
    "--grid=training.seed=7",
  ]
  ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
  assert ran.returncode == 0, ran.stderr
  assert commands(ran.stdout)[0][-1] == "--config.training.seed=7"
