"""Checkpoints: whole or not at all, checked bit by bit, restored on any number of devices."""

import contextlib
import errno
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_draws import normal

from diffusion_jax.checkpoints import step_folders, store
from diffusion_jax.checkpoints.checksums import checksums
from diffusion_jax.checkpoints.store import CheckpointError, Checkpointing, Checkpoints
from diffusion_jax.core import storage
from diffusion_jax.core.stacking import stack_layers
from diffusion_jax.core.trees import named_leaves
from diffusion_jax.parallel import sharding
from diffusion_jax.parallel.sharding import MeshShape, create_mesh
from diffusion_jax.training.optimizers import Adam
from diffusion_jax.training.train_state import create_state
from diffusion_jax.types import UserError


@functools.cache
def make_state(seed=0):
  params = {"kernel": jnp.asarray(normal(seed, 64, 256)), "bias": jnp.arange(7.0)}
  return create_state(params, {"history": jnp.arange(3)}, Adam().create(10).init(params))


def on(mesh, tree):
  """A tree laid out on a mesh, and the target that restores it so."""
  layout = sharding.state_shardings(mesh, tree)
  return jax.device_put(tree, layout), sharding.as_target(tree, layout)


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  saver = Checkpoints(folder, Checkpointing())
  for step in (10, 20, 30):
    saver.save(step, make_state(step), {"config": {"step": step}})
  saver.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """Checkpoints 10, 20 and 30; the state of step n was made from seed n."""
  return shutil.copytree(saved, tmp_path / "checkpoints")


def target(state=None):
  return on(create_mesh(MeshShape()), make_state() if state is None else state)[1]


def largest_file(folder: Path) -> Path:
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder):
  file = largest_file(folder / "state")
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


def truncate(folder):
  file = largest_file(folder / "state")
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder):
  for file in folder.rglob("*"):
    if file.is_file():
      file.unlink()


def change_meta(folder):
  file = folder / "meta" / "metadata"
  file.write_text(
    file.read_text().replace('"step": 30', '"step": 31').replace('"step":30', '"step":31')
  )


def lose_meta(folder):
  (folder / "meta" / "metadata").unlink()


def break_index(folder):
  (folder / "state" / "manifest.ocdbt").write_bytes(b"no index")


DAMAGES = [flip_a_bit, truncate, empty, change_meta, lose_meta]


def test_the_newest_state_comes_back_exactly(folder):
  restored = store.restore_checkpoint(folder, target())
  assert restored.step == 30
  assert restored.meta["config"] == {"step": 30}
  assert restored.damaged == ()
  assert type(restored.state) is type(make_state())
  assert same(restored.state, make_state(30))


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
  """A checkpoint of step 40, of a state that was made from seed 40."""
  folder = tmp_path_factory.mktemp("newer") / "checkpoints"
  saver = Checkpoints(folder, None)
  saver.save(40, make_state(40), {"config": {"step": 40}})
  saver.close()
  return folder


def rotate(folder, newer):
  """What a run that keeps one checkpoint does between two looks at its folder."""
  if not (folder / "40").exists():
    shutil.copytree(newer / "40", folder / "40")
    for step in (10, 20, 30):
      shutil.rmtree(folder / str(step))


def test_checkpoints_that_a_run_deletes_meanwhile_give_way_to_its_newest(
  folder, newer, monkeypatch
):
  """Deleted after they were listed, before they are read; nothing is called damaged."""
  check = store._check

  def late(*args):
    rotate(folder, newer)
    return check(*args)

  monkeypatch.setattr(store, "_check", late)
  restored = store.restore_checkpoint(folder, target())
  assert (restored.step, restored.damaged) == (40, ())
  assert same(restored.state, make_state(40))
  assert set(restored.meta["leaves"]) == set(named_leaves(make_state()))


def test_a_given_step_that_a_run_deletes_meanwhile_is_not_there(folder, newer, monkeypatch):
  monkeypatch.setattr(store, "_check", lambda *args: rotate(folder, newer) or args.missing)
  with pytest.raises(UserError, match=r"`step=20`: no such checkpoint in .*; there are 40"):
    store.restore_checkpoint(folder, target(), step=20)


def test_a_description_that_a_run_deletes_meanwhile_gives_way_to_its_newest(
  folder, newer, monkeypatch
):
  load = store._load_meta
  monkeypatch.setattr(store, "_load_meta", lambda f: rotate(folder, newer) or load(f))
  assert store.read_meta(folder)["step"] == 40


