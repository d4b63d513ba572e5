"""Annotations as pictures: panoptic maps whose colours are ids, and label maps of one channel, also 16-bit ones."""

import io

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8
from PIL import Image, UnidentifiedImageError

from fcclip_jax.data.records import DataError

_FORMATS = ("PNG", "TIFF", "BMP")
_ONE_CHANNEL = ("L", "P", "I", "I;16", "I;16B")


def decode_ids(data: bytes, name: str) -> Int32[np.ndarray, "H W"]:
    """Segment ids, R + 256 G + 65536 B, of a panoptic map. Raises DataError, calling the file `name`, when it is
    damaged or no RGB image."""
    image = _open(data, name)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(
            name, f"is no panoptic map: those are RGB images, id = R + 256 G + 65536 B, this has the mode {image.mode}"
        )
    return rgb_to_id(np.asarray(image)[..., :3])


def rgb_to_id(rgb: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
    """R + 256 G + 65536 B of every pixel."""
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def id_to_rgb(ids: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The inverse of `rgb_to_id`."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def runs(ids: Integer[np.ndarray, "H W"]) -> tuple[Integer[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """The values and lengths of the R runs of equal pixels, row after row: some hundred times fewer than pixels."""
    flat = ids.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return flat[starts], np.diff(starts, append=flat.size)


def decode_labels(data: bytes, name: str) -> Integer[np.ndarray, "H W"]:
    """The labels of an image with one channel of 8, 16 or 32 bits, or the indices of one with a palette.

    Raises DataError, calling the file `name`, when it is damaged or a colour image.
    """
    image = _open(data, name)
    if image.mode not in _ONE_CHANNEL:
        raise DataError(name, f"is no label map: those have one channel, this image has the mode {image.mode}")
    labels = np.asarray(image)
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise DataError(name, "the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except UnidentifiedImageError:
        raise DataError(name, f"no image, or damaged at its start (read are: {', '.join(_FORMATS)})") from None
    except Exception as error:  # on damaged files Pillow's readers raise a dozen kinds of error
        text = str(error).strip().splitlines()
        raise DataError(name, f"damaged or cut short ({text[0] if text else type(error).__name__})") from error
    return image
