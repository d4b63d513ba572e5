"""One array inside a checkpoint file: where its bytes are and how to read them."""

import dataclasses
import math
from typing import BinaryIO

import numpy as np

# Names of element types as numpy has them; bfloat16, which numpy lacks, is widened to float32 on reading.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
FLOATS = ("float64", "float32", "float16", "bfloat16")

# numpy's own limit.
MAX_DIMENSIONS = 64
# Bytes to which elements may be repeated.
_MAX_REPEATED = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used, with the reason and what to do."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """`dtype`: a key of ITEM_SIZES; `strides` in elements, none negative; `offset`: of the first element, in bytes
    from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def extent(self) -> int:
        """Elements from the first to the last, both included, as they lie in the file."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    def check(self, name: str, end: int) -> None:
        """Refuses an array that leaves its storage, or that claims to be far larger than it: a stride of 0 repeats
        elements, any number of times.

        Args:
            end: where its storage ends, in bytes from the beginning of the file.

        Raises:
            CheckpointError: naming the array.
        """
        size = ITEM_SIZES[self.dtype]
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_DIMENSIONS:
            raise CheckpointError(f"{name}: {len(self.shape)} dimensions and {len(self.strides)} strides")
        if min((0, self.offset, *self.shape, *self.strides)) < 0:
            raise CheckpointError(f"{name}: a negative size, stride or offset")
        claimed = math.prod(self.shape) * size
        if self.offset + self.extent * size > end or claimed > max(end - self.offset, _MAX_REPEATED):
            raise CheckpointError(
                f"{name}: an array of shape {self.shape} does not fit into its part of the file; "
                "the file is damaged or was cut short, download or copy it again"
            )

    def read(self, file: BinaryIO) -> np.ndarray:
        """The array, C-contiguous; bfloat16 as float32 with the same values. Only its own bytes are read.

        (Read, not mapped: a file that shrinks under a map kills the process without a message.)

        Raises:
            CheckpointError: the file has become shorter.
        """
        stored = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")
        flat = np.empty(self.extent, stored)
        file.seek(self.offset)
        if file.readinto(flat.view(np.uint8)) != flat.nbytes:
            raise CheckpointError("the file was cut short while it was read: copy or download it again")
        steps = tuple(step * stored.itemsize for step in self.strides)
        if 0 in self.shape:
            array = np.empty(self.shape, stored)
        else:
            array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps)).reshape(self.shape)
        if self.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a C-contiguous array."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
