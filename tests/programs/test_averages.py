"""Snapshots of a run's averages, and averages of any length that are made when it is done."""

import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import begin
from tiny import TINY

from diffusion_jax import evaluate, sample, train
from diffusion_jax.checkpoints import store
from diffusion_jax.checkpoints.store import Checkpointing, Checkpoints
from diffusion_jax.core.config import parse_override
from diffusion_jax.generative import ModelBase
from diffusion_jax.inference import restore
from diffusion_jax.inference.restore import Average, parse_average
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.runs.stored import check_continues, stored_experiment
from diffusion_jax.train_loop.ema_snapshots import Snapshots
from diffusion_jax.train_loop.setup import stored_target
from diffusion_jax.training import step
from diffusion_jax.training.ema import EMA
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.power_function_ema import (
  combine,
  exponent_of,
  exponent_of_half_life,
  rounding_of,
  width_of,
)
from diffusion_jax.training.train_state import create_state, from_averages, with_averages
from diffusion_jax.types import Batch, LossOutput, UserError

pytestmark = pytest.mark.costly

# ---- A toy run whose every step is known --------------------------------------------------------

NUM, EVERY, SEEN = 256, 4, 4


class Quadratic(ModelBase):
  """loss_i = |w - image_i|^2 / 2 of a batch of noisy points: training walks there, noisily."""

  def init(self, key):
    return {"w": jnp.asarray([3.0, 1.0, 0.5]), "still": jnp.full(2, 7.0)}, {}

  def loss(self, params, loss_state, key, batch, **_):
    error = params["w"] - batch.image[:, 0, 0]
    return LossOutput(0.5 * jnp.sum(error**2, -1), {}, loss_state)


def points(number):
  rng = np.random.default_rng(number)
  image = np.array([1.0, 2.0, -1.5]) + 0.3 * rng.normal(size=(SEEN, 1, 1, 3))
  if number == 100:
    image[:] = np.nan  # an update that is skipped
  zeros = np.zeros(SEEN, np.int32)
  return Batch(image.astype(np.float32), zeros, np.ones(SEEN, np.float32), zeros.astype(np.uint32))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
  """A folder with the snapshots of a toy run, its mesh, and the parameters after every update."""
  workdir = tmp_path_factory.mktemp("toy")
  ema = EMA(0.9, more_decays=(0.99,), profiles=(0.05, 0.1), snapshot_every_steps=EVERY)
  training = step.Training(batch_size=SEEN, num_steps=NUM)
  mesh, optimizer = create_mesh(MeshShape(), jax.devices()[:1]), Adam(learning_rate=0.02)
  state, train_step = begin(Quadratic(), optimizer, training, ema=ema, mesh=mesh)
  meta = {"config": {"ema": {"decay": 0.9}, "training": {"batch_size": SEEN}}}
  snapshots = Snapshots(workdir / "ema_snapshots", ema, NUM, state, meta)
  saver, walked = Checkpoints(workdir / "checkpoints", Checkpointing(keep_last=1)), []
  for number in range(1, NUM + 1):
    state, _ = train_step(state, points(number))
    if number != 100:
      walked.append(np.asarray(state.params["w"], np.float64))
    snapshots.save(number, state)
  saver.save(NUM, state, meta)
  saver.close()
  snapshots.close()
  return workdir, mesh, np.stack(walked)


def brute_force(walked, width):
  """The average over every step, each weighed with the integral of the profile over it."""
  ends = np.arange(len(walked) + 1) / len(walked)
  return np.diff(ends ** (exponent_of(width) + 1)) @ walked


def worst(found, exact):
  return np.abs(np.asarray(found, np.float64) / exact - 1).max()


@pytest.mark.parametrize("width", [0.055, 0.06, 0.07, 0.08, 0.095, 0.13])
def test_an_average_made_afterwards_is_that_over_every_step(toy, width):
  """Real updates, real snapshots, read back from disk: within 1e-5, one skipped update included."""
  workdir, mesh, walked = toy
  assert len(walked) == NUM - 1
  found = restore.restore_weights(workdir, None, mesh, Quadratic(), Average("profile", width))
  assert worst(found.params["w"], brute_force(walked, width)) < 1e-5
  assert worst(found.params["still"], 7.0) < 1e-6
  assert found.step == NUM
  assert found.made["num_snapshots"] == NUM // EVERY - 1
  assert found.made["profile_error"] < 1e-3


