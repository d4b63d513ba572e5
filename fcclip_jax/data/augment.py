"""Large-scale jitter: flip, scale, crop and pad, as FC-CLIP is trained with (detectron2's ResizeScale, FixedSizeCrop).

What happens to an image depends on a seed and on its number in the endless stream of training images alone, never on
which process or worker handles it.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int16, Int64, UInt8
from PIL import Image

from fcclip_jax.data.resize_window import bilinear_window, nearest_window
from fcclip_jax.data.targets import NO_SEGMENT

IMAGE_PADDING = 128


# What a stream of random bits is for.
_VIEWS, _ORDER = 0, 1


def _bits(seed: int, purpose: int, number: int, count: int) -> np.ndarray:
    """uint64 `[count]`, a pure function of the numbers: Philox, and raw, because numpy keeps its raw bits the same from
    version to version, and not what its Generator makes of them."""
    return np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]).random_raw(count)


@functools.lru_cache(maxsize=2)  # batches under way touch two epochs at most
def epoch_order(seed: int, epoch: int, length: int) -> Int64[np.ndarray, " length"]:
    """The order in which an epoch goes through `length` images. 0 <= seed < 2^64."""
    return np.argsort(_bits(seed, _ORDER, epoch, length), kind="stable")


@dataclasses.dataclass(frozen=True)
class View:
    """One draw: mirrored or not, the scale of the target box, and where the crop lies (the same share of the free
    room in both axes, 0 at the top left, 1 at the bottom right)."""

    flip: bool
    scale: float
    offset: float


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
    """Views of `image_size` x `image_size` pixels. With `flip_probability` 0 and equal scales only the crop is drawn.

    Raises ValueError for a size below 1, scales not 0 < min <= max, or a probability outside [0, 1].
    """

    image_size: int = 1024
    min_scale: float = 0.1
    max_scale: float = 2.0
    flip_probability: float = 0.5

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")
        if not 0 < self.min_scale <= self.max_scale < np.inf:
            raise ValueError(f"scales must be 0 < min <= max, not {self.min_scale} and {self.max_scale}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be in [0, 1], not {self.flip_probability}")

    def draw(self, seed: int, number: int) -> View:
        """The view of the image that is `number`-th in the training stream. 0 <= seed < 2^64."""
        flip, scale, offset = (_bits(seed, _VIEWS, number, 3) >> np.uint64(11)) * 2.0**-53
        low, high = self.min_scale, self.max_scale
        return View(bool(flip < self.flip_probability), float(low + (high - low) * scale), float(offset))

    def geometry(self, height: int, width: int, view: View) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size (height, width) that the image is resized to, and the top left corner (y, x) of the crop in it.

        Halves are rounded to even, as in the reference. Where that gives 0 (and the reference fails), 1.
        """
        box = self.image_size * view.scale
        ratio = min(box / height, box / width)
        size = np.maximum(np.round(np.array([height, width]) * ratio).astype(int), 1)
        corner = np.round(np.maximum(size - self.image_size, 0) * view.offset).astype(int)
        return (int(size[0]), int(size[1])), (int(corner[0]), int(corner[1]))

    def apply(
        self,
        image: Image.Image,
        rows: Int16[np.ndarray, "h w"],
        view: View,
        out_image: UInt8[np.ndarray, "H W 3"],
        out_rows: Int16[np.ndarray, "H W"],
    ) -> None:
        """Fills `out_image` and `out_rows` (of `image_size`) with the view of an RGB image and its row map: bilinear
        (antialiased where it shrinks) and nearest, both to the bit as Pillow resizes the whole. Right and bottom are
        padded with grey (128) and NO_SEGMENT."""
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            rows = rows[:, ::-1]
        size, corner = self.geometry(image.height, image.width, view)
        height, width = min(size[0], self.image_size), min(size[1], self.image_size)
        bilinear_window(image, size, corner, out_image[:height, :width])
        nearest_window(rows, size, corner, out_rows[:height, :width])
        for out, padding in ((out_image, IMAGE_PADDING), (out_rows, NO_SEGMENT)):
            out[height:] = padding
            out[:height, width:] = padding
