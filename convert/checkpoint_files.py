"""Checkpoint files of any kind behind one face: names, shapes, and one array at a time.

The kind is read off the content, never off the file's name.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from convert import torch_files
from convert.pickle_values import Tensor
from convert.stored_arrays import ITEM_SIZES, MAX_DIMENSIONS, CheckpointError, StoredArray, row_major
from convert.zip_directory import MAGIC as ZIP_MAGIC

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]

_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# The header of FC-CLIP's largest release has 0.1 MB.
_MAX_HEADER = 16 << 20

# Where programs put the state dict, in the order of preference: detectron2 (and so FC-CLIP), open_clip's training.
_STATE_DICT_KEYS = ("model", "state_dict")


class Checkpoint:
    """A checkpoint open for reading; a context manager.

    Attributes:
        path: of the file.
        kind: "safetensors", "torch zip" or "torch legacy".
        size: of the file, in bytes.
        arrays: name -> where the array lies, in the order of the file, without a `module.` in front of all names.
    """

    def __init__(self, path: Path, file: BinaryIO, kind: str, size: int, arrays: Mapping[str, StoredArray]):
        self.path, self.kind, self.size, self.arrays = path, kind, size, dict(arrays)
        self._file = file

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in the order of the file."""
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """One array, C-contiguous, as stored (bfloat16 as float32 with the same values). Others stay in the file.

        Raises:
            CheckpointError: the file has been cut short since it was opened.
            KeyError: there is no such array.
        """
        return self.arrays[name].read(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Opens a checkpoint: `.safetensors`, or what torch.save wrote, of the state dict itself or of
    `{"model": state dict}` or `{"state_dict": state dict}`.

    Only descriptions are read here, and no more than 16 MB of them.

    Raises:
        CheckpointError: missing, empty, cut short, a web page, another kind of file, or a pickle that is refused.
        OSError: it exists but cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
    file = path.open("rb")
    try:
        size = os.fstat(file.fileno()).st_size
        kind, arrays = _read_table(file, size)
        return Checkpoint(path, file, kind, size, arrays)
    except CheckpointError as error:
        file.close()
        raise CheckpointError(f"{path}: {error}") from None
    except BaseException:
        file.close()
        raise


def _read_table(file: BinaryIO, size: int) -> tuple[str, dict[str, StoredArray]]:
    head = file.read(512)
    if not head:
        raise CheckpointError("the file is empty: download or copy it again")
    if head.startswith(ZIP_MAGIC):
        kind, arrays = "torch zip", _torch_table(*torch_files.read_zip(file, size))
    elif head.startswith(torch_files.LEGACY_START):
        kind, arrays = "torch legacy", _torch_table(*torch_files.read_legacy(file, size))
    elif head[8:9] == b"{":
        kind, arrays = "safetensors", _safetensors_table(file, size)
    else:
        raise CheckpointError(_what_else(head))
    return kind, _named(arrays)


def _what_else(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "this is a web page, not a checkpoint: the download site sent a page instead of the file. "
            "Download it in a browser, and look at its size before converting"
        )
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file it points to: run `git lfs pull`, or download the file itself"
    if head.startswith(b"\x80"):
        return "this is a bare pickle, not a checkpoint of torch.save: save the state dict as .safetensors"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "this is a packed archive: unpack it and give the checkpoint inside"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"this is a text file, not a checkpoint; it begins with {head[:40].decode('ascii')!r}"
    return "not a checkpoint: neither safetensors nor a file of torch.save; it may be damaged, download it again"


def _torch_table(tree: Any, ranges: torch_files.Ranges) -> dict[str, StoredArray]:
    tensors = _state_dict(tree)
    other = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if other:
        raise CheckpointError(
            f"{len(other)} entries of the state dict are not arrays: {', '.join(map(repr, other[:5]))}"
        )
    return {name: torch_files.place(repr(name), tensor, ranges) for name, tensor in tensors.items()}


def _state_dict(tree: Any) -> dict[Any, Any]:
    if not isinstance(tree, dict) or not tree:
        raise CheckpointError(f"the file holds a {type(tree).__name__}, not a state dict with names and arrays")
    for inner in (*(tree.get(key) for key in _STATE_DICT_KEYS), tree):
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner
    raise CheckpointError(
        f"no state dict inside: neither at the top nor under {' or '.join(map(repr, _STATE_DICT_KEYS))}. "
        f"The file holds {', '.join(repr(key)[:60] for key in list(tree)[:8])}"
    )


def _safetensors_table(file: BinaryIO, size: int) -> dict[str, StoredArray]:
    """Eight bytes of length, a JSON table, the data (github.com/huggingface/safetensors, "Format")."""
    file.seek(0)
    length = struct.unpack("<Q", file.read(8))[0]
    if length > min(_MAX_HEADER, size - 8):
        raise CheckpointError("the file was cut short or is not a checkpoint: download or copy it again")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its table of arrays is damaged ({error!s:.100}): download or copy it again") from None
    if not isinstance(header, dict):
        raise CheckpointError("its table of arrays is damaged: download or copy it again")
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            arrays[name] = _safetensors_entry(repr(name), entry, 8 + length, size)
    return arrays


def _safetensors_entry(name: str, entry: Any, data: int, size: int) -> StoredArray:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    numbers = [shape, place] if isinstance(shape, list) and isinstance(place, list) and len(place) == 2 else [[None]]
    # Lengths first: products of thousands of huge integers would take for ever.
    if len(numbers[0]) > MAX_DIMENSIONS or not all(type(n) is int and n >> 63 == 0 for part in numbers for n in part):
        raise CheckpointError(f"{name}: its entry in the table is damaged: download or copy the file again")
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS_TYPES:
        raise CheckpointError(f"{name}: element type {dtype!r:.40} is not supported; save it as F32")
    begin, end = place
    stored = StoredArray(_SAFETENSORS_TYPES[dtype], tuple(shape), row_major(tuple(shape)), data + begin)
    if end - begin != math.prod(shape) * ITEM_SIZES[stored.dtype]:
        raise CheckpointError(f"{name}: its size does not fit its shape; the file is damaged, download it again")
    if data + end > size:
        raise CheckpointError(f"the file was cut short: {name} ends at byte {data + end}, the file at {size}")
    stored.check(name, data + end)
    return stored


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def _named(arrays: dict[Any, StoredArray]) -> dict[str, StoredArray]:
    """Checks names, and takes away the `module.` that torch's DataParallel puts in front of all of them."""
    if not arrays:
        raise CheckpointError("the file holds no arrays")
    for name in arrays:
        if not isinstance(name, str) or not name.isprintable() or len(name) > 500:
            raise CheckpointError(f"the name {name!r:.80} is not one that a state dict has")
    if all(name.startswith("module.") for name in arrays):
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays
