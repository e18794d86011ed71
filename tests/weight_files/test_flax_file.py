"""Files of flax.serialization: its own writer, and bytes that it would not write."""

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization

from diffusion_jax.types import UserError
from diffusion_jax.weight_files.weight_file import read_weights

SIX = np.arange(6, dtype=np.float32)
BYTES = SIX.tobytes()


@pytest.fixture
def file(tmp_path):
  """Return a function that writes bytes and gives their path."""

  def write(content):
    path = tmp_path / "checkpoint_100"
    path.write_bytes(content)
    return path

  return write


def array(shape=(2, 3), name="float32", content=BYTES, code=1):
  return msgpack.ExtType(code, msgpack.packb((shape, name, content)))


def refusal(path):
  with pytest.raises(UserError) as error:
    read_weights(path)
  assert "\n" not in str(error.value)
  assert str(error.value).startswith(f"{path} is no readable msgpack file of flax: ")
  return str(error.value)


def test_a_checkpoint_of_flax_comes_back(file, monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
  tree = {
    "step": 7, "params": {"a": {"kernel": SIX.reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}},
    "optimizer": [{"mu": np.ones(2)}, (1, 2.5)], "scalar": np.float32(2.5), "complex": 1 + 2j,
    "large": np.arange(40).reshape(4, 10), "numbers": {"a": -5, "b": -300, "c": 2**40, "d": 2**63},
    "text": "x" * 40, "none": None, "flag": True,
  }  # fmt: skip
  content = serialization.to_bytes(tree)
  found = read_weights(file(content))
  assert found.format == "msgpack"
  assert list(found.groups) == ["params", "optimizer"]
  assert found.arrays["params/a/bias"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(found.groups["params"]["a/kernel"], SIX.reshape(2, 3))
  np.testing.assert_array_equal(found.arrays["large"], tree["large"])
  np.testing.assert_array_equal(found.arrays["optimizer/0/mu"], np.ones(2))
  assert found.facts == {
    "step": 7, "optimizer": {"1": {"0": 1, "1": 2.5}}, "scalar": 2.5, "complex": 1 + 2j,
    "numbers": tree["numbers"], "text": "x" * 40, "none": None, "flag": True,
  }  # fmt: skip
  for length in range(1, len(content), 23):
    assert "is cut short" in refusal(file(content[:length]))
  assert "1 bytes follow its end" in refusal(file(content + b"\0"))


def deep(depth):
  value = 1
  for _ in range(depth):
    value = {"a": value}
  return value


CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 6}, "chunks": {"0": array((6,))}}
BAD = {
  "which its shape does not fit": {"a": array((2, 4))},
  "no valid shape": {"a": array((-1, 6))},
  "has the type 'object'": {"a": array(name="object")},
  "has the type '>f4'": {"a": array(name=">f4")},
  "has the type 'V24'": {"a": array((), "V24")},
  "no shape, type and bytes": {"a": msgpack.ExtType(1, msgpack.packb((1, 2)))},
  "no two parts": {"a": msgpack.ExtType(2, msgpack.packb((1.0,)))},
  "unknown extension type 5": {"a": msgpack.ExtType(5, b"x")},
  "follow its end": {"a": msgpack.ExtType(1, msgpack.packb(((6,), "float32", b"")) + b"\0")},
  "can only convert an array of size 1": {"a": array(code=3)},
  "a key that is a NoneType": {"a": {None: 1}},
  "nested deeper than 60": deep(70),
  "two entries named '1'": {"a": {1: array(), "1": array()}},
  "paths are joined": {"a/b": array(), "a": {"b": array()}},
  "holds no arrays": {"a": 1},
  "do not fit its shape": {"a": {**CHUNKED, "shape": {"0": 7}}},
  "without its indices": {"a": {**CHUNKED, "chunks": {"1": array((6,))}}},
  "no shape and chunks": {"a": {**CHUNKED, "x": 1}},
  "chunks that are no flat arrays": {"a": {**CHUNKED, "chunks": {"0": array((2, 3))}}},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_damaged_file_is_refused_in_one_line(reason, file):
  assert reason in refusal(file(msgpack.packb(BAD[reason])))


@pytest.mark.parametrize(
  ("reason", "content"),
  [
    ("two entries 'a'", b"\x82\xa1a\x01\xa1a\x02"),
    ("is cut short", b"\x81\xa1a\xdd\xff\xff\xff\xff"),  # a list of 4 billion values
    ("is cut short", b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"),
    ("begins no value", b"\x81\xa1a\xc1"),
    ("invalid start byte", b"\x81\xa1\xffx"),
  ],
)
def test_bytes_that_no_writer_writes(reason, content, file):
  assert reason in refusal(file(content))
