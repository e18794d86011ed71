"""The planning program: for the devices at hand, for a TPU slice, and for wrong inputs."""

import importlib.util
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import TINY as SMOKE

from diffusion_jax import plan, planning
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.planning import DoesNotFit, Measured
from diffusion_jax.planning.compiled import Memory
from diffusion_jax.planning.flops import StepFlops
from diffusion_jax.planning.work import Work
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.training.step import hyperparameters, make_init
from diffusion_jax.training.train_state import count_parameters
from diffusion_jax.types import ImageSpec

pytestmark = pytest.mark.costly


TINY = [
  "--config=configs/smoke.py", "--config.model.multipliers=1", "--config.model.channels=32",
  "--config.model.attention_resolutions=()", "--config.generative.conditional=false",
  "--config.guidance.weight=1", "--config.model.dropout=0", "--config.data.image_size=16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


def state_bytes():
  """Of the model of SMOKE: its parameters, all that a step keeps, and its hyperparameters."""
  args, overrides = plan.parser().parse(SMOKE)
  experiment = load_experiment(args.config, overrides)
  generative = experiment.create(ImageSpec(8, 8, 1, 256, 10))
  state = jax.eval_shape(
    make_init(generative, experiment.optimizer, experiment.training), np.uint32(0)
  )
  numbers = hyperparameters(generative, experiment.optimizer, experiment.ema, experiment.training)
  return (
    count_parameters(state.params),
    sum(leaf.size * leaf.dtype.itemsize for leaf in named_leaves(state).values()),
    4 * len(jax.tree.leaves(numbers)),
  )


@pytest.fixture(scope="module")
def local(tmp_path_factory, request):
  """The plan of configs/smoke.py for the 8 devices of the tests: (figures, output)."""
  file = tmp_path_factory.mktemp("plan") / "plan.json"
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(request.config.rootpath)
    plan.main([*SMOKE, f"--json={file}"])
  return json.loads(file.read_text())


def test_the_figures_of_the_devices_at_hand(local):
  num_parameters, num_bytes, num_hyper = state_bytes()
  assert (local["topology"], local["device_kind"], local["num_devices"]) == ("local", "cpu", 8)
  assert (local["batch_size"], local["batch_size_per_device"]) == (16, 2)
  assert local["num_parameters"] == num_parameters
  assert sum(row["num_bytes"] for row in local["state"]) == num_bytes
  memory = local["memory"]
  batch = 2 * (64 + 4 + 4 + 4)  # image, label, mask and index of two examples
  assert memory["arguments"] == num_bytes + num_hyper + batch
  assert memory["peak"] == (
    memory["arguments"] + memory["outputs"] - memory["aliased"]
    + memory["temporaries"] + memory["code"]
  )  # fmt: skip
  assert (local["chip"], local["roofline"], local["fit"]) == (None, None, None)
  preview = local["preview"]
  assert (preview["num_images"], preview["state"]) == (24, num_bytes)
  given = 4 + 24 // 8 * (4 + 4)  # the seed; index and label of each image
  assert preview["arguments"] == 4 * num_parameters + given
  assert preview["peak"] > num_bytes + 4 * num_parameters


def test_each_gradient_is_summed_over_the_devices(local):
  """Data parallelism sends every parameter's gradient once: 2 x 7/8 of its 4 bytes."""
  (row,) = [r for r in local["collectives"] if r["kind"] == "all-reduce"]
  assert row["num_bytes"] == pytest.approx(4 * local["num_parameters"], rel=0.02)
  assert row["num_bytes"] >= 4 * local["num_parameters"]
  assert row["wire_bytes"] == pytest.approx(row["num_bytes"] * 2 * 7 / 8, abs=1)


def test_the_table_says_it_to_a_person(call, tmp_path):
  flags = [*SMOKE, "--config.mesh.fsdp=8", "--config.model.hidden=64"]
  code, out, err = call(plan.main, *flags, f"--json={tmp_path}/plan.json")
  assert (code, err) == (0, "")
  figures = json.loads((tmp_path / "plan.json").read_text())
  assert "all-gather" in {row["kind"] for row in figures["collectives"]}
  kept = sum(row["bytes_per_device"] for row in figures["state"])
  assert kept < sum(row["num_bytes"] for row in figures["state"]) / 2
  for text in (
    "compiling for 8 x cpu, 2 images per device ...", "configs/smoke.py on local, jax ",
    "devices        8 x cpu (unknown chip)", "mesh           data 1, fsdp 8, tensor 1",
    "batch          16 images, 2 per device", f"parameters     {figures['num_parameters']:,}",
    "fsdp 8", "FLOPs", "all-gather", "temporaries", "roofline       none: unknown chip (cpu)",
    "largest batch    unknown: the memory of cpu is not known",
    "memory of each device while a preview of 24 images is drawn",
  ):  # fmt: skip
    assert text in out, text


def test_two_slices_of_the_devices_at_hand(call, tmp_path):
  """Every gradient is summed over 4 devices of a slice; each sends its quarter to the other."""
  code, out, err = call(plan.main, *SMOKE, "--num_slices=2", f"--json={tmp_path}/plan.json")
  assert (code, err) == (0, "")
  figures = json.loads((tmp_path / "plan.json").read_text())
  assert (figures["num_slices"], figures["mesh"]["dcn_data"], figures["mesh"]["data"]) == (2, 2, 4)
  (within,), (between,) = figures["collectives"], figures["collectives_between_slices"]
  assert within["num_bytes"] == between["num_bytes"] >= 4 * figures["num_parameters"]
  assert within["wire_bytes"] == pytest.approx(within["num_bytes"] * 2 * 3 / 4, abs=1)
  assert between["wire_bytes"] == pytest.approx(within["num_bytes"] / 4, abs=1)
  for text in ("on 2 slices of local", "mesh           dcn_data 2, data 4, fsdp 1, tensor 1",
               "  within a slice        times", "  between slices        times"):  # fmt: skip
    assert text in out, text


def test_gradient_accumulation_costs_the_same_flops(tmp_path):
  """The same images in two microbatches of 128 a device, which a loop takes one after the other."""

  def step(*flags):
    plan.main([*SMOKE, "--config.training.batch_size=2048", *flags, f"--json={tmp_path}/plan.json"])
    return json.loads((tmp_path / "plan.json").read_text())["step"]

  whole, parts = step(), step("--config.training.accumulation_steps=2")
  assert parts["unknown_loops"] == 0
  assert parts["model_flops"] == parts["executed_flops"] == whole["model_flops"]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--batch_size_per_device=0"], "--batch_size_per_device=0 must be at least 1"),
    (["--classes=-1"], "--classes=-1 must be at least 0; 0 is for unlabelled images"),
    (["--image=64"], "--image=64: write HEIGHTxWIDTHxCHANNELS, e.g. --image=64x64x3"),
    (["--json=/no/such/folder/a.json"], "--json=/no/such/folder/a.json: give a file in a folder"),
    (
      ["--config.training.batch_size=12"],
      "training.batch_size=12 is not divisible by 8 device(s); use --config.training.batch_size=8 ",
    ),
    (
      ["--config.training.accumulation_steps=4", "--batch_size_per_device=6"],
      "--batch_size_per_device=6 is not divisible by training.accumulation_steps=4; use "
      "--batch_size_per_device=4",
    ),
    (
      ["--config.data.name=tfds", "--config.data.dataset=imagenet2012"],
      "the images of config.data (tfds) are not known without reading them; give its shape: "
      "--image=64x64x3 --classes=1000",
    ),
    (["--config.mesh.fsdp=3"], "does not fit 8 device(s)"),
    (["--num_slices=3"], "mesh.dcn_data=3 does not fit 8 device(s) of 1 host(s); use "),
    (["--num_slices=0"], "--num_slices=0 must be at least 1"),
    (["--fit=maybe"], "invalid choice: 'maybe'"),
  ],
)
def test_wrong_inputs(call, flags, message):
  code, out, err = call(plan.main, *SMOKE, *flags)
  assert (code, out) == (2, "")
  assert message in err
  assert err.count("\n") == 1


