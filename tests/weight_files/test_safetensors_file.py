"""Files of safetensors, and folders of shards, written here byte by byte."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from refused_weights import refusal

from diffusion_jax.types import UserError
from diffusion_jax.weight_files.inert import DTYPES
from diffusion_jax.weight_files.safetensors_file import NAMES, write_safetensors
from diffusion_jax.weight_files.weight_file import read_weights

SIX = np.arange(6, dtype=np.float32)


def as_safetensors(entries, content=b"", length=None):
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def entry(begin, end, dtype="F32", shape=(6,)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_arrays_of_every_type_come_back_bit_for_bit(tmp_path):
  raw = np.random.default_rng(0).integers(0, 256, 16 * 6, np.uint8)
  arrays = {
    name: (raw[: 6 * dtype.itemsize] % 2 if name == "bool" else raw[: 6 * dtype.itemsize])
    .view(dtype).reshape(3, 2)
    for name, dtype in DTYPES.items() if name in NAMES.values()
  }  # fmt: skip
  arrays |= {
    "scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.int64),
    "transposed": np.arange(6.0).reshape(2, 3).T, "big": np.arange(3, dtype=">i4"),
    "model.1.weight": SIX.astype(ml_dtypes.bfloat16),
  }  # fmt: skip
  path = tmp_path / "weights"
  write_safetensors(path, arrays, {"format": "pt"})
  found = read_weights(path)
  assert (found.format, found.facts, found.groups) == ("safetensors", {"format": "pt"}, {})
  assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert set(found.arrays) == set(arrays)
  for name, array in arrays.items():
    assert found.arrays[name].dtype == array.dtype.newbyteorder("=")
    assert found.arrays[name].shape == array.shape
    assert found.arrays[name].tobytes() == array.astype(found.arrays[name].dtype).tobytes()
  write_safetensors(tmp_path / "again", found.arrays, found.facts)
  assert (tmp_path / "again").read_bytes() == path.read_bytes()
  assert {file.name for file in tmp_path.iterdir()} == {"weights", "again"}


def test_what_the_format_lacks_is_not_written(tmp_path):
  for name, array in (("c", np.zeros(1, np.complex128)), ("__metadata__", SIX)):
    with pytest.raises(UserError, match=name):
      write_safetensors(tmp_path / "x", {name: array})
  assert not list(tmp_path.iterdir())


BAD = {
  "cut short or too large": as_safetensors({}, length=10**6),
  "no readable safetensors": as_safetensors(b"{" * 20),
  "two entries of one name": as_safetensors(b'{"a":1,"a":2}'),
  "not described by": as_safetensors({"a": {"dtype": "F32", "shape": [6]}}),
  "is not described": as_safetensors({"a": 3}),
  "no valid place": as_safetensors({"a": entry(24, 0)}, SIX.tobytes()),
  "no valid place in": as_safetensors({"a": entry(-8, 16)}, SIX.tobytes()),
  "begins at byte 8, not at 0": as_safetensors({"a": entry(8, 32)}, bytes(32)),
  "begins at byte 0, not at 24": as_safetensors({"a": entry(0, 24), "b": entry(0, 24)}, bytes(24)),
  "begins at byte 8, not at 24": as_safetensors({"a": entry(0, 24), "b": entry(8, 32)}, bytes(32)),
  "take 24 bytes, the file has 25": as_safetensors({"a": entry(0, 24)}, bytes(25)),
  "which its shape does not fit": as_safetensors({"a": entry(0, 24, shape=(5,))}, bytes(24)),
  "does not fit": as_safetensors({"a": entry(0, 24)}, bytes(20)),
  "no valid shape": as_safetensors({"a": entry(0, 24, shape=(-6,))}, bytes(24)),
  "a' has no valid shape": as_safetensors({"a": entry(0, 24, shape=(True, 6))}, bytes(24)),
  "unknown type 'F4'": as_safetensors({"a": entry(0, 24, "F4")}, bytes(24)),
  "unknown type ['F32']": as_safetensors({"a": entry(0, 24, ["F32"])}, bytes(24)),
  "truth values": as_safetensors({"a": entry(0, 6, "BOOL")}, b"\2" * 6),
  "metadata are no texts": as_safetensors({"__metadata__": {"a": 1}}),
  "holds no arrays": as_safetensors({}),
  "no file of weights that is known": b"hello world, hello",
  "is empty": b"",
  "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
  "page of HTML": b"<!DOCTYPE html><html>",
}


@pytest.mark.parametrize("reason", BAD)
def test_a_damaged_file_is_refused_in_one_line(reason, tmp_path):
  path = tmp_path / "weights"
  path.write_bytes(BAD[reason])
  assert reason in refusal(path)


def test_every_truncation_is_refused(tmp_path):
  write_safetensors(tmp_path / "whole", {"a": SIX, "b": SIX})
  content, path = (tmp_path / "whole").read_bytes(), tmp_path / "cut"
  for length in range(0, len(content), 9):
    path.write_bytes(content[:length])
    refusal(path)


def test_places_that_are_no_files(tmp_path):
  assert "no such file" in refusal(tmp_path / "missing")
  assert "no file of weights" in refusal(tmp_path)
  for name in ("a", "b"):
    write_safetensors(tmp_path / f"{name}.safetensors", {"a": SIX})
  assert "2 files of weights (a.safetensors, b.safetensors); give one" in refusal(tmp_path)
  write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", {"usual": SIX})
  assert list(read_weights(tmp_path).arrays) == ["usual"]


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def sharded(folder, places, shards):
  for name, arrays in shards.items():
    write_safetensors(folder / name, arrays)
  (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_read_as_one(tmp_path):
  places = {"b": "2.safetensors", "a": "1.safetensors", "c": "1.safetensors"}
  sharded(
    tmp_path, places, {"1.safetensors": {"a": SIX, "c": SIX + 1}, "2.safetensors": {"b": -SIX}}
  )
  for path in (tmp_path, tmp_path / INDEX):
    found = read_weights(path)
    assert {name: array[1] for name, array in found.arrays.items()} == {"a": 1, "b": -1, "c": 2}
  names = (INDEX, "1.safetensors", "2.safetensors")
  sums = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
  listed = "".join(f"{sum_}  {name}\n" for sum_, name in zip(sums, names, strict=True))
  assert found.sha256 == hashlib.sha256(listed.encode()).hexdigest()


@pytest.mark.parametrize(
  ("reason", "places"),
  [
    ("no weight_map", {}),
    ("no name of a file", {"a": "../1.safetensors"}),
    ("no name of a file", {"a": "/etc/passwd"}),
    ("no name of a file", {"a": 3}),
    ("other arrays than the index", {"b": "1.safetensors"}),
    ("no such file", {"a": "1.safetensors", "b": "3.safetensors"}),
  ],
)
def test_a_wrong_index_is_refused(reason, places, tmp_path):
  sharded(tmp_path, places, {"1.safetensors": {"a": SIX}})
  with pytest.raises(UserError, match=reason):
    read_weights(tmp_path)
