"""Files of torch.save without torch: what is in them, and where each array lies.

Since PyTorch 1.6 such a file is an uncompressed zip archive: `NAME/data.pkl` is a pickle that describes the tensors,
and `NAME/data/KEY` holds the bytes of each storage. Before, it was five pickles in a row, then all storages.
"""

import struct
from typing import Any, BinaryIO

from convert.pickle_values import Storage, Tensor
from convert.stored_arrays import ITEM_SIZES, CheckpointError, StoredArray
from convert.unpickler import MAX_BYTES, Machine
from convert.zip_directory import read_directory

# The old format begins with a pickle of this number.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001

# Where the bytes of a storage lie: begin and end, from the beginning of the file.
Ranges = dict[str, tuple[int, int]]


def read_zip(file: BinaryIO, size: int) -> tuple[Any, Ranges]:
    """The unpickled content of a zip file of torch.save, and where its storages lie.

    Raises:
        CheckpointError: not from torch.save, compressed, TorchScript, damaged, or a pickle that is refused.
    """
    entries = read_directory(file, size)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            "this is a zip archive, but not a checkpoint: it has no data.pkl. Give the .pth, .pt, .bin or .safetensors "
            "file itself, not an archive that holds it"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries or any(name.startswith(f"{folder}code/") for name in entries):
        raise CheckpointError(
            "this is a TorchScript archive, a program rather than a table of arrays (OpenAI's own CLIP files are). "
            "Use open_clip's weights instead, or save `torch.jit.load(X).state_dict()` as .safetensors"
        )
    prefix = f"{folder}data/"
    ranges: Ranges = {}
    for name, span in entries.items():
        if name.startswith((prefix, f"{folder}data.pkl", f"{folder}byteorder")):
            if span is None:
                raise CheckpointError(
                    f"{name!r:.80} inside is compressed, which torch.save never does: pack it without"
                )
            ranges[name] = span
    order = ranges.get(f"{folder}byteorder")
    if order and _content(file, *order) != b"little":
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    tree = Machine(_content(file, *ranges[pickles[0]])).run()
    return tree, {name.removeprefix(prefix): span for name, span in ranges.items() if name.startswith(prefix)}


def _content(file: BinaryIO, begin: int, end: int) -> bytes:
    if end - begin > MAX_BYTES:
        raise CheckpointError("the description inside the file is far too long for a state dict")
    file.seek(begin)
    return file.read(end - begin)


def read_legacy(file: BinaryIO, size: int) -> tuple[Any, Ranges]:
    """The same of a file of torch.save before 1.6, or written with `_use_new_zipfile_serialization=False`.

    Raises:
        CheckpointError: as `read_zip`.
    """
    file.seek(0)
    machine = Machine(file.read(MAX_BYTES))
    values = []
    for _ in range(5):
        values.append(machine.run())
        machine = Machine(machine.data, machine.position)
    magic, protocol, system, tree, keys = values
    if magic != LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError("the file's head is not that of torch.save: it is damaged, download it again")
    if system.get("little_endian") is not True:
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise CheckpointError("the file's list of storages is damaged: download it again")
    item_sizes: dict[str, int] = {}
    for tensor in _tensors(tree):
        item_size = ITEM_SIZES[tensor.storage.dtype]
        if item_sizes.setdefault(tensor.storage.key, item_size) != item_size:
            raise CheckpointError("one storage has two element types: the file is damaged, download it again")
    ranges: Ranges = {}
    position = machine.position
    for key in keys:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            raise CheckpointError("the file was cut short: download or copy it again")
        length = struct.unpack("<q", head)[0]
        if key not in item_sizes:
            raise CheckpointError(f"the file holds a storage {key!r:.80} that no tensor uses, which is not supported")
        begin, position = position + 8, position + 8 + length * item_sizes[key]
        if length < 0 or position > size:
            raise CheckpointError("the file was cut short or is damaged: download or copy it again")
        ranges[key] = (begin, position)
    return tree, ranges


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested containers, each container visited once."""
    found, seen, waiting = [], set(), [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def place(name: str, tensor: Tensor, ranges: Ranges) -> StoredArray:
    """Where a tensor lies in the file.

    Raises:
        CheckpointError: its storage is missing or too short.
    """
    storage: Storage = tensor.storage
    if storage.key not in ranges:
        raise CheckpointError(f"{name}: the file has no storage {storage.key!r:.80}; it is damaged, download it again")
    begin, end = ranges[storage.key]
    size = ITEM_SIZES[storage.dtype]
    begin += storage.start * size
    end = min(end, begin + storage.length * size)
    offset = begin + tensor.offset * ITEM_SIZES[tensor.dtype]
    if min(storage.start, storage.length, tensor.offset) < 0:
        raise CheckpointError(f"{name}: a negative offset or length; the file is damaged")
    array = StoredArray(tensor.dtype, tensor.shape, tensor.strides, offset)
    array.check(name, end)
    return array
