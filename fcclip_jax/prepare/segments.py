"""What several data sets need: sizes that agree, and segments as COCO describes them."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from fcclip_jax.data.records import DataError


def stored_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as its file stores it (EXIF orientation not applied, as in the scripts).

    Raises DataError for a missing file and for no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except UnidentifiedImageError:
        raise DataError(path, "no image, or damaged at its start") from None
    except OSError as error:
        raise DataError(path, error.strerror or f"damaged or cut short ({error})") from error


def stored_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels as the file stores them, not turned by EXIF either. Raises DataError for a missing file, and one that
    is damaged or no image."""
    stored_size(path)
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # on damaged files Pillow's readers raise a dozen kinds of error
        text = str(error).strip().splitlines()
        raise DataError(path, f"damaged or cut short ({text[0] if text else type(error).__name__})") from error


def check_size(path: Path, array: Shaped[np.ndarray, "H W *C"], other: Path, size: tuple[int, int]) -> None:
    """Raises DataError when an annotation is not of the size of its image, or of the other annotation."""
    if array.shape[:2] != size:
        (height, width), (other_height, other_width) = array.shape[:2], size
        raise DataError(path, f"is {width} x {height} pixels, but {other} is {other_width} x {other_height}")


def segment_info(id_: int, category_id: int, mask: Bool[np.ndarray, "H W"], iscrowd: int = 0) -> dict:
    """An entry of `segments_info`."""
    return {
        "id": int(id_),
        "category_id": int(category_id),
        "area": int(mask.sum()),
        "bbox": bounding_box(mask),
        "iscrowd": iscrowd,
    }


def regions(ids: Integer[np.ndarray, "H W"]) -> dict[int, dict]:
    """`area` and `bbox` of all pixels of each id, in the order of the ids. From the runs of the rows: a mask for each
    of many segments of a large map takes longer."""
    width, flat = ids.shape[1], ids.ravel()
    starts = np.concatenate([[True], flat[1:] != flat[:-1]])
    starts[::width] = True
    start = np.flatnonzero(starts)
    length = np.diff(start, append=flat.size)
    values, place = np.unique(flat[start], return_inverse=True)
    row, left = start // width, start % width
    edges = np.full((4, len(values)), ids.size)
    for edge, positions in zip(edges, (left, row, -(left + length), -(row + 1)), strict=True):
        np.minimum.at(edge, place, positions)
    x, y, right, bottom = edges * np.array([[1], [1], [-1], [-1]])
    boxes = np.stack([x, y, right - x, bottom - y], axis=1).tolist()
    areas = np.bincount(place, length).astype(np.int64).tolist()
    return {id_: {"area": a, "bbox": box} for id_, a, box in zip(values.tolist(), areas, boxes, strict=True)}


def bounding_box(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """Left, top, width and height of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
