"""What a pickle may build: stand-ins for torch's and numpy's objects, and the names that make them.

A name of the pickle selects a function of the table `BUILDERS`, or stands for an element type. Nothing is imported.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

from convert.stored_arrays import ITEM_SIZES


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


class NumpyDtype:
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


class Refused(Exception):
    """What the pickle asks for does not belong into a state dict."""


def require(condition: bool, what: str) -> None:
    """Refuses `what` unless the condition holds."""
    if not condition:
        raise Refused(what)


def _integers(value: Any) -> tuple[int, ...]:
    require(type(value) is tuple and all(type(n) is int for n in value), "a shape that is not a tuple of integers")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Arguments after the fourth: whether it wants gradients, hooks, metadata. None of them matters here."""
    require(isinstance(storage, Storage) and type(offset) is int, "a tensor without a storage")
    return Tensor(storage, storage.dtype, offset, _integers(shape), _integers(strides))


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
):
    require(isinstance(dtype, Global) and dtype.name in DTYPES, "a tensor of unknown element type")
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=DTYPES[dtype.name])


def _parameter(data: Any, *rest: Any) -> Tensor:
    require(isinstance(data, Tensor), "a parameter that is not a tensor")
    return data


def _mapping(kind: type[dict]) -> Callable[..., dict]:
    def build(*args: Any) -> dict:
        require(len(args) <= 1, "a dictionary made of several things")
        content = args[0] if args else {}
        if isinstance(content, dict):
            return kind(content)
        require(type(content) is list, "a dictionary made of something else")
        require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in content), "a dictionary without pairs")
        return kind((key(k), v) for k, v in content)

    return build


def _set(*args: Any) -> set:
    require(len(args) == 1 and type(args[0]) in (list, tuple), "a set of something else")
    return {key(item) for item in args[0]}


def _size(*args: Any) -> tuple[int, ...]:
    require(len(args) == 1, "a torch.Size of several things")
    return _integers(args[0])


def _encode(text: Any, encoding: Any = None) -> bytes:
    """How protocol 2 writes bytes."""
    require(type(text) is str and encoding == "latin1", "text in an unusual encoding")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise Refused("bytes that are not bytes") from None


def _numpy_dtype(code: Any, *rest: Any) -> NumpyDtype:
    known = type(code) is str and code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
    require(known, "a numpy type other than float, integer and bool")
    return NumpyDtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> int | float | bool:
    require(isinstance(dtype, NumpyDtype) and type(data) is bytes, "a numpy scalar of something else")
    letters = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"}
    letter = letters.get(dtype.code) or letters["i" + dtype.code[1]].upper()
    return struct.unpack(dtype.order + letter, data)[0]


# The only names that may be called, and what is called instead.
BUILDERS: dict[str, Callable[..., Any]] = {
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
NAMES = {name: Global(name) for name in (*BUILDERS, *STORAGES, *DTYPES)}


def key(value: Any) -> Any:
    """Keys and members of sets: strings, integers of 64 bits, None."""
    small = type(value) is int and -(1 << 63) <= value < 1 << 64
    require(small or type(value) in (str, bool, type(None)), f"a key of type {type(value).__name__}")
    return value


def storage(pid: Any) -> Storage:
    """From torch's persistent id: ("storage", type, key, device, length) and, in old files, a view of a longer run."""
    require(type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage", "a reference that is not a storage")
    kind, key, _, length, *view = pid[1:]
    require(isinstance(kind, Global) and kind.name in STORAGES, "a storage of unknown type")
    require(type(key) is str and type(length) is int, "a storage without key or length")
    if view and view[0] is not None:
        require(type(view[0]) is tuple and len(view[0]) == 3, "a view of a storage that is not understood")
        key, start, length = view[0]
        require(type(key) is str and type(start) is int and type(length) is int, "a view that is not understood")
        return Storage(key, STORAGES[kind.name], length, start)
    return Storage(key, STORAGES[kind.name], length)
