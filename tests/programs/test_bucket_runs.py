"""A run in a bucket: trained, continued, sampled and evaluated by machines that share only it."""

import json

import pytest
from bucket import other_machine, serve_bucket
from tiny import TINY

from diffusion_jax import evaluate, sample, train

pytestmark = pytest.mark.costly
RUN = "gs://b/runs/a"


@pytest.fixture
def bucket(monkeypatch, tmp_path, root):
  monkeypatch.chdir(root)
  yield from serve_bucket(monkeypatch, tmp_path)


def test_a_run_lives_in_a_bucket(bucket, call, monkeypatch, tmp_path):
  flags = [
    *TINY, f"--workdir={RUN}", "--config.data.num_images=100", "--config.checkpoint.every_steps=2",
    "--config.logging.every_steps=1", "--config.logging.sample_every_steps=none",
  ]  # fmt: skip
  code, out, err = call(train.main, *flags, "--config.training.num_steps=2")
  assert code == 0, err
  assert RUN in out
  assert str(tmp_path) not in out + err
  names = bucket.names(RUN)
  assert {"config.json", "metrics.jsonl", "checkpoints/2/meta/metadata"} <= {*names}
  assert not [name for name in names if "/." in f"/{name}"]  # locks, parts and leases are gone

  other_machine(monkeypatch, tmp_path)
  code, out, err = call(train.main, *flags, "--config.training.num_steps=4")
  assert code == 0, err
  rows = [json.loads(r) for r in bucket.objects[f"{RUN}/metrics.jsonl"][0].splitlines()]
  assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
  assert "checkpoints/4/meta/metadata" in bucket.names(RUN)

  other_machine(monkeypatch, tmp_path, "machine3")
  code, out, err = call(sample.main, f"--workdir={RUN}", "--num=2", "--out=gs://b/out/a.png")
  assert code == 0, err
  assert bucket.objects["gs://b/out/a.png"][0].startswith(b"\x89PNG")
  flags = [
    "--inception=none", "--features=none", "--config.eval.num_samples=24",
    "--config.eval.spectrum_images=8", "--config.spectrum.num_points=2",
  ]  # fmt: skip
  code, out, err = call(evaluate.main, f"--workdir={RUN}", *flags)
  assert code == 0, err
  metrics = json.loads(bucket.objects[f"{RUN}/eval/4/metrics.json"][0])
  assert metrics["model"]["workdir"] == RUN
  assert "eval/4/report.html" in bucket.names(RUN)
