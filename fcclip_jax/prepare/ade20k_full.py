"""ADE20K-847: the full data set (release 2021_17_01), made smaller and with the numbers of its 847 classes.

FC-CLIP's script takes the list of images from the data set's index, a pickle, which is not trusted here: the folders
hold the same images.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from fcclip_jax.data.benchmarks import SPLITS
from fcclip_jax.data.files import list_files
from fcclip_jax.prepare.conversion import Conversion, Job, write_image
from fcclip_jax.prepare.opencv_resize import resize_linear, resize_nearest
from fcclip_jax.prepare.segments import check_size, stored_rgb
from fcclip_jax.vocabulary import Vocabulary

IGNORED = 65535
SHORT_EDGE = 512  # pixels, at most
LAYOUT = """expected for `fcclip prepare ade20k_847` is:
    ADE20K_2021_17_01/images/ADE/{validation,training}/GROUP/SCENE/ADE_val_00000001.jpg
    ADE20K_2021_17_01/images/ADE/{validation,training}/GROUP/SCENE/ADE_val_00000001_seg.png"""


def ade20k_847(root: Path, split: str) -> list[Job]:
    """`images_detectron2` and `annotations_detectron2` (16-bit TIFF, 65535 for objects of no class)."""
    base, folder = root / "ADE20K_2021_17_01", SPLITS[split]
    class_of = np.full(256 * 26, IGNORED, np.int32)  # red up to 255 / 10, green
    for place, cls in enumerate(Vocabulary.builtin("ade20k_847").classes):
        class_of[cls.id] = place
    conversions = []
    for image in list_files(base / "images/ADE" / folder, f"**/ADE_{split}_*.jpg", LAYOUT):
        outputs = (
            base / "images_detectron2" / folder / image.name,
            base / "annotations_detectron2" / folder / f"{image.stem}.tif",
        )
        conversions.append(Conversion(image.stem, outputs, partial(_convert, image, *outputs, class_of)))
    return [Job(f"ADE20K-847, {folder}", conversions)]


def _convert(image: Path, image_output: Path, label_output: Path, class_of: Int32[np.ndarray, " ids"]) -> None:
    source = image.with_name(f"{image.stem}_seg.png")
    picture, colours = stored_rgb(image), stored_rgb(source)
    check_size(source, colours, image, picture.shape[:2])
    labels = class_of[colours[..., 0] // 10 * np.int32(256) + colours[..., 1]].astype(np.uint16)
    size = _new_size(*picture.shape[:2])
    if size is not None:
        picture, labels = resize_linear(picture, *size), resize_nearest(labels, *size)
    write_image(image_output, picture)
    write_image(label_output, labels)


def _new_size(height: int, width: int) -> tuple[int, int] | None:
    """None: the shorter edge is short enough."""
    if min(height, width) <= SHORT_EDGE:
        return None
    if width >= height:
        return SHORT_EDGE, round(width / height * SHORT_EDGE)
    return round(height / width * SHORT_EDGE), SHORT_EDGE
