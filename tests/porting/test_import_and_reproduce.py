"""The programs import, export and reproduce on a folder in the layout of google/ddpm-cifar10-32."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pipelines
import pytest

from diffusion_jax import export, reproduce
from diffusion_jax.core.config import parse_override
from diffusion_jax.porting.diffusers_export import describe_pipeline, with_ddpm_scheduler
from diffusion_jax.porting.opening import open_source
from diffusion_jax.porting.published import PUBLISHED, Figure, address_of, find_published
from diffusion_jax.porting.published_tables import published_page, published_table
from diffusion_jax.porting.reproduction import check_origin, compare_with_published, read_figure
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.types import ImageSpec, UserError

importer = importlib.import_module("diffusion_jax.import")
DDPM = find_published("ddpm-cifar10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return pipelines.write_in_root(tmp_path_factory.mktemp("published") / "ddpm")


@pytest.mark.costly
def test_a_folder_becomes_a_run_and_the_same_bytes_again(folder, tmp_path, call):
  run, out = tmp_path / "run", tmp_path / "out"
  code, said, err = call(importer.main, folder, f"--out={run}", "--config=ddpm_cifar")
  assert (code, err) == (0, "")
  number = sum(leaf.size for leaf in pipelines.params().values())
  assert said.startswith(f"imported {number:,} parameters (UNet2DModel) into {run}\n")
  origin = json.loads((run / "imported.json").read_text())
  (file,) = origin["files"]
  assert (file, origin["source"]) == ("diffusion_pytorch_model.safetensors", str(folder))
  config = json.loads((run / "config.json").read_text())
  assert config["process"]["num_timesteps"] == 20
  assert config["data"]["dataset"] == "cifar10"
  assert config["sampler"] | {"name": "ancestral", "variance": "fixed_large"} == config["sampler"]
  code, said, err = call(export.main, f"--workdir={run}", "--format=diffusers", f"--out={out}")
  assert (code, err) == (0, "")
  assert (out / "unet" / file).read_bytes() == (folder / file).read_bytes()
  assert "Not known: the weights were imported." in (out / "README.md").read_text()
  code, _, err = call(export.main, f"--workdir={run}", "--format=diffusers", f"--out={out}")
  assert (code, "exists; choose another" in err) == (2, True)
  plain = tmp_path / "weights.safetensors"
  code, said, err = call(export.main, f"--workdir={run}", "--format=safetensors", f"--out={plain}")
  assert (code, err) == (0, "")
  from diffusion_jax.weight_files.weight_file import read_weights

  read = read_weights(plain)
  wanted = pipelines.params()
  assert read.arrays.keys() == wanted.keys()
  assert all(np.array_equal(read.arrays[name], wanted[name]) for name in wanted)
  assert json.loads(read.facts["config"]) == config


@pytest.mark.process
@pytest.mark.costly
def test_reproduce_imports_measures_and_compares(folder, tmp_path, call):
  data = tmp_path / "data.npz"
  images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
  np.savez(data, images=images, test_images=images[:8])
  flags = [
    "ddpm-cifar10", f"--source={folder}", f"--workdir={tmp_path / 'run'}", "--figure=vlb",
    "--num_samples=4", "--features=none", "--inception=none", "--config.data.name=arrays",
    f"--config.data.path={data}", "--config.eval.batch_size=4",
  ]  # fmt: skip
  code, said, err = call(reproduce.main, *flags)
  assert code == 0, err
  lines = [line.split(None, 1) for line in said.splitlines() if line.startswith("  ")]
  rows = [(name, text) for name, text in lines if name in ("published", "measured", "difference")]
  assert [name for name, _ in rows] == ["published", "measured", "difference"]
  assert rows[0][1].startswith("3.75 bits/dim, bound on the 10,000 test images")
  assert " standard errors" in rows[2][1]
  assert "the data are arrays in place of cifar10" in said
  code, said, _ = call(reproduce.main, *flags)  # the second time all is there
  assert code == 0
  assert f"{tmp_path / 'run'} has the imported weights" in said


def test_a_run_of_ours_is_written_with_the_scheduler_that_every_pipeline_takes():
  """diffusers' DDIM is wrong at many steps of a clipped cosine schedule."""
  groups = [parse_override("--config.model.norm_groups=8")]
  experiment, spec = load_experiment("ddpm_digits", groups), ImageSpec(8, 8, 1, 17, 10)
  _, own = describe_pipeline(experiment, spec)
  _, ddpm = describe_pipeline(with_ddpm_scheduler(experiment), spec)
  assert own["_class_name"] == "DDIMScheduler"
  assert ddpm["_class_name"] == "DDPMScheduler"
  assert (ddpm["variance_type"], ddpm["timestep_spacing"]) == ("fixed_large", "leading")
  transformer = load_experiment("dit_digits", [])
  assert with_ddpm_scheduler(transformer) is transformer


