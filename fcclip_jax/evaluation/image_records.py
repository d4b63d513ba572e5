"""What is known of each image of an evaluation, on disk: a run that was killed goes on from there.

A file of records is only ever appended to, by one process, once. Each record has its length and checksum before it, so
what a killed process has half written is seen and dropped; whoever goes on begins a file of its own.
"""

import dataclasses
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_HEAD = struct.Struct("<4sIII")  # mark, bytes, their CRC-32, and the CRC-32 of these three
_MARK = b"fcr1"
# A state array is kept as its entries that are not 0 where these are fewer than one in so many.
_SPARSE = 4

State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image: counted, or passed over.

    `index`: its place in the source; `image_id`: the dataset's own; `states`: task to what an accumulator counted of
    this image alone; `score`: how well it went, percent, None where nothing can be said; `skipped`: why it could not
    be used, None where it could; `predictions`: what the JSON files of the submission formats will say of it.
    """

    index: int
    image_id: int | str
    states: Mapping[str, State] = dataclasses.field(default_factory=dict)
    score: float | None = None
    skipped: str | None = None
    predictions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class RecordWriter:
    """Appends to a file that must not exist yet. What `append` has written survives the death of this process; `sync`
    makes it survive that of the machine."""

    def __init__(self, path: Path):
        self._file = path.open("xb", buffering=0)

    def append(self, record: ImageRecord) -> None:
        """Writes one record. OSError: the disk is full; the file then ends with a part of it, which readers drop."""
        data = encode(record)
        head = _MARK + struct.pack("<II", len(data), zlib.crc32(data))
        whole = memoryview(head + struct.pack("<I", zlib.crc32(head)) + data)
        while whole:
            whole = whole[self._file.write(whole) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()


def read_records(path: Path) -> Iterator[tuple[int, ImageRecord]]:
    """The records of a file and where each begins, up to the first that is not whole."""
    with path.open("rb") as file:
        place = 0
        while (record := _read(file)) is not None:
            yield place, record
            place = file.tell()


def read_record(path: Path, place: int) -> ImageRecord:
    """The record that begins at `place`. ValueError: it is not whole."""
    with path.open("rb") as file:
        file.seek(place)
        record = _read(file)
    if record is None:
        raise ValueError(f"{path} is damaged at byte {place}")
    return record


def _read(file: io.BufferedIOBase) -> ImageRecord | None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, size, checksum, own = _HEAD.unpack(head)
    if mark != _MARK or zlib.crc32(head[:-4]) != own:
        return None
    data = file.read(size)
    if len(data) < size or zlib.crc32(data) != checksum:
        return None
    return decode(data)


def encode(record: ImageRecord) -> bytes:
    """JSON of all but the arrays, and these behind it, compressed."""
    arrays, parts = [], []
    for task, state in record.states.items():
        for name, array in state.items():
            array = np.asarray(array)
            flat = array.reshape(-1)
            entry = {"task": task, "name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
            places = np.flatnonzero(flat) if array.dtype.kind in "iu" else None
            if places is not None and places.size * _SPARSE < flat.size:
                entry["places"] = int(places.size)
                parts += [places.astype("<i8"), flat[places]]
            else:
                parts.append(flat)
            arrays.append(entry)
    content = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "states"}
    content |= {"tasks": list(record.states), "arrays": arrays}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    return zlib.compress(b"".join([struct.pack("<I", len(text)), text, *(part.tobytes() for part in parts)]), 1)


def decode(data: bytes) -> ImageRecord:
    """The inverse of `encode`."""
    data = zlib.decompress(data)
    (size,) = struct.unpack_from("<I", data)
    content = json.loads(data[4 : 4 + size])
    place = 4 + size

    def take(dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal place
        array = np.frombuffer(data, dtype, count, place)
        place += array.nbytes
        return array

    states: dict[str, dict[str, np.ndarray]] = {task: {} for task in content.pop("tasks")}
    for entry in content.pop("arrays"):
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        if "places" in entry:
            places = take(np.dtype("<i8"), entry["places"])
            array = np.zeros(int(np.prod(shape)), dtype)
            array[places] = take(dtype, places.size)
        else:
            array = take(dtype, int(np.prod(shape)))
        states[entry["task"]][entry["name"]] = array.reshape(shape)
    return ImageRecord(states=states, **content)
