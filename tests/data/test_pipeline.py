"""Batches: a pure function of (seed, step), the same bytes on any number of processes."""

import threading
import time

import numpy as np
import pytest

from diffusion_jax.data import ArraySource, Prefetcher, TrainStream, full_pass
from diffusion_jax.data.pipeline import flips, permutation


def numbered(num=23):
  """Image i has i in its left pixel and 100 + i in its right one."""
  images = np.stack([np.arange(num), 100 + np.arange(num)], axis=-1)
  labels = np.arange(num) % 3
  return ArraySource("numbered", images[:, None, :, None].astype(np.uint8), labels, 256, 3)


def records(batch):
  """Which record each image is, whether it was flipped or not."""
  return np.minimum(batch.image[:, 0, 0, 0], batch.image[:, 0, 1, 0])


def test_a_batch_depends_on_seed_and_step_alone():
  forwards, backwards = TrainStream(numbered(), 6, 5, True), TrainStream(numbered(), 6, 5, True)
  late = {step: backwards.batch(step) for step in reversed(range(12))}
  for step in range(12):
    for a, b in zip(forwards.batch(step)[:4], late[step][:4], strict=True):
      np.testing.assert_array_equal(a, b)


def test_every_record_comes_once_an_epoch_across_batch_borders():
  stream = TrainStream(numbered(23), 6, 0)
  seen = np.concatenate([records(stream.batch(step)) for step in range(23)])
  for epoch in range(6):
    np.testing.assert_array_equal(np.sort(seen[23 * epoch : 23 * (epoch + 1)]), np.arange(23))
  assert not np.array_equal(seen[:23], seen[23:46])


def test_seeds_and_epochs_have_orders_of_their_own():
  orders = [tuple(permutation(seed, epoch, 50)) for seed in range(4) for epoch in range(4)]
  assert len(set(orders)) == 16


def test_the_order_is_uniform():
  """Each record is as often first as any other: chi-squared of 6,000 draws over 6 records."""
  firsts = [permutation(seed, 0, 6)[0] for seed in range(6000)]
  counts = np.bincount(firsts, minlength=6)
  assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # its 99.9th percentile at 5 degrees


def test_labels_stay_with_their_images():
  batch = TrainStream(numbered(), 23, 1, True).batch(0)
  np.testing.assert_array_equal(batch.label, records(batch) % 3)


@pytest.mark.parametrize(
  "parts", [[range(8)], [range(4), range(4, 8)], [[0, 1], [2, 3], [4, 5], [6, 7]], [[1, 6], [0, 7]]]
)
def test_processes_cut_the_same_global_batch(parts):
  """Whatever rows a mesh gives a process, they are those of the whole batch, flips included."""
  whole = TrainStream(numbered(), 8, 3, True).batch(5)
  for rows in map(np.asarray, parts):
    part = TrainStream(numbered(), 8, 3, True, rows).batch(5)
    for name in whole._fields[:4]:
      np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])


def test_index_is_the_global_position():
  np.testing.assert_array_equal(TrainStream(numbered(), 5, 0).batch(3).index, np.arange(15, 20))


def test_batches_go_on_after_four_billion_images():
  stream = TrainStream(numbered(10), 8, seed=1, flip=True)
  steps = range(2**29 - 1, 2**29 + 2)  # the second one begins with image 2^32
  batches = [stream.batch(step) for step in steps]
  assert [batch.index.tolist() for batch in batches[1:]] == [list(range(8)), list(range(8, 16))]
  first = (2**29 - 1) * 8
  places = [int(permutation(1, p // 10, 10)[p % 10]) for p in range(first, first + 24)]
  found = np.concatenate([records(batch) % 100 for batch in batches])
  assert found.tolist() == places


def test_half_are_flipped_and_only_when_asked():
  plain, flipped = TrainStream(numbered(), 500, 7), TrainStream(numbered(), 500, 7, True)
  assert (plain.batch(0).image[:, 0, 0, 0] < 100).all()
  turned = flipped.batch(0).image[:, 0, 0, 0] >= 100
  np.testing.assert_array_equal(records(plain.batch(0)), records(flipped.batch(0)))
  assert 200 < turned.sum() < 300
  assert not np.array_equal(turned, flipped.batch(1).image[:, 0, 0, 0] >= 100)


def test_a_flip_belongs_to_its_position_whatever_the_slice():
  whole = flips(3, np.arange(1000))
  for first, last in ((0, 5), (1, 9), (6, 7), (333, 1000)):
    np.testing.assert_array_equal(flips(3, np.arange(first, last)), whole[first:last])
  assert 430 < whole.sum() < 570


def test_flipping_leaves_the_data_set_alone():
  source = numbered()
  before = source.gather(np.arange(23))[0].copy()
  TrainStream(source, 23, 0, True).batch(0)
  np.testing.assert_array_equal(source.gather(np.arange(23))[0], before)


def test_batches_may_be_larger_than_the_data_set():
  batch = TrainStream(numbered(3), 10, 0).batch(0)
  np.testing.assert_array_equal(np.bincount(records(batch)[:9]), [3, 3, 3])


@pytest.mark.parametrize(("size", "count"), [(23, 1), (8, 1), (8, 2), (100, 4)])
def test_a_full_pass_counts_every_record_once(size, count):
  seen = []
  for rows in np.split(np.arange(size), count):
    for batch in full_pass(numbered(23), size, rows):
      assert len(batch.mask) == size // count
      seen += list(records(batch)[batch.mask > 0])
      np.testing.assert_array_equal(records(batch)[batch.mask > 0], batch.index[batch.mask > 0])
  assert sorted(seen) == list(range(23))


def test_prefetching_keeps_the_order_and_then_ends():
  with Prefetcher(lambda step: step * 10, 3, 7) as batches:
    assert [batches.get() for _ in range(4)] == [30, 40, 50, 60]
    for _ in range(2):
      with pytest.raises(StopIteration):
        batches.get()


def test_prefetching_runs_ahead_but_not_further_than_its_depth():
  made = []
  with Prefetcher(made.append, 0, 100, depth=2):
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.3)
    assert made == [0, 1, 2]  # two wait in the queue, the third is in the worker's hand


def test_an_error_in_the_background_reaches_the_reader_each_time():
  def broken(step):
    if step == 1:
      raise OSError("unreadable")
    return step

  with Prefetcher(broken, 0, 9) as batches:
    assert batches.get() == 0
    for _ in range(2):
      with pytest.raises(OSError, match="unreadable"):
        batches.get()


def test_waiting_is_measured():
  with Prefetcher(lambda step: time.sleep(0.2), 0, 2) as batches:
    batches.get()
    assert 0.1 < batches.wait_sec < 5


def test_closing_ends_the_thread():
  before = threading.active_count()
  batches = Prefetcher(lambda step: step, 0, 10**9)
  batches.close()
  assert threading.active_count() == before