@pytest.mark.parametrize(
  ("file", "field", "value"),
  [
    ("config.json", "layers_per_block", "two"),
    ("config.json", "block_out_channels", None),
    ("config.json", "in_channels", []),
    ("scheduler_config.json", "beta_schedule", {}),
  ],
)
def test_a_value_of_another_type_is_one_line(folder, tmp_path, file, field, value):
  copy = shutil.copytree(folder, tmp_path / "copy")
  content = json.loads((copy / file).read_text())
  (copy / file).write_text(json.dumps({**content, field: value}))
  with pytest.raises(UserError) as refusal:
    open_source(copy)
  assert str(copy / file) in str(refusal.value)
  assert "\n" not in str(refusal.value)


METRICS = {
  "extractors": {"inception": {}, "digits": {}},
  "figures": {
    "fd_digits": {"metric": "fid", "extractor": "digits", "value": 9.0},
    "fid_5k": {
      "metric": "fid", "extractor": "inception", "value": 3.47, "values": [3.4, 3.44, 3.57, 3.47],
      "standard_deviation": 0.2, "num_samples": 5000,
    },
  },
  "likelihoods": {
    "vlb": {"bits_per_dim": 3.70, "standard_error": 0.02, "num_images": 10_000, "split": "test"}
  },
  "model": {"config": {"data": {"name": "tfds", "dataset": "cifar10"}}},
}  # fmt: skip


def compared(figure, tmp_path, **changes):
  file = tmp_path / "metrics.json"
  file.write_text(json.dumps({**METRICS, **changes}))
  return compare_with_published(DDPM, figure, file).splitlines()


def test_the_difference_is_in_standard_errors_and_fewer_samples_are_named(tmp_path):
  fid, vlb = DDPM.figures
  assert compared(fid, tmp_path) == [
    "ddpm-cifar10: fid_5k",
    f"  published   3.17, {fid.protocol}; {fid.reference}",
    "  measured    3.47 ± 0.1 (of the mean of 4 seeds)",
    "  difference  +0.3, 3.0 standard errors",
    "  differs     5,000 samples in place of 50,000",
  ]
  assert compared(vlb, tmp_path)[2:] == [
    "  measured    3.7 bits/dim ± 0.02 (over images and draws)",
    "  difference  -0.05, 2.5 standard errors",
  ]


def test_other_weights_of_inception_give_no_fid(tmp_path):
  row = {**METRICS["figures"]["fid_5k"], "extractor": "inception_00aa"}
  spaces = {"inception_00aa": {}}
  lines = compared(DDPM.figures[0], tmp_path, extractors=spaces, figures={"fd_x": row})
  assert lines[0] == "ddpm-cifar10: fd_x"
  assert lines[3] == "  difference  none: it is another figure"
  assert lines[-1].endswith("inception_00aa: not the published Inception weights, so it is no FID")


def test_one_seed_has_no_standard_error_and_what_the_user_set_is_listed(tmp_path):
  row = {**METRICS["figures"]["fid_5k"], "standard_deviation": None}
  file = tmp_path / "metrics.json"
  file.write_text(json.dumps({**METRICS, "figures": {"fid_5k": row}}))
  text = compare_with_published(DDPM, DDPM.figures[0], file, ["--config.sampler.steps=4"])
  assert "+0.3; without a standard error: measure with `eval.num_seeds=3`" in text
  assert text.endswith("\n  differs     --config.sampler.steps=4")
  noted = compare_with_published(DDPM._replace(note="its ODE"), DDPM.figures[0], file)
  assert noted.endswith("\n  note        its ODE")


def test_a_figure_that_could_not_be_measured_says_why(tmp_path):
  with pytest.raises(UserError, match=r"fid was not measured \(fid: no weights\)"):
    compared(DDPM.figures[0], tmp_path, figures={}, missing=["spectrum: none", "fid: no weights"])
  assert read_figure(Figure("elbo", 1.0, None, (), "", ""), METRICS) is None


