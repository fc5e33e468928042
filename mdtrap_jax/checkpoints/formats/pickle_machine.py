"""Reads pickles as data: a small machine that knows no callable and makes no object.

`pickle.Unpickler` calls what a pickle names and sets the state of what it made; refusing names is
not enough (a state set on a NumPy dtype changes the dtype of the whole process). Here a name
becomes a `Name`, a call a `Call`, an object an `Instance`: inert records that the reader of a
format interprets afterwards. Torch's own safe reader is such a machine too.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_BYTES = 2**26  # of a pickle; tensors' data lie elsewhere
MOST_OPERATIONS = 2**19  # a model of 2,000 tensors needs 60,000
_MARK = object()
_CONSTANTS = {
  "NONE": None,
  "NEWTRUE": True,
  "NEWFALSE": False,
}
_LITERALS = {
  "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
  "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
  """A pickle that is damaged, too large, or does what data need not do."""


class Name(NamedTuple):
  """A module's attribute that the pickle names; nothing is imported."""

  module: str
  name: str

  def __str__(self):
    return f"{self.module}.{self.name}"


class Persistent(NamedTuple):
  """A reference to something outside the pickle."""

  key: Any


class Call(NamedTuple):
  """A call that the pickle asks for; nothing is called."""

  function: Name
  arguments: tuple[Any, ...]


class Instance:
  """An object that the pickle would make, and the state that it would get."""

  __slots__ = ("function", "state")

  def __init__(self, function: Name):
    self.function = function
    self.state = None


def read_pickle(data: bytes, check_name: Callable[[Name], None]) -> Any:
  """What a pickle holds: dictionaries, lists, tuples, numbers, text and the records above.

  Args:
    data: the pickle.
    check_name: raises for a name that the format does not need, before anything else is read.

  Raises:
    PickleError: it is truncated, too large, or does what no plain data need.
  """
  if len(data) > MOST_BYTES:
    raise PickleError(f"its pickle has {len(data)} bytes, more than the {MOST_BYTES} allowed")
  machine = _Machine(check_name)
  for number, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
    if number == MOST_OPERATIONS:
      raise PickleError(f"its pickle has more than {MOST_OPERATIONS} operations")
    if opcode.name == "STOP":
      return machine.pop()
    machine.run(opcode.name, argument)
  raise PickleError("its pickle has no end")


class _Machine:
  """Stack and memo."""

  def __init__(self, check_name: Callable[[Name], None]):
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._check_name = check_name

  def pop(self) -> Any:
    """The top of the stack."""
    if not self._stack or self._stack[-1] is _MARK:
      raise PickleError("its pickle takes more than it has put")
    return self._stack.pop()

  def run(self, operation: str, argument: Any) -> None:
    """One operation."""
    push = self._stack.append
    if operation in _LITERALS:
      push(argument)
    elif operation in _CONSTANTS:
      push(_CONSTANTS[operation])
    elif operation in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
      top = self.pop()
      self._memo[len(self._memo) if operation == "MEMOIZE" else argument] = top
      push(top)
    elif operation in ("BINGET", "LONG_BINGET"):
      push(self._memo[argument])
    elif operation == "MARK":
      push(_MARK)
    elif operation == "EMPTY_DICT":
      push({})
    elif operation == "EMPTY_LIST":
      push([])
    elif operation == "EMPTY_TUPLE":
      push(())
    elif operation == "TUPLE":
      push(tuple(self._marked()))
    elif operation in _TUPLES:
      push(tuple([self.pop() for _ in range(_TUPLES[operation])][::-1]))
    elif operation in ("APPEND", "APPENDS"):
      items = self._marked() if operation == "APPENDS" else [self.pop()]
      self._top(list).extend(items)
    elif operation in ("SETITEM", "SETITEMS"):
      items = self._marked() if operation == "SETITEMS" else [self.pop(), self.pop()][::-1]
      self._set_items(items)
    elif operation in ("GLOBAL", "STACK_GLOBAL"):
      if operation == "GLOBAL":
        module, _, name = argument.partition(" ")
      else:
        name, module = self.pop(), self.pop()
      push(self._name(module, name))
    elif operation == "BINPERSID":
      push(Persistent(self.pop()))
    elif operation in ("REDUCE", "NEWOBJ"):
      arguments, function = self.pop(), self.pop()
      push(_made(function, arguments, operation))
    elif operation == "BUILD":
      state = self.pop()
      # An ordered dictionary's state holds attributes beside its items; no weights.
      if not isinstance(self._stack[-1] if self._stack else None, dict):
        self._top(Instance).state = state
    elif operation not in ("PROTO", "FRAME"):
      raise PickleError(f"its pickle has the operation {operation}, which weights do not need")

  def _name(self, module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
      raise PickleError("its pickle has a name that is no text")
    self._check_name(Name(module, name))
    return Name(module, name)

  def _top(self, kind: type) -> Any:
    if not self._stack or not isinstance(self._stack[-1], kind):
      raise PickleError(f"its pickle changes what is no {kind.__name__.lower()}")
    return self._stack[-1]

  def _marked(self) -> list[Any]:
    items = []
    while self._stack:
      if (item := self._stack.pop()) is _MARK:
        return items[::-1]
      items.append(item)
    raise PickleError("its pickle takes more than it has put")

  def _set_items(self, items: list[Any]) -> None:
    keys = items[::2]
    # Only these: hashing nested tuples may take for ever, or all of C's stack.
    if len(items) % 2 or not all(isinstance(key, str | int | float) for key in keys):
      raise PickleError("its pickle has a dictionary whose keys are no text or numbers")
    self._top(dict).update(zip(keys, items[1::2], strict=True))


def _made(function: Any, arguments: Any, operation: str) -> Any:
  if not isinstance(function, Name) or not isinstance(arguments, tuple):
    raise PickleError("its pickle calls what is no name")
  if function == ("collections", "OrderedDict") and not arguments:
    return {}
  return Instance(function) if operation == "NEWOBJ" else Call(function, arguments)
