"""The table of contents of an uncompressed zip archive, read without trusting it (PKWARE's APPNOTE 4.3).

The standard library's reader loads a table of any length, and raises many kinds of errors on damaged ones; this one is
bounded and has one.
"""

import struct
from typing import BinaryIO

from convert.stored_arrays import CheckpointError

MAGIC = b"PK\x03\x04"

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")

_MAX_COMMENT = 0xFFFF
MAX_ENTRIES = 100_000
_MAX_TABLE = 32 << 20

_DAMAGED = "the file was cut short or is damaged: compare its size with the source, and download or copy it again"


def read_directory(file: BinaryIO, size: int) -> dict[str, tuple[int, int] | None]:
    """Name of each entry -> begin and end of its bytes, from the beginning of the file; None where they are compressed
    or encrypted.

    Raises:
        CheckpointError: no table, a table that does not fit the file, or an entry that is there twice.
    """
    count, begin, length = _end_record(file, size)
    if count > MAX_ENTRIES or length > _MAX_TABLE or begin + length > size:
        raise CheckpointError(_DAMAGED)
    table = _read(file, begin, length)
    entries: dict[str, tuple[int, int] | None] = {}
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > length:
            raise CheckpointError(_DAMAGED)
        fields = _ENTRY.unpack_from(table, position)
        name_end = position + _ENTRY.size + fields[10]
        extra_end = name_end + fields[11]
        name = table[position + _ENTRY.size : name_end].decode("utf-8", "replace")
        packed, unpacked, header = _sizes(fields, table[name_end:extra_end])
        if fields[0] != b"PK\x01\x02" or extra_end > length or name in entries:
            raise CheckpointError(_DAMAGED)
        position = extra_end + fields[12]
        if fields[4] != 0 or fields[3] & 1 or packed != unpacked:
            entries[name] = None
            continue
        data = _data_offset(file, size, header)
        if data + unpacked > size:
            raise CheckpointError(_DAMAGED)
        entries[name] = (data, data + unpacked)
    return entries


def _read(file: BinaryIO, begin: int, length: int) -> bytes:
    file.seek(begin)
    data = file.read(length)
    if len(data) != length:
        raise CheckpointError(_DAMAGED)
    return data


def _end_record(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, offset and length of the table."""
    tail_length = min(size, _END.size + _MAX_COMMENT)
    tail_begin = size - tail_length
    tail = _read(file, tail_begin, tail_length)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > tail_length:
        raise CheckpointError(_DAMAGED)
    _, _, _, _, count, length, begin, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR64.size and tail[at - _LOCATOR64.size :][:4] == b"PK\x06\x07":
        _, _, end64, _ = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        if end64 + _END64.size > size:
            raise CheckpointError(_DAMAGED)
        magic, _, _, _, _, _, _, count, length, begin = _END64.unpack(_read(file, end64, _END64.size))
        if magic != b"PK\x06\x06":
            raise CheckpointError(_DAMAGED)
    return count, begin, length


def _sizes(fields: tuple, extra: bytes) -> tuple[int, int, int]:
    """Compressed size, size and offset of the local header; where 32 bits do not hold them they are in `extra`."""
    packed, unpacked, header = fields[8], fields[9], fields[16]
    if 0xFFFFFFFF not in (packed, unpacked, header):
        return packed, unpacked, header
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = [struct.unpack_from("<Q", extra, 4 + i)[0] for i in range(0, min(length, len(extra) - 4) - 7, 8)]
            try:
                # In this order, and only those that did not fit.
                unpacked = wide.pop(0) if unpacked == 0xFFFFFFFF else unpacked
                packed = wide.pop(0) if packed == 0xFFFFFFFF else packed
                header = wide.pop(0) if header == 0xFFFFFFFF else header
            except IndexError:
                break
            return packed, unpacked, header
        extra = extra[4 + length :]
    raise CheckpointError(_DAMAGED)


def _data_offset(file: BinaryIO, size: int, header: int) -> int:
    if header + _LOCAL.size > size:
        raise CheckpointError(_DAMAGED)
    fields = _LOCAL.unpack(_read(file, header, _LOCAL.size))
    if fields[0] != MAGIC:
        raise CheckpointError(_DAMAGED)
    return header + _LOCAL.size + fields[9] + fields[10]
