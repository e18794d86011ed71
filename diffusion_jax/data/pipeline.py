"""Batches as a pure function of (seed, step), and their prefetching.

No state has to be saved: batch k of a run is the same before and after a restart, and for any
number of processes.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from diffusion_jax.data.base import Source
from diffusion_jax.types import Batch

FLIPS = 1 << 32
"""Offset to the seed's key word for flips, so that they share no draws with permutations."""


@functools.lru_cache(maxsize=3)
def permutation(seed: int, epoch: int, num_images: int) -> Int[np.ndarray, "N"]:
  """Return the order of the records in one epoch, as a read-only array."""
  words = np.random.Philox(key=[seed, epoch]).random_raw(num_images)
  order = np.argsort(words, kind="stable")
  order.setflags(write=False)
  return order


def flips(seed: int, position: Int[np.ndarray, "B"]) -> Bool[np.ndarray, "B"]:
  """Return True for each position to flip: a coin toss of (seed, position) alone.

  Args:
    seed: seed of the run.
    position: consecutive global positions.
  """
  # Philox gives four words per counter value: start at the block with the first position.
  first, skip = int(position[0]) // 4, int(position[0]) % 4
  words = np.random.Philox(key=[seed + FLIPS, 0], counter=first).random_raw(skip + len(position))
  return words[skip:] >> np.uint64(63) == 1


def make_batch(
  source: Source,
  places: Int[np.ndarray, "B"],
  index: Int[np.ndarray, "B"],
  mask: Bool[np.ndarray, "B"] | None = None,
) -> Batch:
  """Return a batch of a source's examples with all its named arrays.

  Args:
    source: the split.
    places: positions of the examples in the split.
    index: global numbers of the examples, see `Batch.index`.
    mask: False for padding; None: no padding.
  """
  image, label = source.gather(places)
  real = np.ones(len(places), np.float32) if mask is None else mask.astype(np.float32)
  return Batch(image, label, real, index.astype(np.uint32), source.gather_fields(places))


class TrainStream:
  """An endless shuffled stream: every record once per epoch, with batches across epochs.

  Args:
    source: the split.
    batch_size: images per global batch.
    seed: seed of the order and the flips.
    flip: mirror half of the images left to right, together with their named arrays of three axes,
      which are images [H W C] or masks of one.
    rows: rows of each global batch to read in this process; None: all.
  """

  def __init__(
    self,
    source: Source,
    batch_size: int,
    seed: int,
    flip: bool = False,
    rows: Int[np.ndarray, "L"] | None = None,
  ):
    self._source, self._batch_size, self._seed, self._flip = source, batch_size, seed, flip
    self._rows = np.arange(batch_size) if rows is None else rows

  def batch(self, step: int) -> Batch:
    """Return the rows of batch `step`, counted from 0; `index` is the global position."""
    whole = np.arange(self._batch_size, dtype=np.int64) + step * self._batch_size
    position = whole[self._rows]
    batch = make_batch(self._source, self._records(position), position)
    if self._flip:  # drawn for the whole batch, so the number of processes does not matter
      turned = flips(self._seed, whole)[self._rows]
      for images in (batch.image, *(a for a in batch.fields.values() if a.ndim == 4)):
        images[turned] = images[turned, :, ::-1]
    return batch

  def _records(self, position: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    num_images = len(self._source)
    epoch, offset = position // num_images, position % num_images
    record = np.empty_like(position)
    for e in np.unique(epoch):
      here = epoch == e
      record[here] = permutation(self._seed, int(e), num_images)[offset[here]]
    return record


def full_pass(
  source: Source, batch_size: int, rows: Int[np.ndarray, "L"] | None = None, first: int = 0
) -> Iterator[Batch]:
  """Yield every example once, in order; the last batch is padded and the padding masked.

  Args:
    source: the split.
    batch_size: images per global batch.
    rows: rows of each global batch to read in this process; None: all.
    first: index of the first example.
  """
  rows = np.arange(batch_size) if rows is None else rows
  for begin in range(first, len(source), batch_size):
    position = begin + rows
    places = np.minimum(position, len(source) - 1)
    yield make_batch(source, places, position, position < len(source))


class Prefetcher:
  """A background thread that calls `function(step)` for consecutive steps.

  Args:
    function: makes a batch, and may also send it to the devices.
    start_step, stop_step: first step, and the step after the last.
    depth: maximum number of finished batches in the queue.

  Attributes:
    wait_sec: total seconds that `get` has waited.
  """

  def __init__(
    self, function: Callable[[int], Any], start_step: int, stop_step: int, depth: int = 2
  ):
    self.wait_sec = 0.0
    self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    self._closed = threading.Event()
    self._failure: BaseException | None = None
    steps = range(start_step, stop_step)
    self._thread = threading.Thread(target=self._work, args=(function, steps), daemon=True)
    self._thread.start()

  def get(self) -> Any:
    """Return the next batch; raise the function's error, or StopIteration after the last."""
    if self._failure is not None:
      raise self._failure
    begun = time.perf_counter()
    batch, self._failure = self._queue.get()
    self.wait_sec += time.perf_counter() - begun
    if self._failure is not None:
      raise self._failure
    return batch

  def close(self) -> None:
    """Stop the thread and wait until it has ended."""
    self._closed.set()
    self._thread.join()

  def __enter__(self) -> "Prefetcher":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _work(self, function: Callable[[int], Any], steps: range) -> None:
    try:
      for step in steps:
        if self._closed.is_set():
          return
        self._put(function(step), None)
      self._put(None, StopIteration("no more steps"))
    except BaseException as error:
      self._put(None, error)

  def _put(self, batch: Any, error: BaseException | None) -> None:
    while not self._closed.is_set():
      try:
        return self._queue.put((batch, error), timeout=0.1)
      except queue.Full:
        continue
