"""diffusion-jax runs: a sweep read from its folders, whatever else lies beside them."""

import csv
import fcntl
import json
import re
import subprocess
import sys
import time

import pytest
from bucket import serve_bucket

from diffusion_jax.runs.run_facts import find_runs
from diffusion_jax.runs.run_table import UsageError, differing_fields, table_of_runs


def write_run(folder, seed, step=10, loss=None, **sections):
  """A run of ten steps in the files that it leaves."""
  config = {
    "data": {"name": "digits"}, "generative": {"name": "diffusion"},
    "training": {"num_steps": 10, "seed": seed}, "logging": {"wandb_group": f"g{seed}"}, **sections,
  }  # fmt: skip
  (folder / "checkpoints" / str(step)).mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  rows = [{"step": step, "train/loss": 1.0}] + [{"step": step, "held_out/loss": loss}] * (
    loss is not None
  )
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  if step == 10:
    final = {"step": 10, "loss": loss, "loss_standard_error": 0.01}
    (folder / "held_out.json").write_text(json.dumps(final))
  return folder


def write_evaluation(folder, step, fid):
  (folder / "eval" / str(step)).mkdir(parents=True)
  figure = {"value": fid, "standard_deviation": 0.5, "card": 1}
  bound = {"bits_per_dim": 2.5, "standard_error": 0.1, "card": 2}
  metrics = {"schema": 1, "figures": {"fid": figure}, "likelihoods": {"vlb": bound}}
  (folder / "eval" / str(step) / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def sweep(tmp_path):
  """Three runs, the second of which is evaluated best."""
  for seed, fid in ((0, 30.0), (1, 9.0), (2, 200.0)):
    folder = write_run(tmp_path / f"seed{seed}", seed, loss=1.0 + seed)
    write_evaluation(folder, 5, 500.0)
    write_evaluation(folder, 10, fid)
  return tmp_path


def test_a_sweep_shows_its_differing_fields_and_newest_figures(sweep):
  head, *rows = table_of_runs([str(sweep)]).splitlines()
  assert head.split() == [
    "name", "kind", "step", "state", "held_out_loss", "eval_step", "fid", "vlb/bits_per_dim",
    "training.seed",
  ]  # fmt: skip
  assert re.split(r" {2,}", rows[0]) == [
    "seed0", "diffusion on digits", "10/10", "finished", "1 ± 0.01", "10",
    "30 ± 0.5", "2.5 ± 0.1", "0",
  ]  # fmt: skip
  assert len(rows) == 3


@pytest.mark.parametrize(
  ("field", "order"),
  [
    ("fid", "102"), ("-fid", "201"), ("-training.seed", "210"), ("held_out_loss", "012"),
    ("name", "012"),
  ],
)  # fmt: skip
def test_it_is_sorted_by_any_column_and_runs_without_it_are_last(field, order, sweep):
  (sweep / "a").mkdir()
  listed = json.loads(table_of_runs([str(sweep), f"--sort={field}", "--format=json"]))
  names = [run["name"] for run in listed]
  assert [n for n in names if n != "a"] == [f"seed{i}" for i in order]
  assert names.index("a") == (0 if field == "name" else 3)


def test_csv_and_json_have_every_figure_with_its_error_and_every_field(sweep):
  [first, *_] = json.loads(table_of_runs([str(sweep), "--format=json"]))
  assert first["figures"]["fid"] == {"value": 30.0, "error": 0.5}
  assert (first["differs"], first["eval_step"]) == ({"training.seed": 0}, 10)
  rows = list(csv.DictReader(table_of_runs([str(sweep), "--format=csv"]).splitlines()))
  assert [(r["fid"], r["fid_error"], r["training.seed"]) for r in rows] == [
    ("30.0", "0.5", "0"), ("9.0", "0.5", "1"), ("200.0", "0.5", "2"),
  ]  # fmt: skip


def test_a_run_is_running_while_its_lock_is_held_and_stopped_after(tmp_path):
  folder = write_run(tmp_path / "run", 0, step=4)
  with (folder / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert find_runs(tmp_path)[0].state == "running"
  [run] = find_runs(tmp_path)
  assert (run.state, run.step, run.num_steps) == ("stopped", 4, 10)


def damage(folder, name, content):
  folder.mkdir(exist_ok=True)
  if content is not None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
  ("name", "content", "state"),
  [
    ("config.json", b"{", "damaged"),
    ("config.json", b"\xff\xfe", "damaged"),
    ("config.json", b"[]", "foreign"),
    ("config.json", b'{"model": "bert"}', "foreign"),
    ("config.json", b'{"generative": {"name": []}, "training": {"num_steps": "x"}}', "foreign"),
    ("config.json", b'{"generative": {"name": "vae"}, "training": 5}', "stopped"),
    ("checkpoints/3/state", b"", "damaged"),
    ("photo.jpg", b"", "foreign"),
    ("eval/5/metrics.json", None, "foreign"),
  ],
)
def test_a_damaged_or_foreign_folder_is_one_line(name, content, state, sweep):
  damage(sweep / "odd\nname", name, content)
  lines = table_of_runs([str(sweep)]).splitlines()
  [line] = [line for line in lines if line.startswith("odd\\nname")]
  assert state in line
  assert len(lines) == 5
  for form in ("csv", "json"):
    assert table_of_runs([str(sweep), f"--format={form}"])


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("metrics.jsonl", b'3\n{"step": "x"}\n{"step": 3, "held_out/loss": "high"}\n{"st'),
    ("held_out.json", b"[3]"),
    ("held_out.json", b"3"),
    ("held_out.json", b'{"step": 10, "loss": null}'),
    (
      "eval/10/metrics.json",
      b'{"figures": {"fid": 3, "kid": {"value": "low"}}, "likelihoods": []}',
    ),
    ("eval/10/metrics.json", b"\xff"),
  ],
)
def test_a_damaged_file_costs_its_own_values_only(name, content, sweep):
  damage(sweep / "seed0", name, content)
  assert "seed0" in table_of_runs([str(sweep)])
  assert find_runs(sweep)[0].state != "damaged"
  assert [run.state for run in find_runs(sweep)][1:] == ["finished", "finished"]