def test_a_folder_of_other_weights_is_not_measured(tmp_path):
  assert not check_origin(tmp_path / "new", "a")
  (tmp_path / "imported.json").write_text('{"source": "a"}')
  assert check_origin(tmp_path, "a")
  with pytest.raises(UserError, match="was imported from a, not from b; choose another `workdir`"):
    check_origin(tmp_path, "b")
  (tmp_path / "imported.json").write_text("[]")
  with pytest.raises(UserError, match="is no imported run"):
    check_origin(tmp_path, "a")


def test_the_table_has_a_row_for_each_figure_and_names_are_unique():
  names = [entry.name for entry in PUBLISHED]
  assert len(set(names)) == len(names)
  rows = published_table().splitlines()
  assert len(rows) == 1 + sum(len(entry.figures) for entry in PUBLISHED)
  for entry in PUBLISHED:
    assert any(row.startswith(f"{entry.name} ") and entry.address in row for row in rows)
  with pytest.raises(UserError, match="Did you mean 'ddpm-cifar10'"):
    find_published("ddpm-cifar")


def test_the_page_of_the_documentation_is_the_table(root):
  """To renew it: python -c "from diffusion_jax.porting.published_tables import published_page;
  print(published_page(), end='')" > docs/published.md"""
  assert (root / "docs" / "published.md").read_text() == published_page()


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_settings_of_a_published_checkpoint_are_fields_that_exist(entry):
  for figure in entry.figures:
    fields = [parse_override(f"--config.{field}") for field in figure.overrides]
    experiment = load_experiment(entry.config or "ddpm_cifar", fields)
    assert figure.name == "fid" or experiment.eval.likelihoods == (figure.name,)
    assert figure.name != "fid" or experiment.eval.num_samples == figure.num
  if "drive.google" in entry.address:
    with pytest.raises(UserError, match=r"download it from .* then import FILE --like="):
      address_of(entry)
  else:
    assert address_of(entry) == entry.address


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["nothing_here", "--out=x"], "nothing_here: no such file, folder or published checkpoint"),
    (["./nothing_here", "--out=x"], "nothing_here: no such file or folder"),
    ([".", "--out=x"], "no file of weights"),
    (["{folder}", "--out=x", "--sha256=00"], "is no file; its checksum cannot be compared"),
    (["{file}", "--out=x", "--sha256=00"], "has SHA-256"),
    (["{file}", "--out=x", "--group=ema"], "--group=ema: .* has no such group, and no groups"),
    (["{file}", "--out=x"], "an unknown architecture"),
    (["{folder}", "--out=x", "--image_size=0"], "--image_size=0: must be at least 1"),
    (["{folder}", "--out={folder}"], "exists; choose another, or"),
    (["{folder}", "--out=x", "--config.model.channels=16"], "has the shape"),
    (["{folder}", "--out=x", "--config.model.widths=16"], "widths"),
  ],
)
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
  flags, said, folder, tmp_path, monkeypatch, call
):
  monkeypatch.chdir(tmp_path)
  file = folder.parent / "weights.safetensors"  # alone, without the folder's configs
  file.write_bytes((folder / "diffusion_pytorch_model.safetensors").read_bytes())
  code, _, err = call(importer.main, *(f.format(folder=folder, file=file) for f in flags))
  assert code == 2
  assert re.search(said, err), err
  assert err.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.costly
def test_an_imported_run_is_fine_tuned_and_survives_a_kill(folder, tmp_path, call):
  """Fifty steps from the imported weights, killed without warning and continued by --workdir."""
  data, run = tmp_path / "data.npz", tmp_path / "run"
  images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
  np.savez(data, images=images, test_images=images[:8])
  flags = [
    "--config.data.name=arrays", f"--config.data.path={data}", "--config.training.batch_size=8",
    "--config.training.num_steps=50", "--config.checkpoint.every_steps=5",
    "--config.logging.num_samples=4", "--config.logging.sample_every_steps=none",
  ]  # fmt: skip
  assert call(importer.main, folder, f"--out={run}", *flags)[0] == 0
  command = [sys.executable, "-m", "diffusion_jax.train", f"--workdir={run}"]
  log = (tmp_path / "log").open("w")
  started = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "XLA_FLAGS": ""})
  deadline = time.time() + 300
  while not any((run / "checkpoints").glob("[1-9]*")) and started.poll() is None:
    assert time.time() < deadline
    time.sleep(0.05)
  started.send_signal(signal.SIGKILL)
  started.wait()
  ended = subprocess.run(
    command, capture_output=True, text=True, check=False, env={**os.environ, "XLA_FLAGS": ""}
  )
  assert ended.returncode == 0, ended.stderr
  assert "resuming at step" in ended.stdout or "has its 50 steps" in ended.stdout
  assert "finished" in ended.stdout