def test_the_brute_force_tells_lengths_apart(toy):
  """What the comparison above compares with moves by more than fifty of its tolerances."""
  averages = [brute_force(toy[2], w) for w in (0.055, 0.06, 0.07, 0.08, 0.095, 0.13)]
  assert min(worst(a, b) for a, b in itertools.pairwise(averages)) > 5e-4


def test_also_at_an_earlier_step_of_which_only_the_snapshot_is_left(toy):
  workdir, mesh, walked = toy
  found = restore.restore_weights(workdir, 200, mesh, Quadratic(), Average("profile", 0.07))
  assert worst(found.params["w"], brute_force(walked[:199], 0.07)) < 2e-5
  assert found.step == 200


def test_a_half_life_in_images_is_the_width_that_has_it(toy):
  workdir, mesh, walked = toy
  images = 100.0
  found = restore.restore_weights(
    workdir, None, mesh, Quadratic(), Average("half_life_images", images)
  )
  gamma = exponent_of_half_life(images, float(SEEN * len(walked)))
  assert found.made["sigma_rel"] == pytest.approx(width_of(gamma))
  assert worst(found.params["w"], brute_force(walked, width_of(gamma))) < 1e-5


def test_a_tracked_average_comes_back_as_it_was(toy, capsys):
  workdir, mesh, walked = toy
  found = restore.restore_weights(workdir, None, mesh, Quadratic(), Average("profile", 0.05))
  assert worst(found.params["w"], brute_force(walked, 0.05)) < 2e-6
  assert found.made is None
  decay = restore.restore_weights(workdir, None, mesh, Quadratic(), Average("decay", 0.99))
  exact = np.array([3.0, 1.0, 0.5]) * 0.99 ** len(walked)
  exact += 0.01 * 0.99 ** np.arange(len(walked))[::-1] @ walked
  assert worst(decay.params["w"], exact) < 2e-6
  out = capsys.readouterr().out
  assert f"restored the EMA weights decay:0.99 of step {NUM} on 1 device(s)" in out
  first = restore.restore_weights(workdir, None, mesh, Quadratic(), Average("decay", 0.9))
  main = restore.restore_weights(workdir, None, mesh, Quadratic(), Average())
  assert (first.params["w"] == main.params["w"]).all()
  assert first.facts == main.facts != decay.facts


@pytest.mark.parametrize("average", [Average(), Average("profile", 0.07)])
def test_a_checkpoint_that_the_run_deletes_once_it_is_read_is_not_missed(
  toy, tmp_path, monkeypatch, average
):
  """Sampling beside live training: what is needed of a checkpoint is read at once."""
  copy = shutil.copytree(toy[0], tmp_path / "copy")
  read = store.restore_checkpoint

  def deleted_after(directory, *args):
    restored = read(directory, *args)
    if directory.name == "checkpoints":
      shutil.rmtree(directory / str(restored.step))
    return restored

  monkeypatch.setattr(store, "restore_checkpoint", deleted_after)
  found = restore.restore_weights(copy, None, toy[1], Quadratic(), average)
  assert not (copy / "checkpoints" / str(NUM)).exists()
  monkeypatch.undo()
  expected = restore.restore_weights(toy[0], None, toy[1], Quadratic(), average)
  assert found.facts == expected.facts
  assert worst(found.params["w"], np.asarray(expected.params["w"], np.float64)) < 1e-12


def test_a_damaged_snapshot_is_left_out(toy, tmp_path, capsys):
  workdir, mesh, walked = toy
  copy = shutil.copytree(workdir, tmp_path / "toy")
  for file in (copy / "ema_snapshots" / "240" / "state").glob("**/d/*"):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  (copy / "ema_snapshots" / "200" / "meta" / "metadata").unlink()
  found = restore.restore_weights(copy, None, mesh, Quadratic(), Average("profile", 0.07))
  assert found.made["num_snapshots"] == NUM // EVERY - 3
  assert worst(found.params["w"], brute_force(walked, 0.07)) < 1e-4
  out = capsys.readouterr().out
  assert "snapshot 240 is left out" in out
  assert "snapshot 200 is left out" in out