def forward_flops():
  """Of one image through the U-Net of TINY: its products, by hand.

  3x3 convolutions on 16x16 pixels: conv_in 1->32, a down block and two middle blocks of two
  32->32 each, two up blocks of 64->32 and 32->32, conv_out 32->1. Taps outside the image are not
  multiplied. 1x1 ones: two shortcuts 64->32. Attention in the middle: four projections 32->32, and
  scores and values over 256 x 256 pixels.
  """
  taps = (3 * 16 - 2) ** 2
  channels = 1 * 32 + 6 * 32 * 32 + 2 * (64 * 32 + 32 * 32) + 32 * 1
  attention = 4 * 256 * 32 * 32 + 2 * 256 * 256 * 32
  return 2 * (taps * channels + 2 * 256 * 64 * 32 + attention)


def test_a_batch_that_does_not_fit(monkeypatch, call):
  """A chip's compiler that refuses the batch, and what it is asked for."""
  asked = []

  def refuse(program, sizes):
    asked.extend(sizes)
    return [DoesNotFit(size, 30 * 2**30, 16 * 2**30) for size in sizes]

  monkeypatch.setattr(planning, "measure_program", refuse)
  monkeypatch.setattr(planning, "memory_limit", lambda device, chip: 16 * 2**30)
  code, _, err = call(plan.main, *SMOKE, "--batch_size_per_device=640")
  assert (code, asked) == (2, [640, 1280])
  assert err == (
    "error: --batch_size_per_device=640 does not fit: it needs 30.00 GiB of 16.00 GiB; use a "
    "smaller one, --config.model.remat=block, --config.mesh.fsdp=N or "
    "--config.training.accumulation_steps=N\n"
  )


