"""The file that arrays are kept in, a safetensors file: written and read one array at a time.

Eight bytes of length, a JSON table of name -> dtype, shape and byte range, then the data.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

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
# How much is read in one call of the system, which takes no more than 1024 places.
_RUN_BYTES, _RUN_ARRAYS = 64 << 20, 1000

_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


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
) -> None:
    """Streams arrays into a file. (The library's own writer needs all of them in memory.)

    `dtype` is that of all arrays but those in `dtypes`, float32, float16 or int64.
    `written_as` is the file's own word for its format; readers of PyTorch models look for "pt" there.

    Raises:
        WeightsError: `read` gave an array of another shape.
    """
    types = {name: np.dtype((dtypes or {}).get(name, dtype)) for name in shapes}
    header: dict[str, Any] = {"__metadata__": {"format": written_as}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * types[name].itemsize
        header[name] = {"dtype": _CODES[types[name]], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-len(table) % 8)
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
        """These arrays, in this order; what adjoins in the file is read together, some 64 MB at a time.

        Other threads go on meanwhile. (The library's own way to read holds them up, and keeps what it read of the file
        in memory until the end.)

        Raises:
            WeightsError: an array of a kind that numpy does not know, or a file that became shorter.
        """
        with self.path.open("rb", buffering=0) as file:
            for run in self._runs(names):
                arrays = {name: self._empty(name) for name in run}
                file.seek(self._start + self._table[run[0]]["data_offsets"][0])
                self._fill(file, [array.reshape(-1).view(np.uint8) for array in arrays.values()])
                yield from arrays.items()

    def _runs(self, names: Iterable[str]) -> Iterator[list[str]]:
        run, size, end = [], 0, -1
        for name in names:
            start, stop = self._table[name]["data_offsets"]
            if run and (start != end or size + stop - start > _RUN_BYTES or len(run) == _RUN_ARRAYS):
                yield run
                run, size = [], 0
            run.append(name)
            size, end = size + stop - start, stop
        if run:
            yield run

    def _empty(self, name: str) -> np.ndarray:
        entry = self._table[name]
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(f"{self.path}: {name} is {entry['dtype']}, expected float32 or float16")
        return np.empty(entry["shape"], _DTYPES[entry["dtype"]])

    def _fill(self, file: Any, buffers: list[np.ndarray]) -> None:
        """One call for all: between calls a thread waits milliseconds for its turn. What it leaves is read one by
        one."""
        done = os.readv(file.fileno(), buffers) if hasattr(os, "readv") else 0
        for buffer in buffers:
            left = memoryview(buffer)[done:]
            done = max(0, done - buffer.nbytes)
            while left.nbytes:
                count = file.readinto(left)
                if not count:
                    raise WeightsError(f"{self.path} was cut short while it was read: convert or copy it again")
                left = left[count:]
