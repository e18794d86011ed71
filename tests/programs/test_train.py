"""The training program: what it leaves behind, and one clear line for everything that is wrong."""

import json
import re
import shutil
import subprocess
import sys

import costs
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TINY as SMOKE

from diffusion_jax import sample, train
from diffusion_jax.checkpoints import store
from diffusion_jax.core.picture_grid import LINE
from diffusion_jax.data.pipeline import TrainStream
from diffusion_jax.losses import Simple
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.planning.chips import CHIPS
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.train_loop import loop
from diffusion_jax.train_loop.setup import prepare_job
from diffusion_jax.types import UserError

pytestmark = pytest.mark.costly


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run of configs/smoke.py."""
  workdir = tmp_path_factory.mktemp("runs") / "smoke"
  train.main([*SMOKE, f"--workdir={workdir}"])
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  """A copy of that run, to be spoilt."""
  return shutil.copytree(finished, tmp_path / "smoke")


def one_line(err):
  """The one line of an error message."""
  assert err.startswith("error: ")
  assert err.count("\n") == 1, err
  return err


def test_a_finished_run_has_its_folder(finished):
  names = {p.name for p in finished.iterdir()}
  assert names >= {
    "config.json", "environment.json", "metrics.jsonl", "held_out.json", "checkpoints",
    "samples", "tensorboard",
  }  # fmt: skip
  config = json.loads((finished / "config.json").read_text())
  assert config["training"]["num_steps"] == 20
  (start,) = json.loads((finished / "environment.json").read_text())["starts"]
  assert len(start["devices"]) == 8
  assert store.saved_steps(finished / "checkpoints") == [10, 15, 20]
  rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  train_rows = [r for r in rows if "train/loss" in r]
  assert [r["step"] for r in train_rows] == [5, 10, 15, 20]
  for name in ("loss", "images_per_sec", "data_wait_share", "grad_norm", "learning_rate"):
    assert all(np.isfinite(r[f"train/{name}"]) for r in train_rows)
  assert json.loads((finished / "held_out.json").read_text())["step"] == 20


def test_the_grid_has_a_cell_for_each_sample(finished):
  image = Image.open(finished / "samples" / "step_00000020.png")
  assert image.size == (10 * 34 + 2, LINE + 2 * 34 + 2)  # one line with the classes


def test_another_seed_and_other_rates_compile_nothing_anew(finished, call, tmp_path):
  """A sweep over them loads every program from the cache; one over Adam's b1 cannot."""
  counts = {"asked for": 0, "loaded": 0}

  def on_duration(event, duration, **_):
    counts["asked for"] += event == costs.COMPILED

  def on_event(event, **_):
    counts["loaded"] += event == costs.LOADED

  def num_compiled(*flags):
    before = dict(counts)
    code, _, err = call(train.main, *SMOKE, *flags)
    assert code == 0, err
    more = {name: counts[name] - before[name] for name in counts}
    assert more["loaded"] >= 3  # the step, the samples, the held-out pass
    return more["asked for"] - more["loaded"]

  jax.monitoring.register_event_duration_secs_listener(on_duration)
  jax.monitoring.register_event_listener(on_event)
  try:
    assert num_compiled(
      f"--workdir={tmp_path}/a", "--config.training.seed=5", "--config.training.num_steps=7",
      "--config.optimizer.learning_rate=0.003", "--config.optimizer.warmup_steps=3",
      "--config.optimizer.weight_decay=0.01", "--config.optimizer.clip_norm=0.5",
      "--config.ema.decay=0.5",
    ) == 0  # fmt: skip
    new = np.random.default_rng().uniform(0.8, 0.9)  # the cache knows those of earlier tests
    assert num_compiled(f"--workdir={tmp_path}/b", f"--config.optimizer.b1={new}") > 0
  finally:
    jax.monitoring.unregister_event_duration_listener(on_duration)
    jax.monitoring.unregister_event_listener(on_event)