def test_a_given_step_comes_back(folder):
  assert same(store.restore_checkpoint(folder, target(), step=20).state, make_state(20))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_noticed_and_the_one_before_is_used(folder, damage):
  damage(folder / "30")
  restored = store.restore_checkpoint(folder, target())
  assert restored.step == 20
  assert same(restored.state, make_state(20))
  assert [d.step for d in restored.damaged] == [30]
  assert restored.damaged[0].reason


@pytest.mark.parametrize("damage", [flip_a_bit, truncate], ids=lambda d: d.__name__)
def test_a_damaged_step_that_was_asked_for_is_refused(folder, damage):
  damage(folder / "20")
  with pytest.raises(UserError, match=r"checkpoint 20 cannot be read .*give another `step`"):
    store.restore_checkpoint(folder, target(), step=20)


def test_a_damaged_step_that_was_asked_for_names_those_that_are_whole(folder):
  (folder / "20/meta/metadata").write_text("{")
  others = r"give another `step`: the metadata of `step=10` or `step=30` can be read$"
  for read in (lambda: store.restore_checkpoint(folder, target(), 20),
               lambda: store.read_meta(folder, 20)):  # fmt: skip
    with pytest.raises(UserError, match=others):
      read()
  for other in ("10", "30"):
    (folder / other / "meta/metadata").write_text("{")
  with pytest.raises(
    UserError, match=r"20 .*; restore a copy of it, or train again with `fresh=True`$"
  ):
    store.read_meta(folder, 20)


def test_with_all_damaged_nothing_is_restored_or_moved(folder):
  for step in ("10", "20", "30"):
    flip_a_bit(folder / step)
  with pytest.raises(UserError, match=r"point 30 cannot be read \(.*\), nor can 20, 10; restore"):
    store.restore_checkpoint(folder, target())
  assert store.saved_steps(folder) == [10, 20, 30]


@pytest.mark.parametrize(
  ("damage", "reason"),
  [(truncate, "a file of it is cut short"), (break_index, "a file of it is damaged")],
)
def test_the_only_checkpoint_cut_short_is_told_in_a_few_words(newer, tmp_path, damage, reason):
  """And the storage library's own words, which name its drivers and databases, are the cause."""
  folder = shutil.copytree(newer, tmp_path / "checkpoints")
  damage(folder / "40")
  with pytest.raises(store.Unreadable) as caught:
    store.restore_checkpoint(folder, target())
  assert str(caught.value) == (
    f"{folder}: checkpoint 40 cannot be read ({reason}); restore a copy of it, or train again with "
    "`fresh=True`"
  )
  said = "".join(map(str, storage.chain(caught.value)))
  assert caught.value.__cause__ is not None
  assert "OCDBT" in said


def test_an_empty_folder_of_a_step_is_passed_over(folder):
  (folder / "40").mkdir()
  assert store.restore_checkpoint(folder, target()).step == 30
  assert store.read_meta(folder)["config"] == {"step": 30}


def test_damaged_steps_are_moved_aside_and_can_be_saved_again(folder):
  flip_a_bit(folder / "30")
  restored = store.restore_checkpoint(folder, target())
  (place,) = step_folders.quarantine(folder, restored.damaged)
  assert place.parent.name == "checkpoints_damaged"
  assert (place / "state").is_dir()
  saver = Checkpoints(folder, Checkpointing())
  saver.save(30, make_state(31), {})
  saver.close()
  assert same(store.restore_checkpoint(folder, target()).state, make_state(31))


def test_missing_checkpoints_and_steps_are_named(tmp_path, folder):
  with pytest.raises(UserError, match="holds no checkpoint; train first"):
    store.restore_checkpoint(tmp_path / "nothing", target())
  with pytest.raises(UserError, match=r"`step=25`: .* there are 10, 20, 30"):
    store.restore_checkpoint(folder, target(), step=25)


def test_another_models_checkpoint_is_refused_by_the_first_leaf_that_differs(folder):
  wide = make_state()._replace(params={"kernel": jnp.zeros((64, 128)), "bias": jnp.zeros(7)})
  with pytest.raises(
    UserError, match=r"params/kernel is float32\[64, 256\].*\[64, 128\].*another model"
  ):
    store.restore_checkpoint(folder, target(wide))
  more = make_state()._replace(params={**make_state().params, "extra": jnp.zeros(2)})
  with pytest.raises(UserError, match="has no params/extra"):
    store.restore_checkpoint(folder, target(more))
  less = make_state()._replace(params={"bias": jnp.zeros(7)})
  with pytest.raises(UserError, match="also has params/kernel"):
    store.restore_checkpoint(folder, target(less))


