"""Reads the maps of the official formats: panoptic PNGs, label maps, instance maps."""

import functools
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, UInt8, UInt32
from PIL import Image, UnidentifiedImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZE_AND_TYPE = slice(16, 26)  # of the IHDR chunk: width, height, bits a sample, colour type
RGB8 = (8, 2)


class BadSample(ValueError):
    """One image of an evaluation cannot be used; the message begins with its file. The others may be."""


def read_panoptic_png(path: str | os.PathLike) -> UInt32[np.ndarray, "H W"]:
    """Segment ids, R + 256 G + 65536 B.

    Raises:
        BadSample: no such file, damaged, or not an RGB image.
    """
    data = _read(path)
    rgb = _decode_rgb8(data)
    if rgb is None:
        image = _open(path, data)
        if image.mode not in ("RGB", "RGBA"):
            raise BadSample(
                f"{path}: a panoptic PNG is an RGB image whose segment id is R + 256 G + 65536 B, "
                f"this one has the mode {image.mode}"
            )
        rgb = np.asarray(image)[..., :3]
    return rgb_to_id(rgb)


def rgb_to_id(rgb: UInt8[np.ndarray, "H W 3"]) -> UInt32[np.ndarray, "H W"]:
    """R + 256 G + 65536 B of every pixel."""
    height, width = rgb.shape[:2]
    count = height * width
    flat = np.ascontiguousarray(rgb).reshape(-1)
    ids = np.empty(count, np.uint32)
    # Every fourth byte belongs to the next pixel and is cut off: one pass instead of seven over strided channels.
    # The last pixel has no next one.
    overlapping = np.ndarray((count - 1,), "<u4", flat, strides=(3,))
    np.bitwise_and(overlapping, 0xFFFFFF, out=ids[:-1])
    ids[-1] = int(flat[-3]) | int(flat[-2]) << 8 | int(flat[-1]) << 16
    return ids.reshape(height, width)


def read_label_png(path: str | os.PathLike) -> Integer[np.ndarray, "H W"]:
    """Labels of an 8- or 16-bit greyscale image, or the indices of one with a palette; PNG, or TIFF (ADE20K-full).

    Raises:
        BadSample: no such file, damaged, or a colour image.
    """
    image = _open(path, _read(path))
    if image.mode not in ("L", "P") and not image.mode.startswith("I"):
        raise BadSample(f"{path}: a label map has one channel, this image has the mode {image.mode}")
    return np.asarray(image)


def read_mask_png(path: str | os.PathLike) -> Bool[np.ndarray, "H W"]:
    """True where a greyscale mask is not zero. BadSample: no such file, or damaged."""
    return np.asarray(_open(path, _read(path)).convert("L")) != 0


def _read(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadSample(f"{path}: {error.strerror}") from None


def _open(path: str | os.PathLike, data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        raise BadSample(f"{path}: not an image, or damaged at its beginning") from None
    except Exception as error:  # Pillow raises whatever its decoders met: OSError, SyntaxError, struct.error, ...
        raise BadSample(f"{path}: damaged: {error}") from None
    return image


def _decode_rgb8(data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """The same pixels as Pillow's, four times as fast; None where the decoder is missing or declines."""
    decode = _fast_decoder()
    if decode is None or not data.startswith(SIGNATURE) or len(data) < SIZE_AND_TYPE.stop:
        return None
    width, height, *kind = struct.unpack(">IIBB", data[SIZE_AND_TYPE])
    if tuple(kind) != RGB8:
        return None
    try:
        return decode(data, (height, width), "rgb")
    except Exception:  # damaged: Pillow has the last word, and the message
        return None


@functools.cache
def _fast_decoder() -> Callable | None:
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    return decode_image_png_u8
