"""Run a pickle on a machine of its own, which makes only plain values and inert objects.

A pickle is a program. Python's unpickler lets it name any function and call it. This one has no
such means: a name is looked up in a table, whose entries make tuples, dicts and placeholders, and
any other name ends the reading. Every dict is a plain dict of text or integer keys, so nothing is
ever compared, hashed or printed in depth. Format: `pickletools.py` of Python.
"""

import io
import mmap
import pickletools
from collections.abc import Callable
from typing import Any

from diffusion_jax.weight_files.inert import Damaged, Refused

MAX_OPCODES = 1_000_000
"""Maximum opcodes of a file; a tensor needs about 40, and each makes at most 500 bytes."""

MAX_PROTOCOL = 5

BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}

VALUES = {
  "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
  "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
"""Opcodes that push their own argument."""

CONSTANTS: dict[str, Callable[[], Any]] = {
  "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
  "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
"""Opcodes that push a constant or a new container; a set becomes a list."""


Source = io.BytesIO | mmap.mmap
"""An open file of bytes in memory, or a memory map."""


class Name:
  """A name in a pickle and the function here that stands for it."""

  __slots__ = ("make", "text")

  def __init__(self, text: str, make: Callable[..., Any]):
    self.text, self.make = text, make


class Budget:
  """Number of opcodes that the pickles of one file may still have."""

  def __init__(self):
    self.left = MAX_OPCODES

  def spend(self) -> None:
    """Take one.

    Raises:
      Damaged: none is left.
    """
    self.left -= 1
    if self.left < 0:
      raise Damaged(f"it has more than {MAX_OPCODES:,} opcodes")


def _line(file: Source) -> str:
  line = file.readline()
  if not line.endswith(b"\n"):
    raise Damaged("a pickle is cut short or damaged")
  return line[:-1].decode()


def no_name(module: str, name: str) -> Any:
  """Refuse every name."""
  raise Refused(f"it asks for {f'{module}.{name}'!r:.80}, which is refused")


def no_storage(pid: Any) -> Any:
  """Refuse every reference to something outside the pickle."""
  raise Refused("it refers to something outside of it")


class Machine:
  """One run of a pickle.

  Args:
    budget: opcodes left.
    find: (module, name) -> a `Name`, or a plain value that the name stands for; raises Refused.
    persistent_load: value of a persistent id.
  """

  def __init__(
    self,
    budget: Budget,
    find: Callable[[str, str], Any] = no_name,
    persistent_load: Callable[[Any], Any] = no_storage,
  ):
    self._budget, self._find, self._persistent_load = budget, find, persistent_load
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def run(self, file: Source) -> Any:
    """Return the value of the next pickle of the file.

    Raises:
      Refused: it uses another opcode or name than weights need.
      Damaged, ValueError, LookupError: it is damaged.
    """
    while True:
      self._budget.spend()
      opcode = BY_CODE.get(file.read(1).decode("latin-1"))
      if opcode is None:
        raise Damaged("a pickle is cut short or damaged")
      if opcode.name == "STOP":
        return self._pop()
      if opcode.name not in ALLOWED:
        raise Refused(f"it uses pickle's {opcode.name}, which is refused")
      if opcode.name == "GLOBAL":
        value = (_line(file), _line(file))
      else:
        reader: Any = opcode.arg.reader if opcode.arg else None
        value = reader and reader(file)
      self._step(opcode.name, value)

  def _step(self, name: str, value: Any) -> None:
    if name in VALUES:
      self._stack.append(value)
    elif name in CONSTANTS:
      self._stack.append(CONSTANTS[name]())
    else:
      STEPS[name](self, value)

  def _pop(self) -> Any:
    if len(self._stack) <= (self._marks[-1] if self._marks else 0):
      raise Damaged("its stack is empty")
    return self._stack.pop()

  def _top(self) -> Any:
    value = self._pop()
    self._stack.append(value)
    return value

  def _pop_mark(self) -> list[Any]:
    mark = self._marks.pop()
    items = self._stack[mark:]
    del self._stack[mark:]
    return items

  def mark(self, _: Any) -> None:
    self._marks.append(len(self._stack))

  def protocol(self, number: Any) -> None:
    if number > MAX_PROTOCOL:
      raise Damaged(f"pickle protocol {number} is unknown")

  def frame(self, _: Any) -> None:
    pass

  def old_text(self, text: str) -> None:  # pickletools has decoded the bytes as latin-1
    self._stack.append(text.encode("latin-1").decode())

  def bytearray8(self, content: Any) -> None:
    self._stack.append(bytes(content))

  def put(self, index: int) -> None:
    self._memo[index] = self._top()

  def memoize(self, _: Any) -> None:
    self._memo[len(self._memo)] = self._top()

  def get(self, index: int) -> None:
    self._stack.append(self._memo[index])

  def tuple_of_mark(self, _: Any) -> None:
    self._stack.append(tuple(self._pop_mark()))

  def tuple_of(self, number: int) -> None:
    items = [self._pop() for _ in range(number)]
    self._stack.append(tuple(reversed(items)))

  def frozenset_of_mark(self, _: Any) -> None:
    self._stack.append(self._pop_mark())

  def append(self, _: Any) -> None:
    self._extend([self._pop()])

  def appends(self, _: Any) -> None:
    self._extend(self._pop_mark())

  def set_item(self, _: Any) -> None:
    value, key = self._pop(), self._pop()
    self._set([key, value])

  def set_items(self, _: Any) -> None:
    self._set(self._pop_mark())

  def _extend(self, items: list[Any]) -> None:
    if type(target := self._top()) is not list:
      raise Refused("it appends to something that is no list")
    target.extend(items)

  def _set(self, items: list[Any]) -> None:
    if type(target := self._top()) is not dict:
      raise Refused("it sets an item of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      if type(key) not in (str, int):
        raise Refused(f"a dict has a key that is a {type(key).__name__}, not a text")
      if key in target:
        raise Damaged(f"a dict has two entries {key!r:.60}")
      target[key] = value

  def global_name(self, names: tuple[str, str]) -> None:
    self._stack.append(self._find(*names))

  def stack_global(self, _: Any) -> None:
    name, module = self._pop(), self._pop()
    if type(module) is not str or type(name) is not str:
      raise Damaged("it asks for a name that is no text")
    self._stack.append(self._find(module, name))

  def call(self, _: Any) -> None:
    args, function = self._pop(), self._pop()
    if type(function) is not Name or type(args) is not tuple:
      raise Refused("it calls something that is no name")
    self._stack.append(function.make(*args))

  def build(self, _: Any) -> None:
    """Set attributes. Those of a dict, such as a module's `_metadata`, are left out."""
    state, target = self._pop(), self._top()
    if type(target) is dict:
      return
    if type(target) is Name or not hasattr(target, "set_state"):
      raise Refused(f"it sets an attribute of a {type(target).__name__}")
    target.set_state(state)

  def persistent(self, _: Any) -> None:
    self._stack.append(self._persistent_load(self._pop()))


STEPS: dict[str, Callable[[Machine, Any], None]] = {
  "MARK": Machine.mark, "PROTO": Machine.protocol, "FRAME": Machine.frame,
  "BINSTRING": Machine.old_text, "SHORT_BINSTRING": Machine.old_text,
  "BYTEARRAY8": Machine.bytearray8,
  "BINPUT": Machine.put, "LONG_BINPUT": Machine.put, "MEMOIZE": Machine.memoize,
  "BINGET": Machine.get, "LONG_BINGET": Machine.get,
  "TUPLE": Machine.tuple_of_mark, "FROZENSET": Machine.frozenset_of_mark,
  "TUPLE1": lambda machine, _: machine.tuple_of(1),
  "TUPLE2": lambda machine, _: machine.tuple_of(2),
  "TUPLE3": lambda machine, _: machine.tuple_of(3),
  "APPEND": Machine.append, "APPENDS": Machine.appends, "ADDITEMS": Machine.appends,
  "SETITEM": Machine.set_item, "SETITEMS": Machine.set_items,
  "GLOBAL": Machine.global_name, "STACK_GLOBAL": Machine.stack_global,
  "REDUCE": Machine.call, "NEWOBJ": Machine.call, "BUILD": Machine.build,
  "BINPERSID": Machine.persistent,
}  # fmt: skip
"""Opcodes that change the stack or the memo; see `Machine`."""

ALLOWED = VALUES | CONSTANTS.keys() | STEPS.keys()
