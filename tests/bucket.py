"""A bucket in memory behind `etils.epath`, which refuses what buckets cannot do."""

import io
from collections.abc import Iterator

from etils import epath
from etils.epath import backend, gpath, stat_utils

from diffusion_jax.core import buckets


class Bucket(backend.Backend):
  """The objects of gs://; writing is whole, and folders exist only in the names.

  Attributes:
    objects: address -> content and time.
    is_down: True if every access fails, as without a network.
    written: addresses in the order of writing.
  """

  def __init__(self):
    self.objects: dict[str, tuple[bytes, int]] = {}
    self.is_down, self.written, self._now = False, [], 1

  def names(self, below: str) -> list[str]:
    return sorted(n.removeprefix(f"{below}/") for n in self._all() if n.startswith(f"{below}/"))

  def _all(self) -> list[str]:
    if self.is_down:
      raise OSError("the network is down")
    return list(self.objects)

  def open(self, path, mode):
    self._all()
    if mode == "rb":
      if path not in self.objects:
        raise FileNotFoundError(path)
      return io.BytesIO(self.objects[path][0])
    assert mode == "wb", f"a bucket cannot open with {mode}"
    return _Upload(self, path)

  def put(self, path: str, content: bytes) -> None:
    self._now += 1
    self.written.append(path)
    self.objects[path] = (content, self._now)

  def exists(self, path):
    return path in self._all() or self.isdir(path)

  def isdir(self, path):
    return bool(self.names(path))

  def listdir(self, path):
    return sorted({name.partition("/")[0] for name in self.names(path)})

  def stat(self, path):
    if path in self._all():
      content, time = self.objects[path]
      return stat_utils.StatResult(False, len(content), time)
    if not self.isdir(path):
      raise FileNotFoundError(path)
    return stat_utils.StatResult(True, 0, 0)

  def remove(self, path):
    if path not in self._all():
      raise FileNotFoundError(path)
    del self.objects[path]

  def _refuse(self, *args, **kwargs):
    raise AssertionError("a bucket cannot do this")

  rename = replace = copy = mkdir = makedirs = rmtree = glob = walk = _refuse


class _Upload(io.BytesIO):
  def __init__(self, bucket: Bucket, path: str):
    super().__init__()
    self._bucket, self._path = bucket, path

  def __exit__(self, *error):
    if error[0] is None:
      self._bucket.put(self._path, self.getvalue())
    super().__exit__(*error)


def serve_bucket(monkeypatch, tmp_path) -> Iterator[Bucket]:
  """Serve gs:// from memory, with the copies below a test's folder; a generator of a fixture."""
  bucket = Bucket()
  monkeypatch.setattr(
    gpath,
    "_PREFIX_TO_BACKEND",
    {None: backend.os_backend, "gs": bucket, "s3": bucket, "az": bucket},
  )
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine1"))
  assert epath.Path("gs://b/a").parent == epath.Path("gs://b")
  yield bucket
  bucket.is_down = False
  buckets.forget_copies()


def other_machine(monkeypatch, tmp_path, name="machine2") -> None:
  """Go on as another machine: nothing of the first one's copies is known there."""
  buckets.forget_copies()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
