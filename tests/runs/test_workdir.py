"""A run's folder: moved aside, locked, finished."""

from pathlib import Path

import pytest

from diffusion_jax.core import files
from diffusion_jax.core.config import parse_override
from diffusion_jax.runs.stored import load_experiment, write_config
from diffusion_jax.runs.workdir import (
  choose_workdir,
  drop_later_final,
  is_finished,
  lock,
  prepare_workdir,
)
from diffusion_jax.types import UserError

CONFIG = '{"generative": {"name": "diffusion"}}'


def test_old_runs_are_moved_aside_under_free_names(tmp_path):
  for number in (1, 2):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json").write_text(CONFIG)
    (tmp_path / "run" / "file").write_text(str(number))
    prepare_workdir(tmp_path / "run", fresh=True)
    assert (tmp_path / f"run.old{number}" / "file").read_text() == str(number)
  assert not any((tmp_path / "run").iterdir())


def test_a_linked_folder_stays_a_link_and_its_run_is_moved_aside_where_it_lies(tmp_path):
  """The link leads to the storage that the user wants runs on; what it leads to is kept."""
  storage, link = tmp_path / "storage" / "run", tmp_path / "run"
  link.symlink_to(storage)  # it leads nowhere yet
  prepare_workdir(link, fresh=False)
  assert storage.is_dir()
  (storage / "config.json").write_text(CONFIG)
  (tmp_path / "storage" / "run.old1").symlink_to("nowhere")  # no free name
  prepare_workdir(link, fresh=True)
  assert link.is_symlink()
  assert not any(storage.iterdir())
  assert (tmp_path / "storage" / "run.old2" / "config.json").read_text() == CONFIG
  assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "storage"]


def test_a_run_around_the_current_folder_is_not_moved_aside(tmp_path, monkeypatch):
  (tmp_path / "run" / "samples").mkdir(parents=True)
  (tmp_path / "run" / "config.json").write_text(CONFIG)
  monkeypatch.chdir(tmp_path / "run" / "samples")
  with pytest.raises(UserError, match="the current folder"):
    prepare_workdir(Path(".."), fresh=True)
  assert (tmp_path / "run" / "config.json").exists()


def test_what_is_no_run_is_not_moved_aside(tmp_path, monkeypatch):
  (tmp_path / "thesis").touch()
  with pytest.raises(UserError, match=r"holds no run but other files \(thesis\); choose another"):
    prepare_workdir(tmp_path, fresh=True)
  (tmp_path / "config.json").write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="the current folder"):
    prepare_workdir(Path(), fresh=True)
  assert (tmp_path / "thesis").exists()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
  "other",
  [
    "thesis.pdf",
    "notes.txt",
    "config.json",
    "checkpoints/100/model.bin",
    "checkpoints/a.ckpt",
    "a/b",
  ],
)
def test_a_folder_of_something_else_is_neither_trained_into_nor_moved(tmp_path, fresh, other):
  """Another project's model has a config.json and checkpoints too."""
  file = tmp_path / "mine" / other
  file.parent.mkdir(parents=True)
  file.write_text('{"architectures": []}')
  name = other.partition("/")[0]
  with pytest.raises(UserError, match=f"no run but other files .{name}.; .*workdir=.*mine/run`"):
    prepare_workdir(tmp_path / "mine", fresh)
  assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]


@pytest.mark.parametrize("fresh", [False, True])
def test_what_launchers_write_first_is_no_obstacle(tmp_path, fresh):
  for name in ("slurm-1.out", "train.err", "train.log", "job.sbatch", ".nfs01", "my_config.py"):
    (tmp_path / name).touch()
  (tmp_path / "logs").mkdir()
  prepare_workdir(tmp_path, fresh)
  assert len([*tmp_path.iterdir()]) == 7


@pytest.mark.parametrize("mark", [".lock", "checkpoints/5/meta/metadata", "checkpoints/5/state/a"])
def test_a_run_with_files_of_the_user_goes_on(tmp_path, mark):
  """Also one that has lost its config.json, or was stopped before it wrote one."""
  (tmp_path / "run" / mark).parent.mkdir(parents=True)
  (tmp_path / "run" / mark).touch()
  (tmp_path / "run" / "notes.txt").touch()
  prepare_workdir(tmp_path / "run", fresh=False)
  prepare_workdir(tmp_path / "run", fresh=True)
  assert (tmp_path / "run.old1" / "notes.txt").exists()


def test_a_run_that_is_being_trained_is_not_moved_aside(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(CONFIG)
  with lock(tmp_path / "run"), pytest.raises(UserError, match="is already training there"):
    prepare_workdir(tmp_path / "run", fresh=True)
  assert (tmp_path / "run" / "config.json").exists()


def test_an_empty_workdir_is_refused():
  with pytest.raises(UserError, match="`workdir=` is empty"):
    files.run_folder("")


@pytest.mark.parametrize(
  "held_out",
  [None, "{", "{}", "[]", '{"step": null}', '{"step": 19}', '{"step": 21}', '{"step": 20}'],
)
def test_a_run_is_finished_once_its_last_figures_are_written(tmp_path, held_out):
  if held_out is not None:
    (tmp_path / "held_out.json").write_text(held_out)
  assert is_finished(tmp_path, 20, 20) == (held_out == '{"step": 20}')
  assert not is_finished(tmp_path, 19, 20)


@pytest.mark.parametrize("content", ["{", "[]", '{"step": null}', '{"step": 20}', '{"step": 21}'])
def test_the_mark_of_a_later_step_does_not_outlive_a_return_to_an_earlier_one(tmp_path, content):
  """Its checkpoint could not be saved: the step is taken and shown again."""
  file = tmp_path / "held_out.json"
  file.write_text(content)
  drop_later_final(tmp_path, 20)
  assert file.exists() == (content != '{"step": 21}')


def experiment(*overrides):
  flags = [parse_override(f"--config.{text}") for text in overrides]
  return load_experiment("ddpm_cifar", flags)


@pytest.mark.parametrize(
  ("overrides", "folder"),
  [
    ((), "runs/ddpm_cifar"),
    (("training.seed=3", "data.flip=false"), "runs/ddpm_cifar"),
    (("data.dataset=cifar100",), "runs/ddpm_cifar_cifar100"),
    (("data.dataset=imagenette/160px",), "runs/ddpm_cifar_imagenette_160px"),
    (("data.name=folder", "data.path=/a/my cats/"), "runs/ddpm_cifar_my_cats"),
    (("data.name=folder",), "runs/ddpm_cifar_folder"),
    (("data.name=digits",), "runs/ddpm_cifar_digits"),
  ],
)
def test_a_run_on_other_data_than_its_configs_is_named_after_them(
  overrides, folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for _ in range(2):  # the same command finds its run again
    assert choose_workdir("ddpm_cifar", experiment(*overrides)) == Path(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_config(Path(folder), experiment(*overrides).to_dict())


def test_a_run_of_the_older_name_continues_there(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  old = experiment("data.name=folder", "data.path=/a/cats")
  (tmp_path / "runs/ddpm_cifar").mkdir(parents=True)
  write_config(tmp_path / "runs/ddpm_cifar", old.to_dict())
  assert choose_workdir("ddpm_cifar", old) == Path("runs/ddpm_cifar")
  other = experiment("data.name=folder", "data.path=/a/dogs")
  assert choose_workdir("ddpm_cifar", other) == Path("runs/ddpm_cifar_dogs")
  larger = experiment("data.name=folder", "data.path=/a/cats", "model.channels=64")
  assert choose_workdir("ddpm_cifar", larger) == Path("runs/ddpm_cifar_cats")
