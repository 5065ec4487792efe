"""Reads pickles of plain data without Python's unpickler, which calls whatever a file names.

A small machine runs the opcodes of protocols 0 to 5. It builds only dicts, lists, tuples, numbers, text, bytes, and
NumPy arrays of integers. Nothing that a file names is imported or called. The few names by which NumPy and Python store
arrays and bytes are recognised as text, and any other name is refused.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastdfkd_jax.errors import UserError

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MARKED = {"APPENDS", "SETITEMS", "LIST", "DICT", "TUPLE", "POP_MARK"}
_INTEGERS = {f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8)}


class _Name(NamedTuple):
    """A name that the file would have imported."""

    module: str
    name: str


class _Type:
    """An integer type whose byte order is set by a later opcode."""

    def __init__(self, code: str):
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """Takes the state of `numpy.dtype`: version and byte order, without fields."""
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UserError("it holds an array whose type is not an integer")
        order = _text(state[1])
        if order not in ("|", "<", ">", "="):
            raise UserError("it holds an array of an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array whose content is set by a later opcode."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes the state of `numpy.ndarray`: version, shape, type, order and bytes."""
        if type(state) is not tuple or len(state) != 5:
            raise UserError("it holds an array in an unknown form")
        self.value = _array(state[4], state[2], state[1], "F" if state[3] else "C")


def _text(item: Any) -> str:
    if type(item) not in (str, bytes):
        raise UserError("it has another object where text is expected")
    return item.decode("latin-1") if type(item) is bytes else item


def _array(content: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """Returns the result of `numpy._core.numeric._frombuffer`."""
    shape = shape if type(shape) is tuple else (shape,)
    sizes_known = all(type(side) is int and side >= 0 for side in shape)
    if type(content) is not bytes or type(kind) is not _Type or not sizes_known or _text(order) not in "CFK":
        raise UserError("it holds an array in an unknown form")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise UserError(f"it holds an array whose shape does not fit its {len(content)} bytes")
    array = np.frombuffer(content, kind.dtype)
    if axes is None:
        return array.reshape(shape, order="F" if _text(order) == "F" else "C")
    if type(axes) is not tuple or any(type(axis) is not int for axis in axes):
        raise UserError("it holds an array in an unknown form")
    return array.reshape(shape).transpose(axes)


def _make_type(code: Any, *_: Any) -> _Type:
    name = _text(code).lstrip("|<>=")
    if name not in _INTEGERS:
        raise UserError(f"it holds an array of type {name[:20]!r}, expected integers")
    return _Type(_text(code))


def _make_scalar(kind: Any, content: Any) -> int:
    return int(_array(content, kind, (), "C"))


def _make_bytes(*arguments: Any) -> bytes:
    if arguments:  # Python 3 stores only b'' like this, in the older protocols
        raise UserError("it makes bytes from an object, which no CIFAR file needs")
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or _text(encoding) != "latin1":
        raise UserError(f"it asks for the encoding {_text(encoding)[:20]!r}")
    return text.encode("latin-1")


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _make_type,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _make_bytes,
    ("__builtin__", "bytes"): _make_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _MAKERS[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _MAKERS[f"{_core}.multiarray", "scalar"] = _make_scalar
    _MAKERS[f"{_core}.numeric", "_frombuffer"] = _array
_NAMES = {*_MAKERS, ("numpy", "ndarray")}  # the last is an argument of _reconstruct


def loads(content: bytes) -> Any:
    """Reads a pickle; byte strings of Python 2 stay bytes.

    Raises:
      UserError: it contains anything but plain data.
      any exception: it is damaged.
    """
    machine, file = _Machine(), io.BytesIO(content)
    while code := file.read(1):
        opcode = _OPCODES[code.decode("latin-1")]
        if opcode.name == "STRING":  # its reader accepts only ASCII
            argument: Any = codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0]
        else:
            argument = opcode.arg.reader(file) if opcode.arg else None
        if opcode.name == "STOP":
            return _plain(machine.stack.pop())
        machine.run(opcode.name, argument)
    raise EOFError("it ends early")


def _plain(item: Any) -> Any:
    return item.value if type(item) is _Array else item


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Runs one opcode."""
        if name in ("PROTO", "FRAME"):
            return
        items = self._to_mark() if name in _MARKED else []
        if name in _PUSHED:
            self.stack.append(_PUSHED[name](argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(self.stack)
            self.stack = []
        elif name in ("POP", "POP_MARK"):
            del self.stack[len(self.stack) - (name == "POP") :]
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(map(_plain, items or self._popped(int(name[5:] or 0)))))
        elif name in ("LIST", "APPEND", "APPENDS"):
            self._extend(name, items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            self._update(name, items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = self._popped(2) if name == "STACK_GLOBAL" else argument.split(" ", 1)
            self.stack.append(_known(*map(_text, parts)))
        elif name == "REDUCE":
            maker, arguments = self._popped(2)
            self.stack.append(_made(maker, arguments))
        elif name == "BUILD":
            item, state = self.stack[-2], self.stack.pop()
            if type(item) not in (_Type, _Array):
                raise UserError("it asks for the state of an object, which no CIFAR file needs")
            item.build(state)
        else:
            raise UserError(f"it asks for {name}, which no CIFAR file needs")

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    def _popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _extend(self, name: str, items: list[Any]) -> None:
        if name == "LIST":
            self.stack.append([])
        items = items or (self._popped(1) if name == "APPEND" else [])
        if type(self.stack[-1]) is not list:
            raise UserError("it appends to an object that is not a list")
        self.stack[-1].extend(map(_plain, items))

    def _update(self, name: str, items: list[Any]) -> None:
        if name == "DICT":
            self.stack.append({})
        items = items or (self._popped(2) if name == "SETITEM" else [])
        if type(self.stack[-1]) is not dict or any(type(key) not in (str, bytes) for key in items[::2]):
            raise UserError("it holds a dict with keys that are not text")
        self.stack[-1].update(zip(items[::2], map(_plain, items[1::2]), strict=True))


def _known(module: str, name: str) -> _Name:
    if (module, name) not in _NAMES:
        module = "builtins" if module == "__builtin__" else module
        raise UserError(f"it asks for {module[:40]}.{name[:40]}, which no CIFAR file needs")
    return _Name(module, name)


def _made(maker: Any, arguments: Any) -> Any:
    known = _MAKERS.get((maker.module, maker.name)) if type(maker) is _Name else None
    if known is None or type(arguments) is not tuple:
        raise UserError("it calls a function that no CIFAR file needs")
    return known(*arguments)


def _as_is(argument: Any) -> Any:
    return argument


def _as_bytes(argument: Any) -> bytes:
    """Converts the text that `pickletools` returns for Python 2's byte strings to bytes."""
    return argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)


# Opcodes that push a value, each with the function that makes it from the argument.
_PUSHED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _as_is),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _as_is),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _as_bytes),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _as_bytes),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "EMPTY_TUPLE": lambda _: (),
}
