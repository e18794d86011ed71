"""Nested PyTorch files and plain pickles, written opcode by opcode, without torch."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from refused_weights import refusal
from torch_files import (
  Call,
  Global,
  Raw,
  as_stream,
  as_zip,
  module_state,
  parameter,
  persistent,
  pickled,
  plain_tensor,
  storage,
  tensor,
)

from diffusion_jax.weight_files.weight_file import read_weights

SIX = np.arange(6, dtype=np.float32)
WRITERS = pytest.mark.parametrize("write", [as_zip, as_stream])
WHOLE = Raw(tensor(storage(), 0, (2, 3), (3, 1)))
TIED = Raw(tensor(storage(), 4, (2,), (1,)))
HOOKS = Call("collections.OrderedDict")


@pytest.fixture
def file(tmp_path):
  """Return a function that writes bytes and gives their path."""

  def write(content, name="weights.any"):
    path = tmp_path / name
    path.write_bytes(content)
    return path

  return write


@WRITERS
def test_a_nested_file_has_groups_and_facts(write, file):
  arguments = Call("argparse.Namespace", new=True, state={"model": "SiT", "lr": 1e-4, "x": None})
  bias = Call("torch._utils._rebuild_parameter", TIED, True, HOOKS)
  content = {
    "model": {"a.weight": WHOLE, "a.bias": bias},
    "opt": {"state": {0: {"step": 3, "exp_avg": WHOLE}}, "param_groups": [{"betas": (0.9, 0.5)}]},
    "lists": [TIED, 7, (WHOLE,)], "args": arguments, "epoch": 3, "size": Call("torch.Size", (2, 3)),
    "device": Call("torch.device", "cuda", 1), "dtype": Global("torch.float16"),
  }  # fmt: skip
  path = file(write(pickled(content), {"0": SIX.tobytes()}))
  found = read_weights(path)
  assert list(found.arrays) == [
    "model/a.weight", "model/a.bias", "opt/state/0/exp_avg", "lists/0", "lists/2/0",
  ]  # fmt: skip
  assert list(found.groups) == ["model", "opt", "lists"]
  np.testing.assert_array_equal(found.groups["model"]["a.weight"], SIX.reshape(2, 3))
  np.testing.assert_array_equal(found.groups["model"]["a.bias"], SIX[4:])
  assert not found.arrays["lists/0"].flags.writeable
  assert found.facts == {
    "opt": {"state": {"0": {"step": 3}}, "param_groups": [{"betas": [0.9, 0.5]}]},
    "lists": {"1": 7}, "args": {"model": "SiT", "lr": 1e-4, "x": None}, "epoch": 3,
    "size": [2, 3], "device": "cuda:1", "dtype": "torch.float16",
  }  # fmt: skip


def test_arrays_of_a_file_share_its_memory(file):
  content = pickled({"a": WHOLE, "b": TIED})
  found = read_weights(file(as_zip(content, {"0": SIX.tobytes()})))
  assert found.groups == {}
  assert np.shares_memory(found.arrays["a"], found.arrays["b"])
  assert not found.arrays["a"].flags.owndata


@WRITERS
def test_bfloat16_and_newer_types(write, file):
  values = SIX.astype(ml_dtypes.bfloat16)
  where = storage(num=6, kind=b"ctorch\nBFloat16Storage\n")
  raw = storage("1", 6, b"ctorch.storage\nUntypedStorage\n")
  newer = Call("torch._utils._rebuild_tensor_v3", Raw(raw), 1, (2,), (1,), False, HOOKS,
               Global("torch.uint16"))  # fmt: skip
  content = pickled({"w": Raw(tensor(where, 0, (6,), (1,))), "u": newer})
  contents = {"0": values.tobytes(), "1": np.arange(3, dtype=np.uint16).tobytes()}
  options = {"widths": (2, 1)} if write is as_stream else {}
  found = read_weights(file(write(content, contents, **options))).arrays
  assert found["w"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(found["w"], values)
  np.testing.assert_array_equal(found["u"], np.array([1, 2], np.uint16))


def dtype(code, byteorder="<"):
  return Call("numpy.dtype", code, False, True, state=(3, byteorder, None, None, None, -1, -1, 0))


def numpy_array(array, kind=None):
  start = Call("numpy._core.multiarray._reconstruct", Global("numpy.ndarray"), (0,), b"b")
  start.state = (1, array.shape, kind or dtype(array.dtype.str[1:]), False, array.tobytes())
  return start


def test_numpy_values_of_a_plain_pickle(file):
  scalar = Call("numpy.core.multiarray.scalar", dtype("f8"), np.float64(2.5).tobytes())
  found = read_weights(file(pickled({"a": numpy_array(SIX), "s": scalar})))
  np.testing.assert_array_equal(found.arrays["a"], SIX)
  assert found.facts == {"s": 2.5}
  assert found.format == "pickle"


class TestModules:
  """Pickles of NVlabs: persistent objects with source text in them."""

  def network(self, **options):
    linear = persistent(
      "Linear", **module_state({"weight": parameter(SIX.reshape(2, 3)), "bias": None})
    )
    inner = module_state({}, {"freqs": plain_tensor(SIX)}, {"out": linear})
    block = Call("torch.nn.modules.container.ModuleDict", new=True, state=inner)
    easy = Call("dnnlib.util.EasyDict", new=True)
    return persistent("EDMPrecond", **{**module_state(
      {}, {}, {"model": block, "none": None}, sigma_data=0.5, _init_args=(32, 3),
      _init_kwargs={"model_type": "SongUNet", "extra": easy}), **options})  # fmt: skip

  def test_a_module_gives_dotted_names_and_its_arguments(self, file):
    loss = persistent("EDMLoss", P_mean=-1.2, _init_args=(), _init_kwargs={})
    found = read_weights(file(pickled({"ema": self.network(), "loss_fn": loss, "none": None})))
    assert list(found.arrays) == ["ema/model.freqs", "ema/model.out.weight"]
    np.testing.assert_array_equal(found.groups["ema"]["model.out.weight"], SIX.reshape(2, 3))
    assert found.facts["ema"] == {
      "class_name": "EDMPrecond", "init_args": [32, 3],
      "init_kwargs": {"model_type": "SongUNet", "extra": {}}, "attributes": {"sigma_data": 0.5},
      "modules": {"model": "ModuleDict", "model.out": "Linear"},
    }  # fmt: skip
    assert found.facts["loss_fn"]["attributes"] == {"P_mean": -1.2}
    assert found.facts["none"] is None

  def test_a_pickle_may_be_one_module(self, file):
    assert "model.out.weight" in read_weights(file(pickled(self.network()))).arrays

  def test_source_text_is_never_run(self, file, tmp_path):
    canary = tmp_path / "executed"
    network = persistent(
      "Net", f"open({str(canary)!r}, 'w')", **module_state({"w": parameter(SIX)})
    )
    assert list(read_weights(file(pickled({"ema": network}))).arrays) == ["ema/w"]
    assert not canary.exists()

  @pytest.mark.parametrize(
    ("options", "reason"),
    [
      ({"sigma": Global("torch.nn.functional.silu")}, "asks for 'torch.nn.functional.silu'"),
      ({"act": Global("torch.nn.modules.activation.SiLU")}, "neither an array nor a plain value"),
      ({"_parameters": {"w": 3}}, "'w' is no tensor"),
      ({"_modules": {"m": {"a": 1}}}, "its module 'm' is none"),
      ({"_parameters": [1]}, "_parameters of a EDMPrecond is no dict"),
      ({"version": 5}, "of version 5, not 6"),
    ],
  )  # fmt: skip
  def test_what_else_is_in_a_module_is_refused(self, options, reason, file):
    assert reason in refusal(file(pickled({"ema": self.network(**options)})))


def attacks(path):
  """Values that make Python's own unpickler run a command."""
  command = f"touch {path}"
  system = Global("posix.system")
  yield "GLOBAL", Raw(b"cposix\nsystem\n" + opcodes_of((command,)) + b"R")
  yield "REDUCE", Call("posix.system", command)
  yield "INST", Raw(b"(" + opcodes_of(command) + b"iposix\nsystem\n")
  yield "OBJ", Raw(b"(" + opcodes_of(system) + opcodes_of(command) + b"o")
  yield "NEWOBJ", Call("subprocess.Popen", ("touch", str(path)), new=True)
  yield "copyreg", Call("copyreg.__newobj__", Global("subprocess.Popen"), ("touch", str(path)))
  yield "reconstruct", Call("builtins.eval", f"__import__('os').system({command!r})")
  yield (
    "scalar",
    Call("numpy.core.multiarray.scalar", dtype("O8", "|"), Call("posix.system", command)),
  )