def test_of_a_part_that_differs_only_the_name_is_in_the_table(tmp_path):
  write_run(tmp_path / "a", 0, loss=1.0, model={"name": "unet", "channels": 8, "dropout": 0.1})
  write_run(tmp_path / "b", 0, loss=1.0, model={"name": "mlp", "hidden": 8, "dropout": 0.2})
  head = table_of_runs([str(tmp_path)]).splitlines()[0]
  assert "model.name" in head
  assert "model.hidden" not in head
  assert differing_fields(find_runs(tmp_path)) == [
    "model.name", "model.channels", "model.dropout", "model.hidden",
  ]  # fmt: skip


def test_a_field_that_an_older_version_lacks_does_not_differ(tmp_path):
  model = {"name": "unet", "channels": 8}
  write_run(tmp_path / "new", 0, model=model | {"dropout": 0.1}, process={"name": "edm"})
  write_run(tmp_path / "old", 1, model=model)
  assert differing_fields(find_runs(tmp_path)) == ["training.seed"]


def test_runs_are_found_in_folders_of_folders_and_alone(sweep):
  assert [r.name for r in find_runs(sweep.parent) if r.name.startswith(sweep.name)] == [
    f"{sweep.name}/seed{i}" for i in range(3)
  ]
  assert [r.name for r in find_runs(sweep / "seed1")] == ["seed1"]


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    (["--sort=fidd"], "--sort=fidd: no such column. Did you mean 'fid'?"),
    (["--sort=trainig.seed"], "Did you mean 'training.seed'?"),
    (["--format=xml"], "invalid choice: 'xml'"),
    (["--fromat=csv"], "unrecognized arguments: --fromat=csv; see diffusion-jax runs --help"),
  ],
)
def test_a_mistake_is_one_line(flags, expected, sweep):
  with pytest.raises(UsageError) as raised:
    table_of_runs([str(sweep), *flags])
  assert expected in str(raised.value)
  assert "\n" not in str(raised.value)


