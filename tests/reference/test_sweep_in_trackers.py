"""A sweep of three, trained and evaluated: what each tracker and `runs` show of it.

TensorBoard's server is asked over its HTTP API; wandb's own records are read from its files.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from tiny import TINY

pytest.importorskip("wandb")
pytest.importorskip("tensorboard")
pytestmark = [pytest.mark.reference, pytest.mark.process]

RATES = ("0.001", "0.002", "0.004")
TRAIN = [
  *TINY, "--config.training.num_steps=6", "--config.checkpoint.every_steps=3",
  "--config.logging.every_steps=2", "--config.logging.num_samples=4",
  "--config.logging.wandb_project=p", "--config.logging.wandb_group=rates",
  "--config.logging.wandb_tags=tiny,sweep", "--config.logging.wandb_job_type=train",
]  # fmt: skip
EVALUATE = ["--step=all", "--config.eval.num_samples=64", "--inception=none", "--features=none"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """A folder with runs of three learning rates, of which both checkpoints are evaluated."""
  from pathlib import Path

  folder, root = tmp_path_factory.mktemp("sweep"), Path(__file__).parents[2]
  variables = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
  for rate in RATES:
    run = f"--workdir={folder}/rate{rate}"
    for program, flags in (
      ("train", [*TRAIN, f"--config.optimizer.learning_rate={rate}", run]),
      ("evaluate", [run, *EVALUATE]),
    ):
      command = [sys.executable, "-m", f"diffusion_jax.{program}", *flags]
      ran = subprocess.run(command, cwd=root, env=variables, text=True, capture_output=True)
      assert ran.returncode == 0, ran.stdout + ran.stderr
      said = ran.stdout + ran.stderr
      assert "could not be written" not in said
      assert "has not got the evaluation" not in said
  return folder


@pytest.fixture(scope="module")
def ask(sweep):
  """A function that asks TensorBoard's server: path, and for POST the body -> the answer."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [
    sys.executable, "-m", "tensorboard.main", f"--logdir={sweep}", f"--port={port}",
    "--host=127.0.0.1", "--load_fast=false", "--reload_interval=1",
  ]  # fmt: skip
  server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

  def answer(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
      f"http://127.0.0.1:{port}/data/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answered:
      return json.loads(answered.read())

  def is_read():
    try:
      tags = answer("plugin/scalars/tags")
      return len(tags) == 3 and all("eval/vlb/bits_per_dim" in shown for shown in tags.values())
    except OSError:
      return False

  deadline = time.monotonic() + 120
  while not is_read():
    assert time.monotonic() < deadline, "TensorBoard does not show the evaluations"
    assert server.poll() is None
    time.sleep(0.5)
  yield answer
  server.terminate()
  server.wait(30)


def bounds(sweep, rate, key="bits_per_dim"):
  """The bound of each evaluated step, from metrics.json."""
  files = [sweep / f"rate{rate}" / "eval" / step / "metrics.json" for step in ("3", "6")]
  return [json.loads(file.read_text())["likelihoods"]["vlb"][key] for file in files]


@pytest.mark.parametrize("rate", RATES)
def test_tensorboard_has_a_curve_of_each_figure_and_its_error_over_the_checkpoints(
  rate, sweep, ask
):
  run = f"rate{rate}/tensorboard"
  for tag, key in (
    ("eval/vlb/bits_per_dim", "bits_per_dim"),
    ("eval/vlb/bits_per_dim_error", "standard_error"),
  ):
    shown = ask(f"plugin/scalars/scalars?run={run}&tag={tag}")
    assert [step for _, step, _ in shown] == [3, 6]
    assert [value for *_, value in shown] == pytest.approx(bounds(sweep, rate, key), rel=1e-6)
  assert "train/loss" in ask("plugin/scalars/tags")[run]
  assert {"data", "samples", "eval/samples"} <= set(ask("plugin/images/tags")[run])


def test_tensorboard_compares_the_hyperparameters_with_the_figures(sweep, ask):
  shown = ask("plugin/hparams/experiment", {"experimentName": ""})
  differs = [info["name"] for info in shown["hparamInfos"] if info["differs"]]
  assert differs == ["optimizer.learning_rate"]
  metrics = [info["name"] for info in shown["metricInfos"]]
  asked = [name for name in metrics if name["tag"] == "eval/vlb/bits_per_dim"]
  assert len(asked) == 1
  body = {
    "experimentName": "", "startIndex": 0, "sliceSize": 10,
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "colParams": [{"hparam": "optimizer.learning_rate"}, {"metric": asked[0]}],
  }  # fmt: skip
  groups = ask("plugin/hparams/session_groups", body)["sessionGroups"]
  found = {
    group["hparams"]["optimizer.learning_rate"]: value["value"]
    for group in groups
    for value in group["metricValues"]
    if value["name"]["tag"] == "eval/vlb/bits_per_dim"
  }
  expected = {float(rate): bounds(sweep, rate)[-1] for rate in RATES}
  assert found == pytest.approx(expected, rel=1e-6)


def records(folder):
  """All records of the files of the offline runs in a folder, in order."""
  from wandb.proto.wandb_internal_pb2 import Record

  for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    for content in entries(file.read_bytes()):
      yield Record.FromString(content)


def entries(log):
  """The entries of a file in LevelDB's log format, after wandb's 7 bytes of its own.

  A block has 32,768 bytes, a part of an entry a checksum (4 bytes), its length (2) and its kind: 1
  for a whole entry, 2, 3 and 4 for its first, a middle and its last part.
  """
  assert log[:4] == b":W&B"
  place, entry = 7, b""
  while place + 7 <= len(log):
    left = 32768 - place % 32768
    if left < 7:
      place += left
      continue
    length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
    entry += log[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):
      yield entry
      entry = b""


def items(record, field):
  """The items of a record as nested key, joined by dots -> value."""
  return {
    ".".join(item.nested_key) or item.key: json.loads(item.value_json)
    for item in getattr(record, field)
  }


@pytest.mark.parametrize("rate", RATES)
def test_weights_and_biases_has_the_config_the_names_and_the_figures_in_one_run(rate, sweep):
  folder = sweep / f"rate{rate}"
  read = list(records(folder))
  runs = [record.run for record in read if record.HasField("run")]
  assert {run.run_id for run in runs} == {(folder / "wandb_id").read_text()}
  assert {(run.run_group, run.job_type, *sorted(run.tags)) for run in runs} == {
    ("rates", "train", "sweep", "tiny")
  }
  config = items(runs[0].config, "update")
  assert config["optimizer"]["learning_rate"] == float(rate)
  assert config["training"]["num_steps"] == 6
  rows = [items(record.history, "item") for record in read if record.HasField("history")]
  measured = [(r["eval/step"], r["eval/vlb/bits_per_dim"]) for r in rows if "eval/step" in r]
  assert measured == list(zip((3, 6), bounds(sweep, rate), strict=True))
  assert any("train/loss" in row for row in rows)
  for picture in ("data", "samples", "eval/samples"):
    assert any(name.startswith(picture) for row in rows for name in row), picture
  axes = {r.metric.glob_name or r.metric.name: r.metric for r in read if r.HasField("metric")}
  assert axes["eval/*"].step_metric == "eval/step"


def test_runs_has_the_rates_and_figures_without_any_service(sweep):
  command = [sys.executable, "-m", "diffusion_jax", "runs", str(sweep), "--format=json"]
  command += ["--sort=-optimizer.learning_rate"]
  ran = subprocess.run(command, text=True, capture_output=True, check=True)
  rows = json.loads(ran.stdout)
  assert [row["differs"] for row in rows] == [
    {"optimizer.learning_rate": float(rate)} for rate in reversed(RATES)
  ]
  assert [row["state"] for row in rows] == ["finished"] * 3
  assert [row["figures"]["vlb/bits_per_dim"]["value"] for row in rows] == [
    bounds(sweep, rate)[-1] for rate in reversed(RATES)
  ]
