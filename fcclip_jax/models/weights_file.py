"""The file that arrays are kept in, a safetensors file: written and read one at a time, or mapped into memory.

Eight bytes of length, a JSON table of name -> dtype, shape and byte range, then the data. Written so that all but a few
small arrays begin at a multiple of 64 bytes: XLA on a CPU takes those as they lie in the mapped file, without a copy.
"""

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

# Float16, float32 and int64 are written; the others are here for what is said of a file that holds them.
_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # bytes, from which XLA takes an array without a copy


class WeightsError(ValueError):
    """A model folder that cannot be used, with the reason and what to do."""


def write_safetensors(
    path: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype | type = np.float32,
    dtypes: Mapping[str, str] | None = None,
    written_as: str = "fcclip_jax",
    aligned: bool = True,
) -> None:
    """Streams arrays into a file. (The library's own writer needs all of them in memory.)

    `dtype` is that of all arrays but those in `dtypes`, float32, float16 or int64.
    `written_as` is the file's own word for its format; readers of PyTorch models look for "pt" there. `aligned` moves
    the small arrays that would shift the others to the end; without it all stay in the order of `shapes`.

    Raises:
        WeightsError: `read` gave an array of another shape.
    """
    types = {name: np.dtype((dtypes or {}).get(name, dtype)) for name in shapes}
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * types[name].itemsize for name, shape in shapes.items()}
    if aligned:  # there may be no gaps, so what would shift the others comes last
        shapes = {name: shapes[name] for name in sorted(shapes, key=lambda name: sizes[name] % _ALIGNMENT != 0)}
    header: dict[str, Any] = {"__metadata__": {"format": written_as}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + sizes[name]
        header[name] = {"dtype": _CODES[types[name]], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-(8 + len(table)) % _ALIGNMENT)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        for name, shape in shapes.items():
            array = np.asarray(read(name), types[name], order="C")
            if array.shape != tuple(shape):
                raise WeightsError(f"{name} has shape {array.shape}, expected {tuple(shape)}")
            file.write(array.data if array.ndim else array.tobytes())
        file.flush()
        os.fsync(file.fileno())


class WeightsFile:
    """A file to read from: its `path`, and `shapes`, name to shape of all that it holds."""

    def __init__(self, path: str | os.PathLike):
        """Raises WeightsError: no such file, or its table does not fit it."""
        self.path = Path(path)
        if not self.path.is_file():
            raise WeightsError(f"{path} is missing: the model folder is not complete, convert or copy it again")
        try:
            with safe_open(self.path, framework="numpy"):  # the library checks the table
                pass
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is damaged ({error}): it may have been cut short, convert or copy it again"
            ) from None
        with self.path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        self._table, self._start = table, 8 + length
        self.shapes = {name: tuple(entry["shape"]) for name, entry in table.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """These arrays, in this order, as copies of their own, each read when it is asked for. (The library's own way
        to read keeps what it read of the file in memory until the end.)

        Raises:
            WeightsError: an array of a kind that numpy does not know, or a file that became shorter.
        """
        with self.path.open("rb", buffering=0) as file:
            for name in names:
                dtype, start = self._place(name)
                array = np.empty(self.shapes[name], dtype)
                file.seek(start)
                left = memoryview(array.reshape(-1).view(np.uint8))
                while left.nbytes:  # one call reads at most two gigabytes
                    count = file.readinto(left)
                    if not count:
                        raise WeightsError(f"{self.path} was cut short while it was read: convert or copy it again")
                    left = left[count:]
                yield name, array

    def mapped(self) -> dict[str, np.ndarray]:
        """All arrays, read-only, as they lie in the file: what nobody looks at is never read, and processes that use
        one file share its memory. The file may be renamed or removed meanwhile, as whoever writes it anew does here,
        but not changed in its place.

        Raises:
            WeightsError: an array of a kind that numpy does not know.
        """
        with self.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(content, "madvise"):
            content.madvise(mmap.MADV_WILLNEED)  # the system begins to read while the program goes on
        found = {}
        for name, shape in self.shapes.items():
            dtype, start = self._place(name)
            size = int(np.prod(shape, dtype=np.int64))
            flat = np.frombuffer(content, dtype, size, start) if size else np.empty(0, dtype)
            found[name] = flat.reshape(shape)
        return found

    def _place(self, name: str) -> tuple[type, int]:
        entry = self._table[name]
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(f"{self.path}: {name} is {entry['dtype']}, expected float32 or float16")
        return _DTYPES[entry["dtype"]], self._start + entry["data_offsets"][0]
