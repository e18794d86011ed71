"""Writes PyTorch's two containers opcode by opcode, without torch: also what it would not write."""

import io
import pickle
import struct
import zipfile

import numpy as np

from diffusion_jax.weight_files.torch_file import MAGIC, PROTOCOL

ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOAT = b"ctorch\nFloatStorage\n"


def text(value):
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
  return b"J" + struct.pack("<i", value)


def tuple_of(*items):
  return b"(" + b"".join(items) + b"t"


def storage(key="0", num=6, kind=FLOAT, view=()):
  return tuple_of(text("storage"), kind, text(key), text("cpu"), number(num), *view) + b"Q"


def tensor(where, offset, shape, strides):
  place = [number(offset), tuple_of(*map(number, shape)), tuple_of(*map(number, strides))]
  return REBUILD + tuple_of(where, *place, b"\x89", ORDERED_DICT + b")R") + b"R"


def state(*entries, after=b""):
  pairs = b"".join(text(name) + content for name, content in entries)
  return b"\x80\x02" + ORDERED_DICT + b")R(" + pairs + b"u" + after + b"."


def as_zip(pickled, storages, version=b"3\n", byteorder=b"little", **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **options) as archive:
    archive.writestr("archive/data.pkl", pickled)
    archive.writestr("archive/version", version)
    archive.writestr("archive/byteorder", byteorder)
    for key, content in storages.items():
      archive.writestr(f"archive/data/{key}", content)
  return file.getvalue()


def as_stream(pickled, storages, magic=MAGIC, protocol=PROTOCOL, little=True, widths=(4,)):
  system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
  head = b"".join(pickle.dumps(part, 2) for part in (magic, protocol, system))
  contents = [
    struct.pack("<q", len(content) // width) + content
    for content, width in zip(storages.values(), widths * len(storages), strict=False)
  ]
  return head + pickled + pickle.dumps(list(storages), 2) + b"".join(contents)


def contiguous(state_dict):
  """The pickle of a state dict of float32 arrays and its storages by key."""
  entries, contents = [], {}
  for i, (name, array) in enumerate(state_dict.items()):
    strides = [step // array.itemsize for step in array.strides]
    entries.append((name, tensor(storage(str(i), array.size), 0, array.shape, strides)))
    contents[str(i)] = array.tobytes()
  return state(*entries), contents


class Call:
  """A call in a pickle of a function or class by its name, with a state that BUILD sets."""

  def __init__(self, name, *args, state=None, new=False):
    self.module, _, self.name = name.rpartition(".")
    self.args, self.state, self.new = args, state, new


class Global:
  """A name in a pickle that is not called."""

  def __init__(self, name):
    self.module, _, self.name = name.rpartition(".")


def pickled(value):
  """A pickle of protocol 4 of plain values, calls and raw opcodes, `Raw`."""
  return b"\x80\x04" + opcodes(value) + b"."


class Raw(bytes):
  """Opcodes that are put into a pickle as they are."""


def opcodes(value):
  if isinstance(value, Raw):
    return bytes(value)
  if isinstance(value, Global):
    return text(value.module) + text(value.name) + b"\x93"
  if isinstance(value, Call):
    made = opcodes(Global(f"{value.module}.{value.name}")) + opcodes(value.args)
    made += b"\x81" if value.new else b"R"
    return made if value.state is None else made + opcodes(value.state) + b"b"
  if isinstance(value, dict):
    return b"}(" + b"".join(opcodes(part) for pair in value.items() for part in pair) + b"u"
  if isinstance(value, list):
    return b"](" + b"".join(map(opcodes, value)) + b"e"
  if isinstance(value, tuple):
    return tuple_of(*map(opcodes, value))
  if isinstance(value, str):
    return text(value)
  if isinstance(value, bytes):
    return b"B" + struct.pack("<I", len(value)) + value
  return pickle.dumps(value, 2)[2:-1]  # numbers and None, which use no memo


def plain_tensor(array, kind="FloatStorage"):
  """A tensor in a plain pickle: its storage is a stream of its own."""
  array = np.ascontiguousarray(array)
  where = b"\x80\x02" + storage("7", array.size, f"ctorch\n{kind}\n".encode()) + b"."
  stream = as_stream(where, {"7": array.tobytes()}, widths=(array.itemsize,))
  strides = tuple(step // array.itemsize for step in array.strides)
  loaded = Call("torch.storage._load_from_bytes", stream)
  hooks = Call("collections.OrderedDict")
  return Call("torch._utils._rebuild_tensor_v2", loaded, 0, array.shape, strides, False, hooks)


def parameter(array):
  hooks = Call("collections.OrderedDict")
  return Call("torch._utils._rebuild_parameter", plain_tensor(array), True, hooks)


def persistent(class_name, source="raise SystemExit", version=6, **state):
  """An object as NVlabs' persistence pickles it, with source text that must never run."""
  meta = {"type": "class", "version": version, "module_src": source, "class_name": class_name}
  return Call("torch_utils.persistence._reconstruct_persistent_obj", {**meta, "state": state})


def module_state(parameters=(), buffers=(), modules=(), **attributes):
  """The attributes of a torch.nn module."""
  return {
    "training": False, "_parameters": dict(parameters), "_buffers": dict(buffers),
    "_non_persistent_buffers_set": Raw(b"\x8f"), "_forward_hooks": Call("collections.OrderedDict"),
    "_modules": dict(modules), **attributes,
  }  # fmt: skip
