"""A pickle machine that can only build: numbers, strings, containers, and descriptions of torch's tensors.

Pickle is a small program. Python's own machine imports and calls whatever the program names, so opening a file
can run anything. This one knows the few instructions that state dicts are made of and a short table of names; a name
is never imported, it only selects a function of this file. Everything else is refused and named.

It is bounded, too: length of the program, number of instructions, size of integers; keys are strings and 64-bit
integers, so hashing cannot be made slow or deep; nothing here recurses.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from convert.stored_arrays import ITEM_SIZES, CheckpointError

# The pickle of the 846 arrays of FC-CLIP's largest release has 0.1 MB and 40,000 instructions.
MAX_BYTES = 16 << 20
MAX_INSTRUCTIONS = 2_000_000
# The magic number of torch's old format has ten bytes, everything else at most eight.
MAX_INTEGER_BYTES = 16

_ADVICE = (
    "If you trust the file, open it in an environment of its own that has PyTorch, and save the arrays alone as "
    ".safetensors (safetensors.torch.save_file)"
)


@dataclasses.dataclass(frozen=True)
class Global:
    """A name the pickle refers to. It stands for itself; nothing is imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `length` elements that tensors lie in; `key` finds it in the file, `start` is where in that run the
    storage begins (old files only)."""

    key: str
    dtype: str
    length: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`offset`, `shape` and `strides` in elements of `dtype`, not yet checked against the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class OrderedDict(dict):
    """What the pickle calls a collections.OrderedDict: torch hangs `_metadata` on it, which is dropped."""


class _NumpyDtype:
    """The element type of a numpy scalar: float, integer or bool. The byte order arrives later, by BUILD."""

    def __init__(self, code: str):
        self.code, self.order = code, "<"


STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.UntypedStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}
# "torch.float32" and its like, which the newest kind of tensor names beside an untyped storage.
DTYPES = {f"torch.{name}": name for name in ITEM_SIZES}


class _Refused(Exception):
    """What the pickle asks for does not belong into a state dict."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _Refused(what)