def opcodes_of(value):
  return pickled(value)[2:-1]


@pytest.mark.parametrize("number", range(8))
def test_an_attack_executes_nothing_wherever_it_is(number, file, tmp_path):
  canary = tmp_path / "executed"
  _, attack = list(attacks(canary))[number]
  module = persistent("Net", **module_state(), extra=attack)
  hidden = Call("torch._utils._rebuild_parameter", plain_tensor(SIX), attack, HOOKS)
  inner = as_stream(pickled(attack), {})
  contents = {"0": SIX.tobytes()}
  for content in (
    pickled(attack), pickled({"a": plain_tensor(SIX), "b": attack}), pickled({"a": module}),
    as_zip(pickled({"a": WHOLE, "b": [attack]}), contents), pickled({"a": hidden}),
    as_stream(pickled({"a": WHOLE, "b": attack}), contents),
    pickled({"a": Call("torch.storage._load_from_bytes", inner)}),
    pickled({"a": Call("argparse.Namespace", new=True, state={"x": attack})}),
  ):  # fmt: skip
    assert "refused" in (message := refusal(file(content))) or "type 'O8'" in message
    assert "nothing in it was executed" in message
  assert not canary.exists()


@pytest.mark.parametrize("name", ["GLOBAL", "REDUCE", "INST", "OBJ"])
def test_the_attacks_work_on_pickle_itself(name, tmp_path):
  canary = tmp_path / "executed"
  pickle.loads(pickled(dict(attacks(canary))[name]))
  assert canary.exists()