def test_a_part_of_the_state_can_be_restored_alone(folder):
  restored = store.restore_checkpoint(folder, {"params": target().params})
  assert set(restored.state) == {"params"}
  assert same(restored.state["params"], make_state(30).params)


def test_damage_in_another_part_does_not_matter_to_a_partial_restore_but_its_own_does(folder):
  """The checksum of each leaf that is restored is checked, whatever file holds it."""
  flip_a_bit(folder / "30")
  full = store.restore_checkpoint(folder, target())
  hit = full.damaged[0].reason
  part = store.restore_checkpoint(folder, {"params": target().params})
  assert (part.step == 20) == ("params/" in hit)


@pytest.mark.parametrize("saved_apart", [True, False])
def test_layers_saved_apart_are_restored_in_one_array_and_the_other_way(tmp_path, saved_apart):
  """Parameters, moments and averages, or parts of them, on another mesh; checksums are checked."""
  layer = lambda i: {"kernel": jnp.asarray(normal(i, 64, 256)), "bias": jnp.full(256, float(i))}  # noqa: E731
  params = {f"block{i}": layer(i) for i in range(11)} | {"top": layer(11)}
  state = create_state(params, {}, Adam().create(10).init(params), ["long"])
  state = state._replace(offsets=jax.tree.map(lambda x: x + 1, state.offsets))
  joined = stack_layers(state, ["block"])
  before, after = (state, joined) if saved_apart else (joined, state)
  saver = Checkpoints(tmp_path / "c", Checkpointing())
  saver.save(1, on(create_mesh(MeshShape(2, 4)), before)[0], {})
  saver.close()
  wanted = on(create_mesh(MeshShape(-1, 8)), after)[1]
  restored = store.restore_checkpoint(tmp_path / "c", wanted).state
  assert same(restored, after)
  placed = jax.tree.map(
    lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim), restored, wanted
  )
  assert all(jax.tree.leaves(placed))
  part = store.restore_checkpoint(tmp_path / "c", {"params": wanted.params}).state
  assert same(part["params"], after.params)
  flip_a_bit(tmp_path / "c" / "1")
  with pytest.raises(step_folders.Unreadable, match="checksum"):
    store.restore_checkpoint(tmp_path / "c", wanted)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (2, 1), (4, 2), (8, 8)])
def test_saved_on_eight_devices_restored_on_any(tmp_path, devices, fsdp):
  saved, _ = on(create_mesh(MeshShape(2, 4)), make_state(3))
  saver = Checkpoints(tmp_path / "c", Checkpointing())
  saver.save(1, saved, {})
  saver.close()
  mesh = create_mesh(MeshShape(-1, fsdp), jax.devices()[:devices])
  restored = store.restore_checkpoint(tmp_path / "c", on(mesh, make_state())[1])
  assert same(restored.state, make_state(3))
  kernel = restored.state.params["kernel"]
  assert len(kernel.sharding.device_set) == devices
  assert kernel.addressable_shards[0].data.size == kernel.size // fsdp


def test_checksums_do_not_depend_on_the_layout_but_on_every_bit_and_place():
  state = make_state(1)
  sums = checksums(state)
  for shape in (MeshShape(), MeshShape(2, 4), MeshShape(1, 8)):
    assert checksums(on(create_mesh(shape), state)[0]) == sums
  kernel = np.asarray(state.params["kernel"])
  for change in (
    lambda w: w.__setitem__((3, 5), -w[3, 5]),
    lambda w: w.__setitem__(0, w[0][::-1].copy()),
  ):
    other = kernel.copy()
    change(other)
    assert checksums({"w": jnp.asarray(other)})["w"] != checksums({"w": jnp.asarray(kernel)})["w"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_checksums_see_one_changed_element_of_any_type(dtype):
  changed = np.zeros((5, 3), dtype)
  changed[4, 2] = 1
  zeros = jax.device_put(np.zeros((5, 3), dtype))
  assert checksums({"a": zeros}) != checksums({"a": jax.device_put(changed)})


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (lambda file: file.unlink(), "a file of it is missing: "),
    (lambda file: (file.unlink(), file.mkdir()), "a folder stands where a file of it belongs: "),
    (lambda file: (shutil.rmtree(file.parent), file.parent.touch()), "a file stands where a fold"),
  ],
)
def test_metadata_that_are_not_where_they_belong_are_told_in_words(folder, spoil, words):
  for step in (10, 20, 30):
    spoil(folder / str(step) / "meta" / "metadata")
  with pytest.raises(UserError, match=f"{words}.*30/meta/metadata") as caught:
    store.read_meta(folder, 30)
  assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("part", ["_load_meta", "_read"])