def test_too_few_snapshots_are_refused(toy, tmp_path):
  workdir, mesh, _ = toy
  copy = shutil.copytree(workdir, tmp_path / "toy")
  shutil.rmtree(copy / "ema_snapshots")
  message = r"`ema=profile:0.2`: 0 snapshots .* off by [0-9]+ %.* use `ema=0.05`, `ema=0.1`, which"
  with pytest.raises(UserError, match=message):
    restore.restore_weights(copy, None, mesh, Quadratic(), Average("profile", 0.2))
  with pytest.raises(UserError, match=r"seen 1,020 images; .* e.g. `ema=half_life_images:102`"):
    restore.restore_weights(copy, None, mesh, Quadratic(), Average("half_life_images", 600.0))


def make_state(ema, number):
  """The state of step `number` of a toy run."""
  init = step.make_init(Quadratic(), Adam(), step.Training(), ema.names())
  return jax.jit(init)(np.uint32(0))._replace(step=jnp.int32(number))


def test_a_run_without_further_averages_has_nothing_to_show_for_it(toy, tmp_path):
  state = make_state(EMA(0.9), 4)
  saver = Checkpoints(tmp_path / "checkpoints", Checkpointing())
  saver.save(4, state, {"config": {"ema": {"decay": 0.9}}})
  saver.close()
  snapshots = Snapshots(tmp_path / "ema_snapshots", EMA(0.9), 4, state, {})
  snapshots.save(4, state)
  snapshots.close()
  assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
  mesh = toy[1]
  assert restore.restore_weights(tmp_path, None, mesh, Quadratic(), Average()).step == 4
  with pytest.raises(UserError, match=r"^`ema=profile:0.15`: this run tracked no power-function"):
    restore.restore_weights(tmp_path, None, mesh, Quadratic(), Average("profile", 0.15))
  with pytest.raises(UserError, match=r"^`ema=decay:0.5`: .* tracked: `ema=decay:0.9`$"):
    restore.restore_weights(tmp_path, None, mesh, Quadratic(), Average("decay", 0.5))


def test_the_decay_of_an_average_that_has_a_half_life_names_nothing(toy, tmp_path):
  """ema.decay stands in such a config too, at its default, and is not what was averaged by."""
  saver = Checkpoints(tmp_path / "checkpoints", Checkpointing())
  meta = {"config": {"ema": {"decay": 0.9, "half_life_steps": 5.0}}}
  saver.save(4, make_state(EMA(half_life_steps=5.0), 4), meta)
  saver.close()
  assert restore.restore_weights(tmp_path, None, toy[1], Quadratic(), Average()).step == 4
  with pytest.raises(
    UserError, match=r"^`ema=decay:0.9`: this run did not track that average; tracked: "
  ):
    restore.restore_weights(tmp_path, None, toy[1], Quadratic(), Average("decay", 0.9))


@pytest.mark.parametrize("names", [(), ("decay:0.5", "profile:0.1")])
def test_a_checkpoint_that_holds_averages_themselves_still_restores(tmp_path, names):
  """The layouts of before, without further averages too: to go on from, and to sample."""
  params, averages = {"w": jnp.full(4, 3.0)}, {n: {"w": jnp.full(4, 2.0)} for n in ("ema", *names)}
  new = create_state(params, {}, Adam().create(4).init(params), names)
  stored = {**with_averages(new), "step": jnp.int32(4), "ema": averages["ema"]}
  stored["averages"] = {name: averages[name] for name in names}
  if not names:
    del stored["averages"]  # as before there were any
  config = {"ema": {"decay": 0.9}, "training": {"batch_size": 1}}
  saver = Checkpoints(tmp_path / "checkpoints", Checkpointing())
  saver.save(4, stored, {"config": config})
  saver.close()
  layout = sharding.state_shardings(create_mesh(MeshShape()), new)
  restored = store.restore_checkpoint(tmp_path / "checkpoints", stored_target(new, layout))
  state = from_averages(restored.state)
  assert jax.tree.structure(state) == jax.tree.structure(new)
  for name in state.offsets:
    assert (state.offsets[name]["w"] == -1).all()
  assert (state.ema["w"] == 2).all()

  class Stored(ModelBase):
    def init(self, key):
      return params, {}

  generative = Stored()
  mesh = create_mesh(MeshShape(), jax.devices()[:1])
  for name in (None, "decay:0.5", "0.1") if names else (None,):
    found = restore.restore_weights(tmp_path, None, mesh, generative, parse_average(name))
    assert (found.params["w"] == 2).all()
    assert not any(leaf.startswith("params/") for leaf in found.facts)