def test_the_command_needs_no_jax_and_has_exit_codes(sweep, root):
  code = (
    "import sys; from diffusion_jax.__main__ import main\n"
    "for words in ([sys.argv[1]], ['nowhere'], ['--help']):\n"
    "  sys.argv = ['diffusion-jax', 'runs', *words]; print('code', main())\n"
    "print({name.partition('.')[0] for name in sys.modules} & {'jax', 'numpy', 'flax', 'absl'})"
  )
  ran = subprocess.run(
    [sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True, cwd=sweep,
    env={"PYTHONPATH": str(root)},
  )  # fmt: skip
  lines = ran.stdout.splitlines()
  assert [line for line in lines if line.startswith("code")] == ["code 0", "code 2", "code 0"]
  assert lines[-1] == "set()"
  assert ran.stderr.startswith("error: nowhere: no folder with runs (No such file or directory)")
  assert ran.stderr.count("\n") == 1


def test_an_address_is_refused():
  with pytest.raises(UsageError, match="hdfs://b/runs: addresses are not supported; give a"):
    table_of_runs(["hdfs://b/runs"])
  with pytest.raises(UsageError, match="gs://b: give the path of a file or folder in a bucket"):
    table_of_runs(["gs://b"])


def test_runs_in_a_bucket_are_listed_without_their_checkpoints(
  sweep, monkeypatch, tmp_path_factory
):
  place = tmp_path_factory.mktemp("machine")
  for bucket in serve_bucket(monkeypatch, place):
    for path in (p for p in sweep.rglob("*") if p.is_file()):
      bucket.put(f"gs://b/runs/{path.relative_to(sweep)}", path.read_bytes())
    for name in ("state/d/1", "meta/metadata", "commit_success.txt"):
      bucket.put(f"gs://b/runs/seed1/checkpoints/10/{name}", b"large")
    read = record_reads(monkeypatch, bucket)
    listed = table_of_runs(["gs://b/runs/"])
    assert listed == table_of_runs([str(sweep)])
    assert not [name for name in read if "checkpoints" in name]
    read.clear()
    assert table_of_runs(["gs://b/runs"]) == listed
    assert not [name for name in read if not name.endswith(".lease.json")]  # nothing has changed
    bucket.remove("gs://b/runs/seed2/config.json")
    assert "foreign" in table_of_runs(["gs://b/runs"])
    with pytest.raises(UsageError, match="the bucket has no such folder"):
      table_of_runs(["gs://b/none"])


def record_reads(monkeypatch, bucket):
  read, opened = [], bucket.open
  record = lambda path, mode: [read.append(path), opened(path, mode)][1]  # noqa: E731
  monkeypatch.setattr(bucket, "open", record)
  return read


def test_a_run_whose_job_gives_signs_of_life_is_running(sweep, monkeypatch, tmp_path_factory):
  for bucket in serve_bucket(monkeypatch, tmp_path_factory.mktemp("machine")):
    for name in ("config.json", "metrics.jsonl"):
      bucket.put(f"gs://b/runs/a/{name}", (sweep / "seed0" / name).read_bytes())
    bucket.put("gs://b/runs/a/.lease.json", b"{}")
    for url in ("gs://b/runs", "gs://b/runs/a"):
      assert " stopped" in table_of_runs([url])
    bucket.objects["gs://b/runs/a/.lease.json"] = (b"{}", int(time.time()))
    for url in ("gs://b/runs", "gs://b/runs/a"):
      assert " running" in table_of_runs([url])