def test_a_block_that_cannot_be_read_is_one_checkpoints_trouble(part, folder, monkeypatch):
  """EIO, in the description or in the data of the newest: the one before is taken."""
  whole, (_, target) = getattr(store, part), on(create_mesh(MeshShape()), make_state())

  def read(place, *more, number=errno.EIO):
    if place.name == "30":
      raise OSError(number, os.strerror(number))
    return whole(place, *more)

  monkeypatch.setattr(store, part, read)
  restored = store.restore_checkpoint(folder, target)
  assert restored.step == 20
  assert [(d.step, d.reason) for d in restored.damaged] == [(30, "Input/output error")]
  for number in (errno.EMFILE, errno.ESTALE, errno.EACCES):  # of which the step is none the worse
    monkeypatch.setattr(store, part, functools.partial(read, number=number))
    with pytest.raises(OSError, match=os.strerror(number)):
      store.restore_checkpoint(folder, target)


def test_a_description_on_a_mount_that_has_gone_is_not_passed_over(folder, monkeypatch):
  def read(place):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

  monkeypatch.setattr(store, "_load_meta", read)
  with pytest.raises(OSError, match="Stale"):
    store.read_meta(folder)


def test_a_file_larger_than_the_limit_is_found_in_what_orbax_raises(tmp_path):
  """A real EFBIG, in a thread of its writer; Python ignores the signal that comes with it."""
  saver = Checkpoints(tmp_path / "c", Checkpointing())
  saver.save(1, {"w": jnp.zeros(4)}, {})
  saver.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, hard))
  with contextlib.ExitStack() as stack:
    stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
    saver.save(2, {"w": jnp.asarray(normal(0, 256, 256))}, {})
    with pytest.raises(CheckpointError) as caught:
      saver.wait()
  line = store.explain_failed_save(caught.value)
  assert line.startswith(f"saving 262.1 kB failed: File too large: {tmp_path}/c (")
  assert line.endswith("; step 1 is intact there")
  saver.begin_anew()  # what was written is deleted, and it can be tried again
  saver.save(2, {"w": jnp.asarray(normal(0, 256, 256))}, {})
  saver.close()
  assert store.saved_steps(tmp_path / "c") == [1, 2]


RESTORE = """
  import jax, sys
  from pathlib import Path
  from diffusion_jax.checkpoints import store
  from diffusion_jax.parallel import sharding
  from diffusion_jax.runs import command_line

  def main(argv):
    shape = {"w": [jax.ShapeDtypeStruct((400, 100), "float32")] * 50}
    layout = sharding.state_shardings(sharding.create_mesh(sharding.MeshShape()), shape)
    restored = store.restore_checkpoint(Path(argv[0]), sharding.as_target(shape, layout))
    print(restored.step, *restored.damaged, flush=True)

  command_line.run_main(main)
"""


@pytest.mark.process
@pytest.mark.parametrize("damage", ["lose", "cut"])
def test_data_that_cannot_be_read_print_nothing(damage, tmp_path):
  """Orbax and its threads would write hundreds of lines to stderr: a real process has none."""
  saver = Checkpoints(tmp_path / "c", Checkpointing())
  for step in (1, 2):
    saver.save(step, {"w": [jnp.asarray(normal(i, 400, 100)) for i in range(50)]}, {})
  saver.close()
  for file in (tmp_path / "c" / "2" / "state").glob("**/d/*"):
    file.unlink() if damage == "lose" else file.write_bytes(file.read_bytes()[:200])
  command = [sys.executable, "-c", textwrap.dedent(RESTORE), str(tmp_path / "c")]
  ran = subprocess.run(command, capture_output=True, text=True)
  assert ran.stderr == ""
  assert ran.returncode == 0
  assert ran.stdout.startswith("1 Damage(step=2, reason=")