def test_averages_that_stood_still_say_how_wrong_they_are():
  """A stored average of 10^6 updates at 0.1: off by up to 2^-25 / w; as a difference it is not."""
  gamma = exponent_of(0.1)
  assert rounding_of(10**6, gamma, True) == 2.0**-24
  assert rounding_of(10**6, gamma, False) == pytest.approx(2.0**-25 * 10**6 / (gamma + 1))
  assert rounding_of(1, gamma, False) == 2.0**-24
  times, gammas = np.repeat(np.arange(1, 33.0), 2), np.tile([exponent_of(0.05), gamma], 32)
  wanted = exponent_of(0.02)
  fine, old = (combine(times, gammas, 32.0, wanted, r) for r in (2.0**-24, 2e-3))
  assert fine.rounding == pytest.approx(np.linalg.norm(fine.weights) * 2.0**-24)
  assert old.rounding > 1e3 * fine.rounding


def test_the_rhythm_of_snapshots_may_change(tmp_path):
  """None is taken for the steps in between; those that will be taken again are deleted."""
  folder = tmp_path / "ema_snapshots"

  def go(every, first, last, num_steps):
    ema = EMA(profiles=(0.05,), snapshot_every_steps=every)
    snapshots = Snapshots(folder, ema, num_steps, make_state(ema, first), {})
    for number in range(first + 1, last + 1):
      snapshots.save(number, make_state(ema, number), before_checkpoint=True)
    snapshots.close()
    return store.saved_steps(folder)

  assert go(3, 0, 10, 12) == [3, 6, 9]
  assert go(2, 7, 12, 12) == [3, 6, 8, 10, 12]
  assert go(5, 12, 14, 14) == [3, 6, 8, 10, 12, 14]
  assert go(None, 8, 14, 14) == [3, 6, 8]


def test_the_flag():
  assert parse_average(None) == Average("ema")
  assert parse_average("0.15") == Average("profile", 0.15)
  assert parse_average("profile:0.15") == Average("profile", 0.15)
  assert parse_average("decay:0.9990").name == "decay:0.999"
  assert parse_average("half_life_images:5e5").value == 500_000


@pytest.mark.parametrize("text", ["", "x", "0.3", "0", "nan", "decay:1", "length:0.1", "ema:0.1"])
def test_what_names_no_average_is_refused(text):
  with pytest.raises(UserError, match=f"^`ema={text}`: must be a relative width .* e.g. `ema=0.1`"):
    parse_average(text)


# ---- The programs -------------------------------------------------------------------------------

