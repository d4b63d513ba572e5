"""What a training source hands out: one image, its panoptic map and what the map's ids mean."""

import dataclasses
import io

import numpy as np
from jaxtyping import Bool, Int32, Int64
from PIL import Image, ImageOps, UnidentifiedImageError

# A closed list: some of Pillow's readers start external programs (EPS), and some take almost any bytes (TGA).
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_ORIENTATION_TAG = 0x0112


class DataError(ValueError):
    """Something wrong in a training set. `name` says where (a file, an image), `reason` what and what to do."""

    def __init__(self, name: object, reason: str):
        super().__init__(str(name), reason)  # both in args, so that the error travels between processes
        self.name, self.reason = str(name), reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class PanopticRecord:
    """One annotated image, still encoded.

    `image`, `panoptic`: the bytes of the two files, `image_name` and `panoptic_name` what to call them in messages.
    `segment_ids` `[N]`: the values in the panoptic map, in the order of the annotation; `classes` `[N]`: their rows
    in the vocabulary; `crowd` `[N]`: regions that hold several things and are no target.
    """

    image_id: int
    image_name: str
    panoptic_name: str
    image: bytes
    panoptic: bytes
    segment_ids: Int64[np.ndarray, " N"]
    classes: Int32[np.ndarray, " N"]
    crowd: Bool[np.ndarray, " N"]

    def decode(self) -> tuple[Image.Image, Image.Image]:
        """The image and its panoptic map, both RGB, of one size.

        Raises DataError for a file that is damaged, empty or no image, and where the two sizes differ.
        """
        image = decode_image(self.image, self.image_name)
        panoptic = decode_image(self.panoptic, self.panoptic_name)
        if image.size != panoptic.size:
            (w, h), (other_w, other_h) = panoptic.size, image.size
            raise DataError(
                self.panoptic_name, f"is {w} x {h} pixels, but its image {self.image_name} is {other_w} x {other_h}"
            )
        return image, panoptic


def decode_image(data: bytes, name: str) -> Image.Image:
    """An RGB picture from the bytes of its file, upright (EXIF orientation applied), fully decoded.

    Raises DataError, calling the file `name`, when it is empty, damaged, cut short or no image.
    """
    if not data:
        raise DataError(name, "the file is empty")
    try:
        Image.init()
        image = Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
        image.load()
        if image.getexif().get(_ORIENTATION_TAG, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(name, f"no image, or damaged at its start (read are: {', '.join(_FORMATS)})") from None
    # On damaged files Pillow's readers raise a dozen kinds of error, SyntaxError among them.
    except Exception as error:
        raise DataError(name, f"damaged or cut short ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