def affine_step(size, limit):
  peak = 1000 + 7 * size
  if peak > limit:
    return DoesNotFit(size, peak, limit)
  memory, flops = Memory(peak, 0, 0, 0, 0), StepFlops(1.0, 1.0)
  return Measured(size, 8 * size, memory, flops, Work(1.0, 1.0, 0), [], 0.0)


@pytest.mark.parametrize(
  ("how", "limit", "compiled", "fit"),
  [
    ("line", 3000, [64, 128], (280, "by a line through 64 and 128")),
    ("line", 1500, [64, 128, 32], (64, "by a line through 32 and 64")),
    ("verify", 3000, [64, 128, 280], (280, "compiled; guessed by a line through 64 and 128")),
    ("off", 3000, [64], None),
  ],
)
def test_which_batches_are_compiled(monkeypatch, call, tmp_path, how, limit, compiled, fit):
  asked = []

  def measure(program, sizes):
    asked.extend(sizes)
    return [affine_step(size, limit) for size in sizes]

  monkeypatch.setattr(planning, "measure_program", measure)
  monkeypatch.setattr(planning, "memory_limit", lambda device, chip: limit)
  shown = planning.Preview(8, 0, Memory(0, 0, 0, 0, 0))
  monkeypatch.setattr(planning, "measure_preview", lambda program: shown)
  flags = [*SMOKE, "--batch_size_per_device=64", f"--fit={how}", f"--json={tmp_path}/a.json"]
  code, out, err = call(plan.main, *flags)
  assert (code, err, asked) == (0, "", compiled)
  found = json.loads((tmp_path / "a.json").read_text())["fit"]
  assert (found and tuple(found.values())) == fit
  if fit:
    assert f"largest batch    {fit[0]} images per device, {fit[1]}" in out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra 'plan'")
def test_a_tpu_slice(tmp_path):
  """Really compiled for 4 x TPU v5e that are not there, by the command as one types it."""
  file = tmp_path / "plan.json"
  command = [sys.executable, "-m", "diffusion_jax.plan", *TINY, "--topology=v5e:2x2",
             "--batch_size_per_device=16", f"--json={file}"]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=900)
  assert (done.returncode, done.stderr) == (0, "")
  figures = json.loads(file.read_text())
  assert (figures["num_devices"], figures["chip"]["name"]) == (4, "TPU v5e")
  # Forward, and in the backward pass twice as much, less the first layer's gradient of the image.
  assert figures["step"]["model_flops"] == pytest.approx(16 * 3 * forward_flops(), rel=0.1)
  memory = figures["memory"]
  assert memory["arguments"] < memory["peak"] < memory["available"] == int(15.75 * 2**30)
  (row,) = figures["collectives"]
  assert row["kind"] == "all-reduce"
  assert row["wire_bytes"] == pytest.approx(row["num_bytes"] * 2 * 3 / 4, abs=1)
  bound = figures["roofline"]
  slowest = max(bound["seconds"].values())
  assert bound["seconds"]["compute"] == pytest.approx(figures["step"]["executed_flops"] / 197e12)
  assert bound["images_per_sec"] == pytest.approx(64 / slowest)
  assert bound["images_per_sec_per_chip"] == pytest.approx(bound["images_per_sec"] / 4)
  assert figures["fit"]["how"] == "by a line through 16 and 32"
  assert figures["fit"]["batch_size_per_device"] > 1000
  assert re.search(r"largest batch +[\d,]+ images per device", done.stdout)