DEEP = Raw(b"]" * 200 + b"a" * 199)
ITSELF = Raw(b"]q\0h\0a")
LONG_KEY = Raw(b"}" + opcodes_of("k" * 2000) + opcodes_of(1) + b"s")
NO_BYTES = Call("torch._utils._rebuild_tensor_v2", Call("torch.storage._load_from_bytes", "x"), 0)
BAD = {
  "nested deeper than 60": [{"a": DEEP}, {"a": ITSELF}],
  "a name of 2,000 characters": [{"a": LONG_KEY}],
  "a key that is a tuple": [{"a": {(1, 2): 3}}],
  "a key that is a float": [{"a": {1.5: 3}}],
  "a key that is a bool": [{"a": {True: 3}}],
  "outermost dict has a key that is no text": [{0: parameter(SIX)}],
  "two entries named '1'": [{"a": {1: parameter(SIX), "1": parameter(SIX)}}],
  "a dict has two entries 'a'": [Raw(b"}" + 2 * (opcodes_of("a") + opcodes_of(1) + b"s"))],
  "one name when their paths are joined": [{"a/b": parameter(SIX), "a": {"b": parameter(SIX)}}],
  "holds no dict of arrays": [[1, 2], 3.5, parameter(SIX)],
  "holds no arrays": [{}, {"a": 1}],
  "sets an attribute of a Tensor": [{"a": Raw(opcodes_of(parameter(SIX)) + b"}b")}],
  "calls something that is no name": [Raw(b"K\x01)R")],
  "its stack is empty": [Raw(b"(R")],
  "asks for 'collections.defaultdict'": [{"a": Call("collections.defaultdict", None)}],
  "loads a storage in an unknown way": [{"a": NO_BYTES}],
  "loads something else than a storage": [
    {"a": Call("torch.storage._load_from_bytes", as_stream(pickled({"a": 1}), {}))}
  ],
  "not little-endian": [{"a": numpy_array(SIX, dtype("f4", ">"))}],
  "NumPy values of the type '>f4'": [{"a": numpy_array(SIX, Call("numpy.dtype", ">f4"))}],
  "NumPy values of the type 'O8'": [{"a": numpy_array(SIX, dtype("O8", "|"))}],
  "which its shape does not fit": [{"a": numpy_array(SIX[:5], dtype("f8"))}],
  "truth values other than 0 and 1": [
    {"a": plain_tensor(np.array([7], np.uint8), kind="BoolStorage")}
  ],
  "refers to something outside": [{"a": WHOLE}],
  "uses pickle's NEXT_BUFFER": [Raw(b"\x97")],
  "uses pickle's POP": [Raw(b"N0")],
  "is cut short or damaged": [Raw(b"\xff"), Raw(b"cposix"), Raw(b"c\n")],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "value"), [(r, v) for r, vs in BAD.items() for v in vs])
