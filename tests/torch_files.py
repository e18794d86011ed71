"""Writes PyTorch's two containers opcode by opcode, without torch: also what it would not write."""

import io
import pickle
import struct
import zipfile

from diffusion_jax.models.inception.torch_file import MAGIC, PROTOCOL

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
