"""Reads the pickle inside a torch file without building anything of what it describes.

`torch.load(weights_only=True)` executes no foreign code, but it does allocate what the file asks
for and calls the constructors that it was allowed to call. So the same few opcodes are followed
here with inert records in the place of objects: first look, then load.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, TypeVar

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.wording import quoted, sized

_T = TypeVar("_T")
PICKLE_BYTES = 64 << 20
_OPERATIONS = 1_000_000
_ORDERED_DICT = "collections.OrderedDict"
_COUNTER = "collections.Counter"
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "LONG1", "SHORT_BINSTRING"}
_FAULTS = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Name:
    """A global that the pickle names: `torch._utils._rebuild_tensor_v2`."""

    path: str


@dataclass(eq=False)
class Call:
    """An object that the pickle would make: by a call, or (`new`) without its constructor."""

    target: object
    arguments: tuple[object, ...]
    new: bool
    state: object = None
    built: bool = False


@dataclass(eq=False, frozen=True)
class Stored:
    """A reference to the bytes of a tensor, which lie outside the pickle."""

    reference: tuple[object, ...]


@dataclass
class Outline:
    """What one pickle describes. `value` holds dicts, lists, tuples, literals and the records."""

    value: object = None
    names: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)


def outline_of(stream: BinaryIO, name: str) -> Outline:
    """Follow one pickle of protocol 2 up to its end; `name` is the file's, for messages.

    Raises InputError when it is damaged or holds what torch.save never writes, UnsafeFileError
    when it is absurdly long.
    """
    machine = _Machine()
    try:
        for count, (code, argument) in enumerate(_operations(stream)):
            if count > _OPERATIONS:
                raise _too_long(name, f"more than {_OPERATIONS} pickle operations")
            machine.step(code, argument)
        machine.outline.value = machine.stack.pop()
    except _Foreign as error:
        raise InputError(
            expected="a file written by torch.save with its default pickle protocol",
            found=f"{quoted(name)} with the pickle operation {error}",
            todo="Save it again with torch.save(object, path), without pickle_protocol.",
        ) from error
    except _FAULTS as error:
        raise InputError(
            expected="a complete torch file",
            found=f"{quoted(name)}, whose pickle is damaged",
            todo="Write or copy it again.",
        ) from error
    return machine.outline


def bounded(stream: BinaryIO, name: str) -> io.BytesIO:
    """The first 64 MiB of `stream` in memory; a pickle that is longer than that is cut off."""
    raw = stream.read(PICKLE_BYTES)
    if not raw:
        raise _too_long(name, "no pickle")
    return io.BytesIO(raw)


def require_short(count: int, name: str) -> None:
    """Raise UnsafeFileError when a pickle of `count` bytes is too long to be looked through."""
    if count > PICKLE_BYTES:
        raise _too_long(name, f"a pickle of {sized(count)}")


def globals_of(raw: bytes) -> tuple[str, ...]:
    """Every global that a pickle of any protocol names, as far as it can be read; sorted."""
    found = set()
    texts: list[str] = []
    try:
        for code, argument in islice(_operations(io.BytesIO(raw)), _OPERATIONS):
            if code == "GLOBAL":
                found.add(_path(str(argument)))
            elif code == "STACK_GLOBAL" and len(texts) >= 2:
                found.add(f"{texts[-2]}.{texts[-1]}")
            elif isinstance(argument, str):
                texts.append(argument)
    except _FAULTS:
        pass  # a truncated pickle: what was named before the end is still worth telling
    return tuple(sorted(found))


def _operations(stream: BinaryIO) -> Iterator[tuple[str, object]]:
    """Opcodes with their arguments. Python warns of odd escapes in a damaged name; it may not."""
    operations = pickletools.genops(stream)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            following = next(operations, None)
        if following is None:
            return
        yield following[0].name, following[1]


def _too_long(name: str, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        expected="a torch file with a short description and its numbers beside it",
        found=f"{quoted(name)} with {what}",
        todo="Save tensors only, with torch.save or safetensors.",
    )


def _path(argument: str) -> str:
    """`module name` as torch reads it, Python 2 names translated."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


class _Foreign(Exception):
    """An operation that torch.save does not write."""


class _Machine:
    """The stack machine of pickle, reduced to what `weights_only` knows."""

    def __init__(self) -> None:
        self.outline = Outline()
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def step(self, code: str, argument: object) -> None:
        if code in _LITERALS:
            self.stack.append(argument)
        elif code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in {"BINPUT", "LONG_BINPUT"}:
            self.memo[_integer(argument)] = self.stack[-1]
        elif code in {"BINGET", "LONG_BINGET"}:
            self.stack.append(self.memo[_integer(argument)])
        elif code == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif code == "GLOBAL":
            self._name(str(argument))
        elif code == "PROTO" and argument != 2:
            raise _Foreign(f"PROTO {argument}")
        elif code not in {"PROTO", "STOP"}:
            self._collect(code)

    def _name(self, argument: str) -> None:
        path = _path(argument)
        self.outline.names.add(path)
        self.stack.append(Name(path))

    def _collect(self, code: str) -> None:
        if code.startswith("EMPTY_") and code != "EMPTY_SET":
            self.stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[code])
        elif code in {"TUPLE1", "TUPLE2", "TUPLE3"}:
            count = int(code[-1])
            self.stack[-count:] = [_exactly(self.stack[-count:], count)]
        elif code == "TUPLE":
            items = self._since_mark()
            self.stack.append(tuple(items))
        elif code in {"APPEND", "APPENDS"}:
            items = [self.stack.pop()] if code == "APPEND" else self._since_mark()
            _a(list, self.stack[-1]).extend(items)
        elif code in {"SETITEM", "SETITEMS"}:
            items = [self.stack.pop(-2), self.stack.pop()] if code == "SETITEM" else []
            items = items or self._since_mark()
            _a(dict, self.stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        else:
            self._make(code)

    def _make(self, code: str) -> None:
        if code == "BINPERSID":
            stored = Stored(_a(tuple, self.stack.pop()))
            self.outline.stored.append(stored)
            self.stack.append(stored)
        elif code in {"REDUCE", "NEWOBJ"}:
            arguments = _a(tuple, self.stack.pop())
            self.stack[-1] = self._called(self.stack[-1], arguments, new=code == "NEWOBJ")
        elif code == "BUILD":
            state = self.stack.pop()
            _build(self.stack[-1], state)
        else:
            raise _Foreign(code)

    def _called(self, target: object, arguments: tuple[object, ...], *, new: bool) -> object:
        path = target.path if isinstance(target, Name) else ""
        if path in {_ORDERED_DICT, _COUNTER} and not new:
            return dict(*arguments)
        call = Call(target, arguments, new)
        self.outline.calls.append(call)
        return call

    def _since_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marks.pop()
        return items


def _build(target: object, state: object) -> None:
    if isinstance(target, dict):
        return  # attributes of an OrderedDict: state_dict versions, which nothing here reads
    call = _a(Call, target)
    if call.built:  # a second state could replace what the first one was checked for
        raise TypeError("built twice")
    call.state = state
    call.built = True


def _exactly(items: list[object], count: int) -> tuple[object, ...]:
    if len(items) != count:
        raise IndexError("stack is too short")
    return tuple(items)


def _integer(value: object) -> int:
    return _a(int, value)


def _a(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected")
    return value
