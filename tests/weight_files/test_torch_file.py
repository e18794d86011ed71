"""PyTorch files written here opcode by opcode: no torch, and nothing that pickle would refuse."""

import copy
import io
import pickle
import zipfile

import numpy as np
import pytest
from torch_files import (
  FLOAT,
  ORDERED_DICT,
  REBUILD,
  as_stream,
  as_zip,
  number,
  state,
  storage,
  tensor,
  text,
  tuple_of,
)  # fmt: skip

from diffusion_jax.types import UserError
from diffusion_jax.weight_files.torch_file import MAGIC, PROTOCOL, read_state_dict

SIX = np.arange(6, dtype=np.float32)
GOOD = state(
  ("whole", tensor(storage(), 0, (2, 3), (3, 1))),
  ("transposed", tensor(storage(), 0, (3, 2), (1, 3))),
  ("tail", tensor(storage(), 4, (2,), (1,))),
  ("scalar", tensor(storage(), 5, (), ())),
  ("empty", tensor(storage(), 0, (0, 3), (3, 1))),
)
W = ("w", tensor(storage(), 0, (6,), (1,)))
WRITERS = pytest.mark.parametrize("write", [as_zip, as_stream])


@WRITERS
def test_tensors_and_views_come_back(write):
  found = read_state_dict(write(GOOD, {"0": SIX.tobytes()}), "file")
  whole = SIX.reshape(2, 3)
  expected = {
    "whole": whole, "transposed": whole.T, "tail": SIX[4:], "scalar": SIX[5],
    "empty": np.zeros((0, 3), np.float32),
  }  # fmt: skip
  assert list(found) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == np.float32
    assert found[name].flags.c_contiguous
    assert found[name].flags.owndata
    assert found[name].flags.writeable


@WRITERS
def test_names_of_python_2_and_a_plain_dict(write):
  """Protocol 2 of Python 2 writes byte strings, and `{}` needs no OrderedDict."""
  pickled = b"\x80\x02}(U\x01w" + tensor(storage(), 0, (6,), (1,)) + b"u."
  np.testing.assert_array_equal(
    read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")["w"], SIX
  )


