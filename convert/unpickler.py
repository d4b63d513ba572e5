"""A pickle machine that can only build: numbers, strings, containers, and descriptions of torch's tensors.

Pickle is a small program. Python's own machine imports and calls whatever the program names, so opening a file
can run anything. This one knows the few instructions that state dicts are made of and a short table of names; a name
is never imported, it only selects a function of `pickle_values`. Everything else is refused and named.

It is bounded, too: length of the program, number of instructions, size of integers; keys are strings and 64-bit
integers, so hashing cannot be made slow or deep; nothing here recurses.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from convert.pickle_values import BUILDERS, NAMES, Global, NumpyDtype, OrderedDict, Refused, key, require, storage
from convert.stored_arrays import CheckpointError

# The pickle of the 846 arrays of FC-CLIP's largest release has 0.1 MB and 40,000 instructions.
MAX_BYTES = 16 << 20
MAX_INSTRUCTIONS = 2_000_000
# The magic number of torch's old format has ten bytes, everything else at most eight.
MAX_INTEGER_BYTES = 16
# Items and letters that calls may copy, all together: one text of 10 MB can be named a million times.
MAX_COPIED = 4_000_000

_ADVICE = (
    "If you trust the file, open it in an environment of its own that has PyTorch, and save the arrays alone as "
    ".safetensors (safetensors.torch.save_file)"
)


class _Mark:
    """Separates the items of a container under construction."""


_MARK = _Mark()


class Machine:
    """Runs one pickle out of `data`, from `start` on."""

    def __init__(self, data: bytes, start: int = 0):
        self.data, self.position = data, start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

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
                    require(len(self.stack) == 1, "not exactly one result")
                    return self.stack.pop()
                action = _INSTRUCTIONS.get(code)
                if action is None:
                    raise Refused(f"the pickle instruction {pickletools.code2op[chr(code)].name}")
                action(self)
            except Refused as refused:
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
        require(type(module) is str and type(name) is str, "a name that is not text")
        path = f"{module}.{name}"
        require(path in NAMES, f"{path[:100]!r}, which a state dict does not need and which could run code")
        self.push(NAMES[path])

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        called = function.name if isinstance(function, Global) else type(function).__name__
        require(called in BUILDERS and type(args) is tuple, f"a call of `{called}`")
        self.copied += sum(len(a) for a in args if isinstance(a, str | bytes | list | tuple | dict | set))
        require(self.copied <= MAX_COPIED, "copies of one thing over and over")
        self.push(BUILDERS[called](*args))

    def build(self) -> None:
        """Attributes of an object. An OrderedDict's are torch's version numbers; a numpy type's, its byte order."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, NumpyDtype):
            require(type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|"), "a numpy type's state")
            target.order = "<" if state[1] == "|" else state[1]
        else:
            require(isinstance(target, OrderedDict) and isinstance(state, dict), "attributes of an object")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        require(isinstance(target, dict) and len(items) % 2 == 0, "items of something that is not a dictionary")
        target.update((key(k), v) for k, v in zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        require(type(self.stack[-1]) is list, "items of something that is not a list")
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        require(type(self.stack[-1]) is set, "members of something that is not a set")
        self.stack[-1].update(key(item) for item in items)

    def integer(self, count: int) -> None:
        require(0 <= count <= MAX_INTEGER_BYTES, "an integer of very many digits")
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
    0x80: lambda m: require(m.number("B") <= 5, "a pickle of a newer protocol"),  # PROTO
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
    ord("Q"): _pushes(lambda m: storage(m.pop())),
}