def _integers(value: Any) -> tuple[int, ...]:
    _require(type(value) is tuple and all(type(n) is int for n in value), "a shape that is not a tuple of integers")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Arguments after the fourth: whether it wants gradients, hooks, metadata. None of them matters here."""
    _require(isinstance(storage, Storage) and type(offset) is int, "a tensor without a storage")
    return Tensor(storage, storage.dtype, offset, _integers(shape), _integers(strides))


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
):
    _require(isinstance(dtype, Global) and dtype.name in DTYPES, "a tensor of unknown element type")
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=DTYPES[dtype.name])


def _parameter(data: Any, *rest: Any) -> Tensor:
    _require(isinstance(data, Tensor), "a parameter that is not a tensor")
    return data


def _mapping(kind: type[dict]) -> Callable[..., dict]:
    def build(*args: Any) -> dict:
        _require(len(args) <= 1, "a dictionary made of several things")
        content = args[0] if args else {}
        if isinstance(content, dict):
            return kind(content)
        _require(type(content) is list, "a dictionary made of something else")
        _require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in content), "a dictionary without pairs")
        return kind((_key(k), v) for k, v in content)

    return build


def _set(*args: Any) -> set:
    _require(len(args) == 1 and type(args[0]) in (list, tuple), "a set of something else")
    return {_key(item) for item in args[0]}


def _size(*args: Any) -> tuple[int, ...]:
    _require(len(args) == 1, "a torch.Size of several things")
    return _integers(args[0])


def _encode(text: Any, encoding: Any = None) -> bytes:
    """How protocol 2 writes bytes."""
    _require(type(text) is str and encoding == "latin1", "text in an unusual encoding")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise _Refused("bytes that are not bytes") from None


def _numpy_dtype(code: Any, *rest: Any) -> _NumpyDtype:
    known = type(code) is str and code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
    _require(known, "a numpy type other than float, integer and bool")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> int | float | bool:
    _require(isinstance(dtype, _NumpyDtype) and type(data) is bytes, "a numpy scalar of something else")
    letters = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"}
    letter = letters.get(dtype.code) or letters["i" + dtype.code[1]].upper()
    return struct.unpack(dtype.order + letter, data)[0]


# The only names that may be called, and what is called instead.
_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping(OrderedDict),
    "collections.Counter": _mapping(dict),
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
_NAMES = {name: Global(name) for name in (*_BUILDERS, *STORAGES, *DTYPES)}


def _key(value: Any) -> Any:
    """Keys and members of sets: strings, integers of 64 bits, None."""
    small = type(value) is int and -(1 << 63) <= value < 1 << 64
    _require(small or type(value) in (str, bool, type(None)), f"a key of type {type(value).__name__}")
    return value


def _storage(pid: Any) -> Storage:
    """From torch's persistent id: ("storage", type, key, device, length) and, in old files, a view of a longer run."""
    _require(type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage", "a reference that is not a storage")
    kind, key, _, length, *view = pid[1:]
    _require(isinstance(kind, Global) and kind.name in STORAGES, "a storage of unknown type")
    _require(type(key) is str and type(length) is int, "a storage without key or length")
    if view and view[0] is not None:
        _require(type(view[0]) is tuple and len(view[0]) == 3, "a view of a storage that is not understood")
        key, start, length = view[0]
        _require(type(key) is str and type(start) is int and type(length) is int, "a view that is not understood")
        return Storage(key, STORAGES[kind.name], length, start)
    return Storage(key, STORAGES[kind.name], length)


class _Mark:
    """Separates the items of a container under construction."""


_MARK = _Mark()


class Machine:
    """Runs one pickle out of `data`, from `start` on."""

    def __init__(self, data: bytes, start: int = 0):
        self.data, self.position = data, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Up to STOP.

        Raises:
            CheckpointError: the pickle is damaged, or asks for anything but data.
        """
        first = self.position
        for _ in range(MAX_INSTRUCTIONS):
            at = self.position
            if at - first > MAX_BYTES:
                break
            try:
                code = self.take(1)[0]
                if code == _STOP:
                    _require(len(self.stack) == 1, "not exactly one result")
                    return self.stack.pop()
                action = _INSTRUCTIONS.get(code)
                if action is None:
                    raise _Refused(f"the pickle instruction {pickletools.code2op[chr(code)].name}")
                action(self)
            except _Refused as refused:
                raise CheckpointError(f"refused to load {refused} (byte {at} of the pickle). {_ADVICE}") from None
            except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error):
                # No such instruction, an empty stack, a number never stored, arguments that do not match, text that
                # is not UTF-8.
                raise CheckpointError(f"the pickle inside is damaged at byte {at}: download or copy it again") from None
        raise CheckpointError(f"the pickle inside is far too long for a state dict. {_ADVICE}")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError("past the end")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, format: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + 1000)
        text = self.take(end - self.position).decode("utf-8")
        self.position += 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def push_global(self, module: Any, name: Any) -> None:
        _require(type(module) is str and type(name) is str, "a name that is not text")
        path = f"{module}.{name}"
        _require(path in _NAMES, f"{path[:100]!r}, which a state dict does not need and which could run code")
        self.push(_NAMES[path])

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        called = function.name if isinstance(function, Global) else type(function).__name__
        _require(called in _BUILDERS and type(args) is tuple, f"a call of `{called}`")
        self.push(_BUILDERS[called](*args))

    def build(self) -> None:
        """Attributes of an object. An OrderedDict's are torch's version numbers; a numpy type's, its byte order."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, _NumpyDtype):
            _require(type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|"), "a numpy type's state")
            target.order = "<" if state[1] == "|" else state[1]
        else:
            _require(isinstance(target, OrderedDict) and isinstance(state, dict), "attributes of an object")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _require(isinstance(target, dict) and len(items) % 2 == 0, "items of something that is not a dictionary")
        target.update((_key(k), v) for k, v in zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        _require(type(self.stack[-1]) is list, "items of something that is not a list")
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        _require(type(self.stack[-1]) is set, "members of something that is not a set")
        self.stack[-1].update(_key(item) for item in items)

    def integer(self, count: int) -> None:
        _require(0 <= count <= MAX_INTEGER_BYTES, "an integer of very many digits")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        self.push(tuple(self.pop() for _ in range(count))[::-1])

    def remember(self, index: int) -> None:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark cannot be stored")
        self.memo[index] = self.stack[-1]


def _pushes(make: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda m: m.push(make(m))


def _text(length: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(length)).decode("utf-8", "surrogatepass"))


def _bytes(length: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(length)))


def _set_item(m: Machine) -> None:
    value = m.pop()
    m.set_items([m.pop(), value])


def _dict(m: Machine) -> None:
    items = m.pop_to_mark()
    m.push({})
    m.set_items(items)


def _append(m: Machine) -> None:
    m.append([m.pop()])


def _stack_global(m: Machine) -> None:
    name = m.pop()
    m.push_global(m.pop(), name)


_STOP = ord(".")

# Instruction -> action: the complete list. `pickletools.opcodes` of the standard library says what each is.
_INSTRUCTIONS: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: _require(m.number("B") <= 5, "a pickle of a newer protocol"),  # PROTO
    0x95: lambda m: m.number("<Q"),  # FRAME, a hint for readers of streams
    ord("N"): _pushes(lambda m: None),
    0x88: _pushes(lambda m: True),
    0x89: _pushes(lambda m: False),
    ord("J"): _pushes(lambda m: m.number("<i")),
    ord("K"): _pushes(lambda m: m.number("B")),
    ord("M"): _pushes(lambda m: m.number("<H")),
    0x8A: lambda m: m.integer(m.number("B")),
    0x8B: lambda m: m.integer(m.number("<i")),
    ord("G"): _pushes(lambda m: m.number(">d")),
    ord("X"): _text("<I"),
    0x8C: _text("B"),
    0x8D: _text("<Q"),
    ord("U"): _text("B"),  # text of Python 2
    ord("T"): _text("<i"),
    ord("C"): _bytes("B"),
    ord("B"): _bytes("<I"),
    0x8E: _bytes("<Q"),
    ord("("): _pushes(lambda m: _MARK),
    ord("]"): _pushes(lambda m: []),
    ord("}"): _pushes(lambda m: {}),
    ord(")"): _pushes(lambda m: ()),
    0x8F: _pushes(lambda m: set()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _pushes(lambda m: tuple(m.pop_to_mark())),
    ord("l"): _pushes(lambda m: m.pop_to_mark()),
    ord("d"): _dict,
    ord("a"): _append,
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    0x90: lambda m: m.add(m.pop_to_mark()),
    ord("s"): _set_item,
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    ord("q"): lambda m: m.remember(m.number("B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): _pushes(lambda m: m.memo[m.number("B")]),
    ord("j"): _pushes(lambda m: m.memo[m.number("<I")]),
    ord("c"): lambda m: m.push_global(m.line(), m.line()),
    0x93: _stack_global,
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
    ord("Q"): _pushes(lambda m: _storage(m.pop())),
}