SMOKE = [
  *TINY, "--config.logging.tensorboard=false",
  "--config.data.num_images=100", "--config.process.num_timesteps=20",
  "--config.process.beta_end=0.02",  # little noise, from which a few updates show
  "--config.eval.training_likelihoods=",
  "--config.sampler.steps=1", "--config.guidance.weight=1",  # all of it compiles sooner
]  # fmt: skip
AVERAGES = [
  "--config.ema.more_decays=0.5", "--config.ema.profiles=0.05,0.1",
  "--config.ema.snapshot_every_steps=3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, root):
  monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run of configs/smoke.py with checkpoints at 10, 15, 20 and snapshots at 3, 6, ... 18, 20."""
  workdir = tmp_path_factory.mktemp("runs") / "smoke"
  train.main([*SMOKE, *AVERAGES, f"--workdir={workdir}"])
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "smoke")


def leaves(workdir):
  """Checksums of every snapshot, by step."""
  folder = workdir / "ema_snapshots"
  steps = store.saved_steps(folder)
  return {s: store.read_meta(folder, s)["leaves"] for s in steps}


def test_snapshots_are_kept_for_good(finished):
  found = leaves(finished)
  assert list(found) == [3, 6, 9, 12, 15, 18, 20]
  names = {tuple(name.split("/")[:2]) for name in found[3]}
  assert names == {
    ("step",), ("num_skipped",), ("averages", "profile:0.05"), ("averages", "profile:0.1")
  }  # fmt: skip
  assert store.saved_steps(finished / "checkpoints") == [10, 15, 20]


def test_a_resumed_run_neither_loses_nor_repeats_a_snapshot(copy, call):
  """Killed after the checkpoint of step 15 was whole, before its snapshot was; and the run had
  gone on to step 18, which it takes again.
  """
  before = leaves(copy)
  (copy / "held_out.json").unlink()
  shutil.rmtree(copy / "checkpoints" / "20")
  for lost in ("15", "20"):
    shutil.rmtree(copy / "ema_snapshots" / lost)
  code, out, err = call(train.main, *SMOKE, *AVERAGES, f"--workdir={copy}")
  assert code == 0, err
  assert "resuming at step 15 of 20" in out
  assert leaves(copy) == before


def test_other_averages_cannot_begin_in_mid_run_but_another_rhythm_can(finished):
  def differences(*flags):
    overrides = [parse_override(flag) for flag in flags]
    return check_continues(finished, stored_experiment(finished, overrides))

  with pytest.raises(UserError, match=r"cannot continue \(ema.profiles: .*0.1.* -> .*0.2"):
    differences("--config.ema.profiles=0.05,0.2")
  with pytest.raises(UserError, match=r"cannot continue \(ema.more_decays"):
    differences("--config.ema.more_decays=0.5,0.7")
  harmless = differences("--config.ema.snapshot_every_steps=2", "--config.ema.decay=0.8")
  assert "ema.snapshot_every_steps: 3 -> 2" in harmless


def test_sampling_from_any_average(finished, call, tmp_path):
  images = {}
  for ema in (None, "decay:0.9", "decay:0.5", "0.05", "0.15", "half_life_images:40"):
    flags = [f"--workdir={finished}", f"--out={tmp_path}/a.npz", "--num=8"]
    code, out, err = call(sample.main, *flags, *([] if ema is None else [f"--ema={ema}"]))
    assert code == 0, err
    images[ema] = np.load(tmp_path / "a.npz")["images"]
    if ema == "0.15":
      assert re.search(r"EMA weights profile:0.15 of step 20 together from 7 x 2 averages", out)
      assert ", ema profile:0.15, seed 0: 8 images" in out
  assert (images[None] == images["decay:0.9"]).all()
  distinct = {array.tobytes() for name, array in images.items() if name != "decay:0.9"}
  assert len(distinct) == 5


def test_evaluating_another_average_says_so_and_lies_apart(copy, call):
  quick = ["--inception=none", "--features=none", "--config.eval.spectrum_images=0"]
  for flags in ([], ["--ema=0.15"]):
    code, _, err = call(evaluate.main, f"--workdir={copy}", *quick, *flags)
    assert code == 0, err
  usual, other = (
    json.loads((copy / "eval" / name / "metrics.json").read_text())
    for name in ("20", "20-ema-profile-0.15")
  )
  assert usual["model"]["weights"] == "ema"
  assert other["model"]["weights"] == "ema profile:0.15"
  made = other["model"]["put_together"]
  assert (made["sigma_rel"], made["num_snapshots"]) == (pytest.approx(0.15), 6)
  assert 0 < made["profile_error"] < 0.1
  assert "--ema=0.15" in other["repeat"]
  assert usual["model"]["weights_digest"] != other["model"]["weights_digest"]
  assert usual["likelihoods"]["vlb"]["bits_per_dim"] != other["likelihoods"]["vlb"]["bits_per_dim"]
  code, out, _ = call(evaluate.main, f"--workdir={copy}", *quick, "--ema=profile:0.15")
  assert "evaluated already" in out