def test_what_is_not_weights_is_refused_in_one_line(reason, value, file):
  assert reason in refusal(file(pickled(value)))


def test_lists_of_one_list_that_double_at_each_level_are_refused(file, monkeypatch):
  monkeypatch.setattr("diffusion_jax.weight_files.flattening.MAX_NODES", 1000)
  doubled = b"".join(b"(h%ch%clq%c" % (i, i, i + 1) for i in range(40)).replace(b"l", b"t")
  value = {"memo": Raw(b"(]q\0" + doubled + b"t")}
  assert "has more than 1,000 values" in refusal(file(pickled(value)))


def test_one_storage_may_not_be_many_times_the_file(file):
  num = 10_000
  whole = Raw(tensor(storage(num=num), 0, (num,), (1,)))
  content = {"a": {f"w{i}": whole for i in range(50)}}
  path = file(as_zip(pickled(content), {"0": bytes(4 * num)}))
  assert "its tensors would take" in refusal(path)


def test_one_text_may_not_become_bytes_many_times(file):
  text = Raw(b"X\0\0\1\0" + b"a" * 2**16 + b"q\0")
  again = Call("_codecs.encode", Raw(b"h\0"), "latin1")
  content = {"w": parameter(SIX), "a": text, "b": [again] * 100}
  assert "would take" in refusal(file(pickled(content)))


def test_bytes_after_the_end_and_before_it(file):
  content = pickled({"a": parameter(SIX)})
  assert "1 bytes follow its end" in refusal(file(content + b"\0"))
  assert "2 bytes follow its end" in refusal(file(as_zip(pickled({}) + b"ab", {})))
  for length in range(2, len(content), 11):
    assert "no readable pickle" in refusal(file(content[:length]))


def test_an_archive_without_check_sums_is_read(file, monkeypatch):
  """PyTorch has an option to leave them out."""
  contents = {"0": SIX.tobytes()}
  with monkeypatch.context() as patch:
    patch.setattr(zipfile, "crc32", lambda *_: 0)
    content = as_zip(pickled({"a": WHOLE}), contents)
  np.testing.assert_array_equal(read_weights(file(content)).arrays["a"], SIX.reshape(2, 3))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(file):
  path = file(as_zip(pickled({"a": WHOLE}), {"0": SIX.tobytes()}))
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("archive/data/0", bytes(24))
  assert "two of its members have one name" in refusal(path)


def test_names_from_a_file_cannot_write_to_the_terminal(file):
  network = persistent("Net\x1b[31m", **{**module_state(), "_parameters": [1]})
  assert "\x1b" not in refusal(file(pickled({"ema": network})))


def test_a_torchscript_program_is_named(file):
  content = as_zip(pickled({}), {"../constants.pkl": b""})
  content = content.replace(b"data/../constants.pkl", b"constants.pkl" + b"\0" * 8)
  assert "TorchScript" in refusal(file(content))
