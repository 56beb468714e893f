"""Pickles of plain data, read without the module `pickle` and without running anything that they name.

LeRobot's async protocol carries pickles. Here they are a small language with a machine of our own: the operations that
plain data need, on a stack. A name in a pickle is looked up in a table of explicit (module, name) pairs and stands for
a constructor of ours, never for an import; `REDUCE`, `NEWOBJ` and `BUILD` call nothing else. Everything else is
refused, with the reason.

The grammar (operations and their arguments) is the standard library's `pickletools`, which only takes bytes apart.
"""

from __future__ import annotations

import io
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embodied.errors import UserError

LARGEST_PICKLE_BYTES = 64 * 2**20
MOST_OPERATIONS = 20_000
MOST_VALUES = 10_000  # in the result, counted as often as they can be reached
DEEPEST = 8

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


class Refused(Exception):
    """What a pickle may not contain; becomes a `UserError` with the name of what it was read as."""


@dataclass(frozen=True)
class Call:
    """A name that may be called, with so many values, and the function of ours that it stands for.

    The function raises `Refused` for values that this kind of object does not have.
    """

    label: str
    count: int
    function: Callable[..., Any]


class Built(ABC):
    """An object that takes a state afterwards, by `BUILD`."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """
        Raises:
            Refused: another state than this kind of object has.
        """

    @property
    def inside(self) -> Any:
        """What its state holds, for the extent of a result."""
        return None


Names = Mapping[tuple[str, str], Any]  # what each stands for: a `Call`, or a value that others take as an argument


@dataclass(frozen=True)
class _Mark:
    """Where a tuple or a batch of items begins on the stack."""


_MARK = _Mark()


def read_pickle(data: bytes, names: Names, what: str) -> Any:
    """The value of a pickle: numbers, texts, bytes, tuples, lists, maps with texts as keys, and what `names` makes.

    Args:
        names: everything that a pickle may name.
        what: it is read as, for the error.

    Raises:
        UserError: it is no whole pickle, too large, too deep, or contains anything else.
    """
    try:
        if len(data) > LARGEST_PICKLE_BYTES:
            raise Refused(f"{len(data)} bytes, more than {LARGEST_PICKLE_BYTES}")
        stream = io.BytesIO(data)
        value = read_from(stream, names)
        if stream.tell() != len(data):
            raise Refused(f"{len(data) - stream.tell()} bytes behind its end")
        _check_extent(value)
        return value
    except Refused as error:
        raise UserError(
            expected=f"a pickle of {what}, of plain data alone",
            found=str(error),
            remedy="nothing of it was run; use LeRobot's own robot_client, of version 0.6",
        ) from error
    except (ValueError, TypeError, ArithmeticError, MemoryError, RecursionError) as error:
        # What a constructor of ours did not foresee in values that are not as its kind of object has them.
        raise UserError(
            expected=f"a pickle of {what}, of plain data alone",
            found=f"values that do not go together ({type(error).__name__})",
            remedy="nothing of it was run; use LeRobot's own robot_client, of version 0.6",
        ) from error


def read_from(stream: io.BytesIO, names: Names, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The next pickle of a stream, whose extent nobody has checked yet.

    Args:
        persistent: makes a value of a persistent id; None: there may be none.

    Raises:
        Refused: as `read_pickle`.
    """
    machine = _Machine(names, persistent)
    operations = pickletools.genops(stream)
    for _ in range(MOST_OPERATIONS):
        try:
            operation, argument, _ = next(operations)
        except StopIteration:
            raise Refused("no end") from None
        except Exception as error:  # whatever the standard library raises about bytes that are no pickle
            raise Refused(f"bytes that are no pickle ({type(error).__name__}: {str(error)[:80]})") from None
        if operation.name == "STOP":
            return machine.result()
        machine.run(operation.name, argument)
    raise Refused(f"more than {MOST_OPERATIONS} operations")


class _Machine:
    """A stack, a memo, and the operations on them."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self._names, self._persistent = names, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        value = self._pop()
        if self._stack:
            raise Refused("more than one value")
        return value

    def run(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _ARGUMENTS:
            self._stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _TUPLES:
            self._push_tuple(_TUPLES[name])
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        else:
            raise Refused(f"the operation {name}, which plain data do not need")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused("an operation without its operands")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise Refused("an operation without its mark")

    def _push_tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(values)))

    def mark(self, _: None) -> None:
        self._stack.append(_MARK)

    def marked_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def empty_list(self, _: None) -> None:
        self._stack.append([])

    def empty_dict(self, _: None) -> None:
        self._stack.append({})

    def append(self, _: None) -> None:
        self._append([self._pop()])

    def appends(self, _: None) -> None:
        self._append(self._pop_to_mark())

    def _append(self, values: list[Any]) -> None:
        target = self._pop()
        if type(target) is not list:
            raise Refused(f"items for {kind_of(target)}")
        target.extend(values)
        self._stack.append(target)

    def set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _: None) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._pop()
        if type(target) is not dict or len(items) % 2:
            raise Refused(f"items with keys for {kind_of(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # the hash of a tuple of tuples may take for ever
                raise Refused(f"{kind_of(key)} as a key")
            target[key] = value
        self._stack.append(target)

    def put(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self._stack.append(value)

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Refused("a value from its memo that was never put there")
        self._stack.append(self._memo[index])

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("a name that is no text")
        if (module, name) not in self._names:
            raise Refused(f"the name {module[:80]}.{name[:80]}")
        self._stack.append(self._names[module, name])

    def call(self, _: None) -> None:
        arguments, called = self._pop(), self._pop()
        if type(arguments) is not tuple or not isinstance(called, Call):
            raise Refused(f"a call of {kind_of(called)}")
        if len(arguments) != called.count:
            raise Refused(f"a call of {called.label} with {len(arguments)} values instead of {called.count}")
        self._stack.append(called.function(*arguments))

    def build(self, _: None) -> None:
        state, target = self._pop(), self._pop()
        if not isinstance(target, Built):
            raise Refused(f"a state for {kind_of(target)}")
        target.build(state)
        self._stack.append(target)

    def persistent_id(self, _: None) -> None:
        id = self._pop()
        if self._persistent is None:
            raise Refused("a reference to something outside of it")
        self._stack.append(self._persistent(id))


def _check_extent(value: Any) -> None:
    """
    Raises:
        Refused: it is too deep, contains itself, or the same things so often that walking it would take for ever.
    """
    waiting = [(value, 1)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise Refused(f"values nested more than {DEEPEST} deep")
        inside = value.inside if isinstance(value, Built) else value
        if isinstance(inside, dict):
            waiting += [(item, depth + 1) for item in inside.values()]
        elif isinstance(inside, list | tuple):
            waiting += [(item, depth + 1) for item in inside]
    raise Refused(f"more than {MOST_VALUES} values")


def kind_of(value: Any) -> str:
    """In words, without looking into it."""
    return value.label if isinstance(value, Call) else f"a {type(value).__name__}"


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.marked_tuple,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