def test_the_block_at_the_start_says_what_will_run(finished, call, tmp_path, monkeypatch):
  chip = CHIPS["TPU v4"]._replace(flops=1e6)  # of a known chip there is an MFU
  monkeypatch.setattr("diffusion_jax.train_loop.compile.find_chip", lambda kind: chip)
  flags = [*SMOKE, f"--workdir={tmp_path}", "--config.training.num_steps=2"]
  code, out, _ = call(train.main, *flags)
  assert code == 0
  for text in (
    "devices    8 x cpu, 1 process\n", "mesh       data 8, fsdp 1, tensor 1",
    "batch      16 images, 2 per device", "parameters ", "synthetic train, 256 images of 8x8x1",
    "held out   64 images", f"workdir    {tmp_path}", "start      a new run",
    "\ncompiled in ", "FLOPs per step and device: ", "at most 0 TFLOP/s",
    "step       2/2  loss", "MFU ", "images/s  data wait ", "ETA 0s",
    "held-out loss", "finished: 2 steps",
  ):  # fmt: skip
    assert text in out, text


def test_a_dry_run_says_how_the_state_would_lie_and_leaves_nothing(call, tmp_path):
  workdir = tmp_path / "run"
  flags = (*SMOKE, "--config.mesh.fsdp=4", "--config.model.hidden=64", "--dry_run")
  flags = (*flags, "--config.process.beta_end=0.02")  # of ten times as many steps
  code, out, err = call(train.main, *flags, f"--workdir={workdir}")
  assert (code, err) == (0, "")
  assert "\n  warning    the process ends 0.31 bits/dim from noise" in out
  assert "mesh       data 2, fsdp 4, tensor 1" in out
  assert re.search(r"params +fsdp 4 +[0-9]+ +0\.[0-9] +0\.[0-9]\n", out)
  assert re.search(r"total .* 1/[1-4]\.[0-9]+ of the whole\n  preview .* and its images\n$", out)
  assert not workdir.exists()


def test_a_start_on_two_slices_says_what_crosses_them(call, tmp_path):
  """A device sends what is its own of the sum of its slice: a quarter of the gradients."""
  flags = (*SMOKE, "--config.mesh.dcn_data=2", "--config.model.hidden=512", "--dry_run")
  code, out, err = call(train.main, *flags, f"--workdir={tmp_path}/run")
  assert (code, err) == (0, "")
  assert "mesh       dcn_data 2, data 4, fsdp 1, tensor 1" in out
  found = re.search(r"slices     2; only dcn_data spans them: gradients of ([\d.]+) MB", out)
  parameters = re.search(r"parameters ([\d,]+)", out)
  num_bytes = 4 * int(parameters[1].replace(",", ""))
  assert float(found[1]) == pytest.approx(num_bytes / 1e6, abs=0.05)
  assert f"each device sends {num_bytes / 4e6:.2f} MB to the other slices per step" in out


@pytest.mark.parametrize(
  "shape", [MeshShape(-1, 4), MeshShape(2, 2, 2), MeshShape(1, 8), MeshShape(-1, 2, dcn_data=2)]
)
def test_the_order_of_the_data_is_that_of_any_mesh(shape, tmp_path):
  """Image, label and global number of every row of a batch, after several epochs."""
  experiment = load_experiment("configs/smoke.py", [])
  job = prepare_job(experiment, tmp_path)
  flat = job._replace(mesh=create_mesh(MeshShape(), jax.devices()[:1]))
  split = job._replace(mesh=create_mesh(shape))
  for step in (0, 37):
    one, many = (jax.tree.map(np.asarray, loop.make_feed(j)(step)) for j in (flat, split))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, many)))
    np.testing.assert_array_equal(one.index, step * 16 + np.arange(16))


def test_a_finished_run_says_so_and_is_left_alone(finished, call):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
  code, out, _ = call(train.main, *SMOKE, f"--workdir={finished}")
  assert code == 0
  assert "nothing is left to do" in out
  after = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
  changed = {p.name for p in after if before.get(p) != after[p]}
  assert changed <= {"config.json", "smoke"}


