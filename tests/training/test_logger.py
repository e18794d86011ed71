"""What a run leaves to look at: rows, scalars and grids."""

import errno
import fcntl
import json
import math
import os
import pty
import struct
import sys
import termios
import time
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard_events import events
from tensorboardX import record_writer
from tensorboardX.proto import plugin_hparams_pb2 as plugin_data_pb2
from tensorboardX.proto.event_pb2 import SessionLog

from diffusion_jax.core import progress
from diffusion_jax.core.config import parse_override
from diffusion_jax.core.files import write_png
from diffusion_jax.core.picture_grid import grid_columns, image_grid
from diffusion_jax.core.wording import describe_data, duration
from diffusion_jax.runs.stored import load_experiment
from diffusion_jax.train_loop.data_grid import show_data_grid
from diffusion_jax.train_loop.setup import prepare_job
from diffusion_jax.training import logger as logger_module
from diffusion_jax.training.logger import Logger, Logging, Rows
from diffusion_jax.types import ImageSpec, UserError


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_json_with_null_for_what_is_no_number(tmp_path):
  logger = Logger(tmp_path, Logging(), 0, 10)
  logger.scalars(3, {"train/loss": 0.5, "train/x": math.nan})
  logger.close()
  (row,) = rows(tmp_path)
  assert (row["step"], row["train/loss"], row["train/x"]) == (3, 0.5, None)
  assert row["time"] > 1.7e9


def test_a_resumed_run_drops_the_rows_that_it_writes_again(tmp_path):
  logger = Logger(tmp_path, Logging(tensorboard=False), 0, 10)
  for step in (1, 2, 3, 4):
    logger.scalars(step, {"loss": float(step)})
  logger.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "lo')  # killed in the middle of a row
  logger = Logger(tmp_path, Logging(tensorboard=False), 2, 10)
  logger.scalars(3, {"loss": 30.0})
  logger.close()
  assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30.0)]


def test_tensorboard_has_the_scalars_and_grids(tmp_path):
  logger = Logger(tmp_path, Logging(), 0, 10)
  logger.scalars(3, {"train/loss": 0.5})
  logger.image(3, "samples", np.zeros((40, 50, 1), np.uint8))
  logger.close()
  values = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
  scalar = next(v for step, v in values if v.tag == "train/loss" and step == 3)
  assert scalar.simple_value == 0.5
  image = next(v.image for _, v in values if v.tag == "samples")
  assert (image.height, image.width) == (40, 50)


def test_tensorboard_has_the_config_as_hyperparameters(tmp_path):
  config = {
    "training": {"seed": 3, "ema": None}, "model": {"name": "unet", "multipliers": (1, 2)},
    "logging": {"num_samples": 4}, "data": {"flip": True},
  }  # fmt: skip
  Logger(tmp_path, Logging(), 0, 10, resolved=config).close()
  [session] = [
    v for e in events(tmp_path) for v in e.summary.value
    if v.tag == "_hparams_/session_start_info"
  ]  # fmt: skip
  content = plugin_data_pb2.HParamsPluginData.FromString(session.metadata.plugin_data.content)
  sent = content.session_start_info.hparams
  assert sent["training.seed"].number_value == 3
  assert sent["training.ema"].string_value == "none"
  assert sent["model.multipliers"].string_value == "1,2"
  assert sent["data.flip"].bool_value is True
  assert not [name for name in sent if name.startswith("logging")]


def test_the_training_images_are_sent_when_a_run_begins(tmp_path):
  write_png(tmp_path / "samples" / "data.png", np.zeros((6, 4, 3), np.uint8))
  for first in (0, 4):
    logger = Logger(tmp_path, Logging(), first, 10)
    show_data_grid(tmp_path, logger, first)
    logger.close()
  shown = [(e.step, v.tag) for e in events(tmp_path) for v in e.summary.value]
  assert shown == [(0, "data")]


def full(*args, **options):
  raise OSError(errno.ENOSPC, "No space left on device")