@WRITERS
def test_metadata_of_a_module_is_passed_over(write):
  """`Module.state_dict()` hangs a `_metadata` on its dict."""
  metadata = b"}" + text("_metadata") + ORDERED_DICT + b")Rsb"
  pickled = state(("w", tensor(storage(), 0, (6,), (1,))), after=metadata)
  assert list(read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")) == ["w"]


@pytest.mark.parametrize(
  ("kind", "dtype"),
  [("Double", "f8"), ("Half", "f2"), ("Long", "i8"), ("Int", "i4"), ("Short", "i2"),
   ("Char", "i1"), ("Byte", "u1"), ("Bool", "?")],
)  # fmt: skip
def test_every_type(kind, dtype):
  values = np.array([0, 1, 1], dtype)
  pickled = state(
    ("w", tensor(storage(num=3, kind=f"ctorch\n{kind}Storage\n".encode()), 0, (3,), (1,)))
  )
  contents = {"0": values.tobytes()}
  files = [as_zip(pickled, contents), as_stream(pickled, contents, widths=(values.itemsize,))]
  for file in files:
    found = read_state_dict(file, "file")["w"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def malicious(module, name, argument):
  return f"c{module}\n{name}\n".encode() + tuple_of(text(argument)) + b"R"


@WRITERS
@pytest.mark.parametrize(
  ("module", "name"),
  [("posix", "system"), ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"),
   ("torch", "load"), ("torch._utils", "_rebuild_tensor"), ("torch", "Generator"),
   ("collections", "OrderedDict.fromkeys")],
)  # fmt: skip
def test_other_names_are_refused_and_not_called(write, module, name, tmp_path):
  marker = tmp_path / "executed"
  file = write(state(("w", malicious(module, name, f"touch {marker}"))), {})
  with pytest.raises(UserError, match=rf"asks for '{module}\.{name}', which is refused"):
    read_state_dict(file, "file")
  assert not marker.exists()


def test_the_attack_works_on_pickle_itself(tmp_path):
  """The files above are dangerous: an unguarded unpickler does run the command."""
  marker = tmp_path / "executed"
  pickle.loads(state(("w", malicious("posix", "system", f"touch {marker}"))))
  assert marker.exists()


def test_the_other_pickles_of_a_stream_may_name_nothing(tmp_path):
  marker = tmp_path / "executed"
  attack = b"\x80\x02" + malicious("posix", "system", f"touch {marker}") + b"."
  good = as_stream(GOOD, {"0": SIX.tobytes()})
  for part in (MAGIC, PROTOCOL, ["0"]):
    file = good.replace(pickle.dumps(part, 2), attack, 1)
    assert file != good
    with pytest.raises(UserError, match=r"asks for 'posix\.system'"):
      read_state_dict(file, "file")
  with pytest.raises(UserError, match="holds no dict"):
    read_state_dict(b"\x80\x02" + ORDERED_DICT + b".", "file")
  assert not marker.exists()


@WRITERS
@pytest.mark.parametrize("thing", [ORDERED_DICT, REBUILD, FLOAT, storage(), W[1]])
def test_nothing_can_be_set_on_what_a_pickle_gets(write, thing):
  """BUILD sets attributes; with (None, {...}) even on classes."""
  for build in (b"}" + text("a") + number(1) + b"sb", b"N}" + text("a") + number(1) + b"s\x86b"):
    file = write(state(W, ("x", thing + build)), {"0": SIX.tobytes()})
    with pytest.raises(UserError, match="sets an attribute of a"):
      read_state_dict(file, "file")


@WRITERS
def test_attributes_of_the_dict_change_nothing(write):
  hide = b"N}" + text("items") + number(1) + b"s" + text("keys") + number(1) + b"s\x86b"
  pickled = state(("w", tensor(storage(), 0, (6,), (1,))), after=hide)
  assert list(read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")) == ["w"]


BAD = {
  "beyond its storage": [
    state(("w", tensor(storage(), 1, (6,), (1,)))),
    state(("w", tensor(storage(), 0, (2, 3), (4, 1)))),
    state(("w", tensor(storage(), 7, (), ()))),
    state(("w", tensor(storage(), 0, (10**9,), (0,)))),  # would fill the memory
  ],
  "no valid shape": [
    state(("w", tensor(storage(), 0, (-1,), (1,)))),
    state(("w", tensor(storage(), 5, (6,), (-1,)))),
    state(("w", tensor(storage(), -1, (1,), (1,)))),
    state(("w", tensor(storage(), 0, (6,), (1, 1)))),
  ],
  "described in two ways": [state(W, ("v", tensor(storage(num=5), 0, (5,), (1,))))],
  "no valid key or length": [state(("w", tensor(storage(num=-1), 0, (0,), (1,))))],
  "of an unknown kind": [
    state(("w", tensor(storage(kind=text("FloatStorage")), 0, (6,), (1,)))),
    state(("w", tensor(storage(view=(tuple_of(text("0"), number(0), number(3)),)), 0, (3,), (1,)))),
  ],
  "no storage or no shape": [state(("w", REBUILD + tuple_of(*[b"N"] * 6) + b"R"))],
  "(is no tensor|list of storages)": [state(("w", number(1))), state(W, ("v", storage())),
                   b"\x80\x02}" + number(1) + tensor(storage(), 0, (6,), (1,)) + b"s."],
  "(holds no dict|list of storages)": [
    b"\x80\x02" + number(1) + b".", b"\x80\x02" + storage() + b"."],
  "INST, which is refused": [b"\x80\x02(iposix\nsystem\n."],
  r"asks for 'posix\.system', which is refused": [
    b"\x80\x04" + text("posix") + text("system") + b"\x93."],
}  # fmt: skip


@WRITERS
@pytest.mark.parametrize(("reason", "pickled"), [(r, p) for r, ps in BAD.items() for p in ps])
def test_what_is_no_dict_of_tensors_is_refused(write, reason, pickled):
  with pytest.raises(UserError, match=f"^file is no readable PyTorch state dict: .*{reason}"):
    read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")


@WRITERS
def test_every_truncation_is_refused_in_one_line(write):
  file = write(GOOD, {"0": SIX.tobytes()})
  for num in range(0, len(file), 13):
    with pytest.raises(UserError) as refusal:
      read_state_dict(file[:num], "file")
    assert "\n" not in str(refusal.value)


@WRITERS
def test_a_storage_of_another_length_is_refused(write):
  for values in (SIX[:5], np.arange(7, dtype=np.float32)):
    with pytest.raises(UserError, match="a storage has"):
      read_state_dict(write(GOOD, {"0": values.tobytes()}), "file")


def nested(depth):
  """A dict whose key is a tuple in a tuple in a tuple ...: hashing it recurses in C."""
  return b"\x80\x02}" + b")" + b"\x85" * depth + b"]s."


MANY = b"\x80\x02" + ORDERED_DICT + b"q\0"
LARGE = b"\x8a\xff" + b"\x7f" * 255
BOMBS = {
  "lists": (b"\x80\x02" + b"]" * 6000 + b".", "more than 5,000 opcodes"),
  "dicts": (MANY + b"h\0)R" * 2000 + b".", "more than 5,000 opcodes"),
  "deep": (nested(4900), "a key that is a tuple"),
  "deep through the memo": (
    b"\x80\x02}" + b")" + b"\x85q\1h\1\x86" * 900 + b"]s.",
    "a key that is a tuple",
  ),
  "dimensions": (state(("w", tensor(storage(), 0, (1,) * 100, (1,) * 100))), "no valid shape"),
  "endless numbers": (
    state(("w", tensor(storage(), 0, (1, 1), (1, 1)).replace(number(1), LARGE, 1))),
    "no valid shape",
  ),
}


@WRITERS
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_would_fill_the_memory_or_the_stack_are_refused(write, name, monkeypatch):
  monkeypatch.setattr("diffusion_jax.weight_files.pickles.MAX_OPCODES", 5000)
  pickled, reason = BOMBS[name]
  with pytest.raises(UserError, match=f"^file is no readable PyTorch state dict: .*{reason}"):
    read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")


def test_views_of_one_storage_may_not_be_many_times_the_file():
  num = 100_000
  whole = tensor(storage(num=num), 0, (num,), (1,))
  contents = {"0": bytes(4 * num)}
  tied = as_zip(state(*[(f"w{i}", whole) for i in range(4)]), contents)
  assert len(read_state_dict(tied, "file")) == 4
  bomb = as_zip(state(*[(f"w{i}", whole) for i in range(50)]), contents)
  with pytest.raises(UserError, match="its tensors would take 2,000,000 bytes, the file has 4"):
    read_state_dict(bomb, "file")


def test_members_that_share_their_bytes_are_refused():
  """Entries of an archive's directory may all lead to one place in the file."""
  wanted = state(*[(f"w{i}", tensor(storage(str(i)), 0, (6,), (1,))) for i in range(400)])
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name, content in (("data.pkl", wanted), ("version", b"3"), ("data/0", bytes(1 << 16))):
      archive.writestr(f"archive/{name}", content)
    one = archive.infolist()[-1]
    for i in range(1, 400):
      other = copy.copy(one)
      other.filename = f"archive/data/{i}"
      archive.filelist.append(other)
    archive._didModify = True
  with pytest.raises(UserError, match="its members share their bytes"):
    read_state_dict(file.getvalue(), "file")


def test_streams_that_differ_are_refused():
  contents = {"0": SIX.tobytes()}
  for match, file in {
    "magic number": as_stream(GOOD, contents, magic=MAGIC + 1),
    "protocol 1000 is unknown": as_stream(GOOD, contents, protocol=1000),
    "not little-endian": as_stream(GOOD, contents, little=False),
    "1 bytes follow its end": as_stream(GOOD, contents) + b"\0",
    "list of storages": as_stream(GOOD, {"1": SIX.tobytes()}),
  }.items():
    with pytest.raises(UserError, match=match):
      read_state_dict(file, "file")


def test_archives_that_differ_are_refused():
  contents = {"0": SIX.tobytes()}
  flipped = bytearray(as_zip(GOOD, contents))
  flipped[flipped.index(SIX.tobytes()) + 5] ^= 1
  for match, file in {
    "version b'4'": as_zip(GOOD, contents, version=b"4"),
    "not little-endian": as_zip(GOOD, contents, byteorder=b"big"),
    "missing or compressed": as_zip(GOOD, contents, compression=zipfile.ZIP_DEFLATED),
    "'data/0' is missing": as_zip(GOOD, {}),
    "0 members data.pkl": as_zip(GOOD, contents).replace(b"data.pkl", b"data.pkk"),
    "CRC": bytes(flipped),
  }.items():
    with pytest.raises(UserError, match=match):
      read_state_dict(file, "file")


@WRITERS
def test_random_damage_gives_arrays_or_one_error(write):
  file, rng = write(GOOD, {"0": SIX.tobytes()}), np.random.default_rng(0)
  refused = 0
  for _ in range(60):
    damaged = bytearray(file)
    damaged[rng.integers(len(file))] = rng.integers(256)
    try:
      found = read_state_dict(bytes(damaged), "file")
      assert all(isinstance(array, np.ndarray) and array.size <= 6 for array in found.values())
    except UserError:
      refused += 1
  assert refused > 30


@WRITERS
def test_a_far_place_in_the_memo_takes_no_memory(write):
  pickled = state(W).replace(b"u.", b"ur\xff\xff\xff\x7f.")
  assert list(read_state_dict(write(pickled, {"0": SIX.tobytes()}), "file")) == ["w"]