def test_a_finished_run_can_be_made_longer(copy, call):
  flags = [*SMOKE, f"--workdir={copy}", "--config.training.num_steps=25"]
  code, out, _ = call(train.main, *flags)
  assert code == 0
  assert "resuming at step 20 of 25" in out
  assert "changed since the run began: training.num_steps: 20 -> 25" in out
  assert store.saved_steps(copy / "checkpoints")[-1] == 25
  steps = [json.loads(r)["step"] for r in (copy / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(steps)


def test_figures_that_a_kill_took_are_made_up_for(copy, call):
  """Killed after the last checkpoint, before the last grid and figures."""
  (copy / "held_out.json").unlink()
  (copy / "samples" / "step_00000020.png").unlink()
  code, out, _ = call(train.main, *SMOKE, f"--workdir={copy}")
  assert code == 0
  assert "finished: 20 steps" in out
  assert (copy / "samples" / "step_00000020.png").is_file()
  assert json.loads((copy / "held_out.json").read_text())["step"] == 20


def test_fresh_moves_the_old_run_aside(copy, call):
  flags = [*SMOKE, f"--workdir={copy}", "--config.training.num_steps=2"]
  code, out, _ = call(train.main, *flags, "--fresh", "--config.training.seed=7")
  assert code == 0
  assert f"moved the old run to {copy}.old1" in out
  assert store.saved_steps(copy / "checkpoints") == [2]
  assert store.saved_steps(copy.with_name("smoke.old1") / "checkpoints") == [10, 15, 20]


def truncate(folder):
  """Cuts every data file of a checkpoint in half."""
  for file in folder.glob("**/d/*"):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_truncated_newest_checkpoint_falls_back_and_says_so(copy, call, finished):
  truncate(copy / "checkpoints" / "20" / "state")
  code, out, err = call(train.main, *SMOKE, f"--workdir={copy}")
  assert (code, err) == (0, "")
  assert "checkpoint 20 is damaged (" in out
  assert f"moved to {copy}/checkpoints_damaged/20" in out
  assert "resuming at step 15 of 20" in out
  assert (copy / "checkpoints_damaged" / "20").is_dir()
  assert store.saved_steps(copy / "checkpoints") == [10, 15, 20]


def test_a_checkpoint_whose_description_is_cut_off_is_passed_over(copy, call, finished):
  for file in (copy / "checkpoints" / "20" / "meta").iterdir():
    file.write_bytes(file.read_bytes()[:100])
  code, out, _ = call(train.main, *SMOKE, f"--workdir={copy}")
  assert code == 0
  assert "checkpoint 20 is damaged (its metadata is truncated or not JSON): moved to" in out
  assert "resuming at step 15 of 20" in out


def test_a_checkpoint_of_another_run_is_passed_over_by_training_and_sampling(copy, call, tmp_path):
  """The same network with another seed, copied there by mistake as the newest step."""
  other = tmp_path / "other"
  flags = ["--config.training.seed=9", "--config.training.num_steps=5"]
  assert call(train.main, *SMOKE, *flags, f"--workdir={other}")[0] == 0
  shutil.rmtree(copy / "checkpoints" / "20")
  shutil.copytree(other / "checkpoints" / "5", copy / "checkpoints" / "5")
  (copy / "checkpoints" / "5").rename(copy / "checkpoints" / "20")
  (copy / "held_out.json").unlink()
  shutil.copytree(copy, tmp_path / "sampled")
  code, out, _ = call(
    sample.main, f"--workdir={tmp_path}/sampled", f"--out={tmp_path}/a.npz", "--num=2"
  )
  assert code == 0
  assert "restored the EMA weights of step 15" in out
  code, out, err = call(train.main, *SMOKE, f"--workdir={copy}")
  assert (code, err) == (0, "")
  assert "checkpoint 20 is damaged (it is the checkpoint of step 5): moved to" in out
  assert "resuming at step 15 of 20" in out


def test_a_checkpoint_of_another_seed_at_its_own_step_is_passed_over(copy, call, tmp_path):
  other = tmp_path / "other"
  flags = ["--config.training.seed=9", "--config.checkpoint.every_steps=20"]
  assert call(train.main, *SMOKE, *flags, f"--workdir={other}")[0] == 0
  shutil.rmtree(copy / "checkpoints" / "20")
  shutil.copytree(other / "checkpoints" / "20", copy / "checkpoints" / "20")
  code, out, err = call(train.main, *SMOKE, f"--workdir={copy}")
  assert (code, err) == (0, "")
  assert "20 is damaged (it belongs to another run (training.seed: 0 -> 9)): moved" in out
  assert "resuming at step 15 of 20" in out


@pytest.mark.parametrize("name", ["0020", "007"])
def test_a_folder_that_is_not_named_after_its_step_ends_no_run(name, copy, call):
  (copy / "held_out.json").unlink()
  shutil.copytree(copy / "checkpoints" / "15", copy / "checkpoints" / name)
  code, out, err = call(train.main, *SMOKE, f"--workdir={copy}")
  assert code == 0, err
  assert "finished: 20 steps" in out


def test_sampling_falls_back_too(copy, call):
  truncate(copy / "checkpoints" / "20" / "state")
  flags = [f"--workdir={copy}", f"--out={copy}/a.npz", "--num=2"]
  code, out, _ = call(sample.main, *flags)
  assert code == 0
  assert "checkpoint 20 is damaged" in out
  assert "restored the EMA weights of step 15" in out


def test_a_lost_config_is_read_from_the_checkpoints(copy, call):
  (copy / "config.json").unlink()
  code, out, _ = call(train.main, *SMOKE, f"--workdir={copy}")
  assert code == 0
  assert "nothing is left to do" in out
  code, _, err = call(train.main, *SMOKE, f"--workdir={copy}", "--config.training.seed=5")
  assert code == 2
  assert "training.seed: 0 -> 5" in one_line(err)


def test_weight_decay_may_change_in_mid_run(copy, call):
  flags = ["--config.training.num_steps=22", "--config.optimizer.weight_decay=0.1"]
  code, out, err = call(train.main, *SMOKE, f"--workdir={copy}", *flags)
  assert code == 0, err
  assert "optimizer.weight_decay: 0.0 -> 0.1" in out


def test_fewer_steps_than_were_made_leave_the_run_at_its_own(copy, call):
  (copy / "held_out.json").unlink()
  code, out, _ = call(train.main, *SMOKE, f"--workdir={copy}", "--config.training.num_steps=10")
  assert code == 0
  assert "finished: 20 steps" in out


def test_sampling_takes_the_devices_that_are_there(copy, call):
  """Whatever mesh the run was trained on."""
  config = json.loads((copy / "config.json").read_text())
  config["mesh"] = {"data": 1, "fsdp": 2}
  (copy / "config.json").write_text(json.dumps(config))
  code, out, _ = call(sample.main, f"--workdir={copy}", f"--out={copy}/a.npz", "--num=2")
  assert code == 0
  assert "on 8 device(s)" in out


ERRORS = {
  "no config": ([], r"required: --config or --data; shipped configs: .*smoke.*; try python -m"),
  "missing config file": (
    ["--config=configs/ddpm_cifer.py"],
    r"no such file: configs/ddpm_cifer.py. Did you mean 'ddpm_cifar'\? Shipped, .* vae_cifar",
  ),
  "misspelt section": (
    ["--config.optimzer.b3=1"], r"no section 'optimzer'. Did you mean 'optimizer'\? Allowed: .*data"
  ),
  "misspelt field": (
    ["--config.optimizer.learning_rat=1"], r"no field 'learning_rat'. Did you mean 'learning_rate'"
  ),
  "misspelt name": (["--config.sampler.name=dim"], r"name is 'dim'. Did you mean 'ddim'.*ances"),
  "wrong type": (["--config.training.num_steps=many"], r"num_steps=many: 'many' is not an integer"),
  "out of range": (["--config.ema.decay=2"], r"config.ema: decay=2.0 must be .* below 1"),
  "not a number": (["--config.optimizer.learning_rate=nan"], r"'nan' is not a number"),
  "one of": (["--config.model.dtype=float16"], r"'float16' is not one of float32, bfloat16"),
  "every 0": (["--config.eval.every_steps=0"], r"config.eval: every_steps=0 must be at least 1"),
  "no workdir": (["--workdir="], r"--workdir= is empty"),
  "no value": (["--config.training.seed"], r"write --config.section.field=value"),
  "unknown flag": (["--wrkdir=x"], r"arguments: --wrkdir=x; did you mean --workdir\? try"),
  "batch size": (
    ["--config.training.batch_size=12"],
    r"batch_size=12 is not divisible by 8 device\(s\); use .*batch_size=8 or .*batch_size=16",
  ),
  "microbatches": (
    ["--config.training.accumulation_steps=4"], r"8 device\(s\) x 4 microbatches; use .*=32"
  ),
  "mesh": (["--config.mesh.data=3"], r"mesh data=3, fsdp=1, tensor=1 does not fit 8 device\(s\)"),
  "slices": (["--config.mesh.dcn_data=3"], r"mesh.dcn_data=3 does not fit 8 device\(s\) of 1 host"),
  "data set": (
    ["--config.data.name=tfds", "--config.data.dataset=cifar11"],
    r"Did you mean 'cifar10_1'.*Ready to use: cifar10",
  ),
  "data source": (["--config.data.name=digit"], r"name is 'digit'. Did you mean 'digits'"),
  "no folder": (
    ["--config.data.name=folder", "--config.data.path=/no/where"], r"/no/where: no such folder"
  ),
  "image size": (
    ["--config.data.image_size=7"], r"7x7.*halv"
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_input_gives_one_line_and_exit_code_2(name, call, tmp_path):
  flags, message = ERRORS[name]
  workdir = tmp_path / "run"
  base = [] if name == "no config" else ["--config=configs/smoke.py"]
  code, out, err = call(train.main, *base, f"--workdir={workdir}", *flags)
  assert code == 2
  assert re.search(message, one_line(err)), err
  assert not out
  assert not workdir.exists()  # nothing is made, so nothing is spoilt


def test_empty_folders_and_unreadable_pictures(call, tmp_path):
  data = tmp_path / "data"
  data.mkdir()
  flags = [*SMOKE, f"--workdir={tmp_path}/run", "--config.data.name=folder"]
  code, _, err = call(train.main, *flags, f"--config.data.path={data}")
  assert code == 2
  assert f"{data}: no pictures there" in one_line(err)
  (data / "a.png").write_bytes(b"no picture")
  code, _, err = call(train.main, *flags, f"--config.data.path={data}")
  assert code == 2
  assert "1 of 1 pictures" in one_line(err)


CHANGES = {
  "another model": ["--config.model.hidden=16"],
  "another prediction": ["--config.generative.prediction=v"],
  "another seed": ["--config.training.seed=5"],
  "other data": ["--config.data.name=digits"],
  "other fields of the data": ["--config.data.num_images=128"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_not_continued_with_something_else(name, finished, call):
  before = (finished / "config.json").read_bytes()
  flags = [*SMOKE, f"--workdir={finished}", *CHANGES[name]]
  code, _, err = call(train.main, *flags)
  assert code == 2
  key, _, value = CHANGES[name][0].removeprefix("--config.").partition("=")
  line = one_line(err)
  assert f"{key}: " in line
  assert f" -> {value}" in line
  assert "--fresh" in line
  assert (finished / "config.json").read_bytes() == before
  assert store.saved_steps(finished / "checkpoints") == [10, 15, 20]


def test_data_of_the_same_name_with_other_content_are_refused(call, tmp_path):
  flags = [
    *SMOKE, f"--workdir={tmp_path}/run", "--config.training.num_steps=2",
    "--config.data.name=arrays", f"--config.data.path={tmp_path}/a.npz",
  ]  # fmt: skip
  images = np.zeros((32, 8, 8, 1), np.uint8)
  np.savez(tmp_path / "a.npz", images=images, labels=np.arange(32) % 3)
  assert call(train.main, *flags)[0] == 0
  np.savez(tmp_path / "a.npz", images=images + 1, labels=np.arange(32) % 3)
  code, _, err = call(train.main, *flags, "--config.training.num_steps=3")
  assert code == 2
  assert "the run was trained on a train (32 images, fingerprint " in one_line(err)


def test_splits_that_do_not_fit_are_refused(call, tmp_path):
  np.savez(
    tmp_path / "a.npz", train_images=np.zeros((8, 8, 8), int), test_images=np.zeros((2, 4, 4), int)
  )
  flags = [
    f"--workdir={tmp_path}/run",
    "--config.data.name=arrays",
    "--config.generative.conditional=false",
  ]
  code, _, err = call(train.main, *SMOKE, *flags, f"--config.data.path={tmp_path}/a.npz")
  assert code == 2
  assert "the splits do not fit each other: a train, 8 images of 8x8x1" in one_line(err)


def test_a_workdir_that_cannot_be_written(call, tmp_path):
  (tmp_path / "file").write_text("a file, not a folder")
  code, _, err = call(train.main, *SMOKE, f"--workdir={tmp_path}/file/run")
  assert code == 2
  assert "cannot be written (Not a directory); choose another --workdir" in one_line(err)


def test_two_processes_cannot_train_in_one_folder(copy, call):
  holder = subprocess.Popen(
    [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'a');"
     "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
     str(copy / ".lock")], stdout=subprocess.PIPE,
  )  # fmt: skip
  holder.stdout.readline()
  flags = [*SMOKE, f"--workdir={copy}", "--config.training.num_steps=25"]
  code, _, err = call(train.main, *flags)
  holder.kill()
  holder.wait()
  assert code == 2
  assert "is already training there" in one_line(err)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(
  call, tmp_path, monkeypatch
):
  """From step 7 on every loss is infinite: checkpoints from before that are kept and named."""
  error, batch = Simple.error, TrainStream.batch

  def infinite_on_black(self, model, noised, predicted):
    return error(self, model, noised, predicted) / (noised.x0.max() > -1.0)

  def black_from_step_7(self, step):
    whole = batch(self, step)
    return whole if step < 6 else whole._replace(image=np.zeros_like(whole.image))

  monkeypatch.setattr(Simple, "error", infinite_on_black)
  monkeypatch.setattr(TrainStream, "batch", black_from_step_7)
  flags = [
    *SMOKE, f"--workdir={tmp_path}/run", "--config.training.max_skipped_in_a_row=8",
    "--config.checkpoint.every_steps=2", "--config.checkpoint.keep_last=2",
  ]  # fmt: skip
  code, _, err = call(train.main, *flags)
  assert code == 2
  line = one_line(err)
  assert "loss or gradient was not finite in steps 7 to 14" in line
  assert "training.max_skipped_in_a_row in a row; the last good checkpoint is step 6" in line
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [4, 6]


def test_data_that_fail_in_mid_run_lose_nothing(call, tmp_path, monkeypatch):
  whole = TrainStream.batch

  def broken(self, step):
    if step == 7:
      raise UserError("picture 7 is not readable")
    return whole(self, step)

  monkeypatch.setattr(TrainStream, "batch", broken)
  flags = [*SMOKE, f"--workdir={tmp_path}/run"]
  code, _, err = call(train.main, *flags)
  assert code == 2
  assert "picture 7" in one_line(err)
  assert store.saved_steps(tmp_path / "run" / "checkpoints") == [5, 7]