def test_retention_keeps_the_last_and_every_multiple(tmp_path):
  saver = Checkpoints(tmp_path / "c", Checkpointing(keep_last=2, keep_every_steps=4))
  for step in range(1, 8):
    saver.save(step, {"w": jnp.zeros(2)}, {})
  saver.close()
  assert store.saved_steps(tmp_path / "c") == [4, 6, 7]


def test_the_last_good_one_is_there_until_the_next_has_committed(tmp_path):
  """With keep_last=1 there is always a whole checkpoint, also while the next is being written."""
  saver = Checkpoints(tmp_path / "c", Checkpointing(keep_last=1))
  state = make_state()
  for step in range(1, 6):
    saver.save(step, state, {})
    whole, deadline = whole_steps(tmp_path / "c"), time.monotonic() + 120
    while step not in whole:  # looked at again and again until the next has taken its place
      assert whole or step == 1
      assert time.monotonic() < deadline
      whole = whole_steps(tmp_path / "c")
  saver.close()
  assert store.saved_steps(tmp_path / "c") == [5]


def test_nothing_whole_is_told_from_a_listing_that_was_overtaken(tmp_path, monkeypatch):
  saver = Checkpoints(tmp_path / "c", Checkpointing(keep_last=1))
  saver.save(1, make_state(), {})
  saver.wait()
  overtaken, listing = [[1]], store.saved_steps
  saver.save(2, make_state(), {})
  saver.close()
  monkeypatch.setattr(
    store, "saved_steps", lambda folder: overtaken.pop() if overtaken else listing(folder)
  )
  assert whole_steps(tmp_path / "c") == [2]
  shutil.rmtree(tmp_path / "c" / "2")
  overtaken.append([2])
  assert whole_steps(tmp_path / "c") == []


def whole_steps(folder):
  """What can be restored; a listing that the next commit has overtaken meanwhile is made again."""
  while True:
    listed = store.saved_steps(folder)
    whole = [step for step in listed if is_whole(folder, step)]
    if whole or store.saved_steps(folder) == listed:
      return whole


def is_whole(folder, step):
  try:
    store.restore_checkpoint(folder, target(), step=step)
  except UserError:
    return False
  return True


def test_a_step_that_is_there_is_left_alone(folder):
  saver = Checkpoints(folder, Checkpointing())
  saver.save(30, make_state(99), {})
  saver.close()
  assert same(store.restore_checkpoint(folder, target()).state, make_state(30))


def test_an_older_step_than_the_newest_is_an_error(folder):
  saver = Checkpoints(folder, Checkpointing())
  with pytest.raises(CheckpointError, match="25"):
    saver.save(25, make_state(25), {})


def test_a_failed_background_save_is_raised(tmp_path, monkeypatch):
  saver = Checkpoints(tmp_path / "c", Checkpointing())
  saver.save(1, make_state(), {})
  saver.wait()
  manager = type(saver._manager)

  def fail(*args, **kwargs):
    raise OSError("no space left on device")

  monkeypatch.setattr(manager, "_finalize", fail, raising=True)
  saver.save(2, make_state(), {})
  with pytest.raises(CheckpointError, match="no space left"):
    saver.wait()


SAVER = """
  import jax, sys
  from pathlib import Path
  from diffusion_jax.checkpoints.store import Checkpointing, Checkpoints
  saver = Checkpoints(Path(sys.argv[1]), Checkpointing(keep_last=2))
  for step in range(1, 10_000):
    saver.save(step, {"w": jax.numpy.full((400, 1000), step, "float32")}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("after", [2, 3, 5])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path, after):
  env = {**os.environ, "XLA_FLAGS": ""}
  command = [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path / "c")]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
  for line in process.stdout:
    if int(line) == after:
      break
  time.sleep(0.01 * after)
  process.send_signal(signal.SIGKILL)
  process.wait()
  shape = {"w": jax.ShapeDtypeStruct((400, 1000), jnp.float32)}
  layout = sharding.state_shardings(create_mesh(MeshShape()), shape)
  restored = store.restore_checkpoint(tmp_path / "c", sharding.as_target(shape, layout))
  assert restored.step >= after - 1
  assert (restored.state["w"] == restored.step).all()
  assert restored.meta["step"] == restored.step


@pytest.mark.parametrize("fields", [{"every_steps": 0}, {"keep_last": 0}, {"keep_every_steps": 0}])
def test_impossible_fields_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    Checkpointing(**fields)


def test_leaves_are_named_by_their_place():
  assert "params/kernel" in named_leaves(make_state())