def test_no_sink_ends_a_run_and_each_says_so_once(tmp_path, capsys, monkeypatch):
  """The disk is full for a while: rows and events that come later are written again."""
  logger = Logger(tmp_path, Logging(), 0, 10)
  grid = np.zeros((4, 4, 1), np.uint8)
  with monkeypatch.context() as patch:
    patch.setattr(record_writer.RecordWriter, "write", full)
    patch.setattr(Rows, "scalars", full)
    patch.setattr(logger_module, "write_png", full)
    for step in (1, 2):
      logger.scalars(step, {"loss": 1.0})
      assert logger.image(step, "samples", grid) is None
  said = capsys.readouterr().out
  for name in ("metrics.jsonl", "TensorBoard", "a picture"):
    fault = f"{name} could not be written ([Errno 28] No space left on device)"
    assert said.count(f"{fault}; training continues without it") == 1
  logger.scalars(3, {"loss": 3.0})
  assert logger.image(3, "samples", grid).is_file()
  assert [e.step for e in events(tmp_path) if e.summary.value] == [3, 3]  # before it is closed
  logger.close()
  assert [r["step"] for r in rows(tmp_path)] == [3]


def test_events_are_on_disk_at_each_interval_in_files_that_sort_by_time(tmp_path):
  """A kill leaves nothing out; a resumed run's file says from which step on it counts."""
  for start in (0, 5):
    logger = Logger(tmp_path, Logging(), start, 10)
    logger.scalars(start + 1, {"loss": 1.0})
    found = list(events(tmp_path))
    assert [e.step for e in found if e.summary.value][-1] == start + 1
    assert [e.step for e in found if e.session_log.status == SessionLog.START][-1] == start + 1
    assert found[0].file_version == "brain.Event:2"


def test_weights_and_biases_gets_what_its_newest_release_takes(tmp_path, monkeypatch):
  """Its `finish` no longer has `quiet`: called with what the recorder below has."""
  calls = []

  class Run:
    def log(self, values, step):
      calls.append((step, dict(values)))

    def finish(self, exit_code=None):
      calls.append("finished")

  fake = types.SimpleNamespace(init=lambda **_: Run(), Image=lambda grid: grid.shape)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  logger = Logger(tmp_path, Logging(tensorboard=False, wandb_project="p"), 0, 10)
  logger.scalars(1, {"loss": 1.0})
  logger.image(2, "samples", np.zeros((4, 4, 1), np.uint8))
  logger.close()
  assert calls == [(1, {"loss": 1.0}), (2, {"samples": (4, 4, 1)}), "finished"]


def test_only_one_process_writes(tmp_path):
  logger = Logger(tmp_path, Logging(), 0, 10, active=False)
  logger.scalars(1, {"loss": 1.0})
  logger.image(1, "samples", np.zeros((4, 4, 1), np.uint8))
  logger.print("text")
  logger.close()
  assert not list(tmp_path.iterdir())


def test_a_progress_line_says_what_matters(tmp_path, capsys):
  logger = Logger(tmp_path, Logging(tensorboard=False), 0, 2000)
  figures = {"loss": 0.25, "images_per_sec": 1234.0, "data_wait_share": 0.013, "num_skipped": 2.0}
  logger.progress(100, figures, 3725.0)
  logger.close()
  assert capsys.readouterr().out == (
    "step     100/2,000  loss 0.2500  1,234 images/s  data wait 1.3%  skipped 2  ETA 1h02m\n"
  )


@pytest.mark.parametrize(("hfu", "has_it"), [(0.4, False), (0.5, True)])
def test_hfu_is_shown_where_something_is_computed_again(tmp_path, capsys, hfu, has_it):
  logger = Logger(tmp_path, Logging(tensorboard=False), 0, 100)
  shares = {"data_wait_share": 0.0, "images_per_sec": 9.0, "mfu": 0.4, "hfu": hfu}
  logger.progress(7, {"loss": 1.0, **shares}, 10.0)
  logger.close()
  line = capsys.readouterr().out
  assert "MFU 40.0%" in line
  assert ("HFU 50.0%" in line) == has_it


def test_slow_progress_has_a_decimal(tmp_path, capsys):
  logger = Logger(tmp_path, Logging(tensorboard=False), 0, 2000)
  logger.progress(1, {"loss": 1.0, "images_per_sec": 1.84, "data_wait_share": 0.0}, 9.0)
  logger.close()
  assert "  1.8 images/s  " in capsys.readouterr().out


def terminal(columns):
  """A terminal that is so wide: the end that a program writes to, and the end that shows it."""
  shown, written = pty.openpty()
  fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
  return open(written, "w"), shown


