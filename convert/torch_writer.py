"""Writes a state dict as torch.save does (the zip format of PyTorch 1.6 and later), without torch and one array at a
time. `torch.load(X, weights_only=True)` reads it."""

import os
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_EMPTY_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write_torch(
    path: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtypes: Mapping[str, str] | None = None,
    entry: str | None = "model",
) -> None:
    """Writes `{entry: state dict}`, or the state dict itself where `entry` is None.

    Args:
        read: name to array of that shape; called once a name, in order. Only one array is held at a time.
        dtypes: numpy's name of the element type, float32 where a name is not in it.

    Raises:
        ValueError: an array has another shape than announced.
        OSError: the disk is full, or the place is not writable.
    """
    dtypes = {name: (dtypes or {}).get(name, "float32") for name in shapes}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        # Entries given as ZipInfo have no time of day: the same weights give the same file.
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _pickle(shapes, dtypes, entry))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
        for index, (name, shape) in enumerate(shapes.items()):
            array = np.ascontiguousarray(read(name), np.dtype(dtypes[name]).newbyteorder("<")).reshape(-1)
            if array.size != int(np.prod(shape, dtype=np.int64)):
                raise ValueError(f"{name} has {array.size} elements, expected the shape {tuple(shape)}")
            info = zipfile.ZipInfo(f"archive/data/{index}")
            with archive.open(info, "w", force_zip64=array.nbytes >= 1 << 31) as file:
                file.write(array.view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")


def _pickle(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], entry: str | None) -> bytes:
    """Protocol 2. What each instruction does is in the standard library's pickletools."""
    items = b"".join(
        _text(name) + _tensor(index, tuple(shape), _STORAGES[dtypes[name]])
        for index, (name, shape) in enumerate(shapes.items())
    )
    state_dict = _EMPTY_ORDERED_DICT + b"(" + items + b"u"
    tree = state_dict if entry is None else b"}" + _text(entry) + state_dict + b"s"
    return b"\x80\x02" + tree + b"."


def _tensor(index: int, shape: tuple[int, ...], storage: str) -> bytes:
    count = int(np.prod(shape, dtype=np.int64))
    strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    reference = b"(" + _text("storage") + f"ctorch\n{storage}\n".encode() + _text(str(index)) + _text("cpu")
    reference += _integer(count) + b"tQ"
    sizes, steps = (b"(" + b"".join(map(_integer, numbers)) + b"t" for numbers in (shape, strides))
    arguments = reference + _integer(0) + sizes + steps + b"\x89" + _EMPTY_ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)