@pytest.mark.parametrize(("columns", "is_bar"), [(120, True), (60, True), (19, False), (0, False)])
def test_a_terminal_shows_a_bar_or_lines_where_it_is_too_narrow(
  columns, is_bar, tmp_path, capsys, monkeypatch
):
  stream, shown = terminal(columns)
  monkeypatch.setattr("sys.stderr", stream)
  monkeypatch.setattr("sys.stdout", stream if is_bar else sys.stdout)
  monkeypatch.setattr(progress, "BAR_AFTER_SEC", 0.0)
  monkeypatch.setattr(progress, "REDRAW_SEC", 0.05)
  monkeypatch.setenv("TERM", "xterm")
  logger = Logger(tmp_path, Logging(tensorboard=False), 4, 10)
  with logger.training():
    logger.advance((5, 0.5))
    logger.progress(5, {"loss": 0.25, "images_per_sec": 8.0, "data_wait_share": 0.0}, 9.0)
    time.sleep(0.3)
  logger.close()
  stream.write("<end>")
  stream.flush()
  bar = ""
  while not bar.endswith("<end>"):  # a terminal may hand out what was written in parts
    bar += os.read(shown, 1 << 16).decode(errors="ignore")
  lines = capsys.readouterr().out
  stream.close()
  os.close(shown)
  assert ("5/10" in bar, "loss 0.2500" in lines) == (is_bar, not is_bar)
  assert ("loss 0.5000" in bar) == is_bar  # of the newest finished step, before any line


def test_grids_are_tiled_row_by_row_on_white():
  images = np.stack([np.full((40, 40, 3), 10 * i, np.uint8) for i in range(3)])
  grid = image_grid(images, columns=2)
  assert grid.shape == (2 * 42 + 2, 2 * 42 + 2, 3)
  assert [grid[20, 20, 0], grid[20, 62, 0], grid[62, 20, 0], grid[62, 62, 0]] == [0, 10, 20, 255]


def test_small_images_are_enlarged_by_whole_pixels():
  image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
  grid = image_grid(image, columns=1)
  assert grid.shape == (36, 36, 1)
  np.testing.assert_array_equal(grid[2:34:4, 2:34:4], image[0])


@pytest.mark.parametrize(("num", "classes", "columns"), [(80, 10, 10), (64, 0, 8), (20, 100, 5)])
def test_a_column_for_each_of_a_few_classes(num, classes, columns):
  assert grid_columns(num, classes) == columns


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_hold_the_pixels_exactly(tmp_path, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
  write_png(tmp_path / "deep" / "a.png", pixels)
  read = np.asarray(Image.open(tmp_path / "deep" / "a.png"))
  np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)
  assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"wandb_project": "me/mine"}, "wandb_project=me/mine must be a name without /; the account"),
    ({"wandb_tags": ("a", "")}, "wandb_tags: the tag '' must have between 1 and 64 characters"),
  ],
)
def test_names_that_wandb_would_refuse_are_refused_at_once(fields, message):
  with pytest.raises(ValueError, match=message):
    Logging(**fields)


def test_a_run_without_wandb_is_refused_before_its_data_are_read(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  missing = parse_override("--config.logging.wandb_project=p")
  nowhere = parse_override("--config.data.path=nowhere")
  folder = parse_override("--config.data.name=folder")
  experiment = load_experiment("smoke", [missing, folder, nowhere])
  with pytest.raises(UserError, match=r"wandb_project=p` needs wandb: pip install"):
    prepare_job(experiment, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "wandb", None)
  with pytest.raises(UserError, match=r"wandb_project=p` needs wandb: pip install"):
    Logger(tmp_path, Logging(tensorboard=False, wandb_project="p"), 0, 1)


def test_weights_and_biases_that_cannot_start_is_one_line(tmp_path, monkeypatch):
  def init(**options):
    raise RuntimeError("api_key not configured (no-tty).\nmore")

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  with pytest.raises(
    UserError, match=r"cannot start \(api_key not.*\); type wandb login"
  ) as raised:
    Logger(tmp_path, Logging(tensorboard=False, wandb_project="p"), 0, 1)
  assert "\n" not in str(raised.value)


def test_descriptions():
  assert describe_data("digits train", 1500, ImageSpec(8, 8, 1, 17, 10)) == (
    "digits train, 1,500 images of 8x8x1, 17 levels, 10 classes"
  )
  assert [duration(s) for s in (0.4, 59.6, 3599.0, 7322.0)] == ["0s", "1m00s", "59m59s", "2h02m"]


@pytest.mark.parametrize("name", ["every_steps", "sample_every_steps", "num_samples"])
def test_impossible_fields_are_refused(name):
  with pytest.raises(ValueError, match=name):
    Logging(**{name: 0})
