"""PASCAL VOC 20 and 21 (of VOC 2012), PASCAL Context 59 and 459 (of VOC 2010)."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from fcclip_jax.data.annotation_maps import decode_labels
from fcclip_jax.data.benchmarks import SPLITS
from fcclip_jax.data.evaluation_record import look_up
from fcclip_jax.data.files import expect_folder, json_entries, list_files, plain_name, read_file, read_json
from fcclip_jax.data.records import DataError
from fcclip_jax.prepare.conversion import Conversion, Job, copy_file, write_image
from fcclip_jax.prepare.segments import check_size, stored_size
from fcclip_jax.vocabulary import Vocabulary

VOC_CLASSES = 20
VOC_LAYOUT = """expected for `fcclip prepare pascal_voc_20` (and `..._21`) is what VOCtrainval_11-May-2012.tar holds:
    VOCdevkit/VOC2012/ImageSets/Segmentation/{val,train}.txt
    VOCdevkit/VOC2012/JPEGImages/*.jpg
    VOCdevkit/VOC2012/SegmentationClass/*.png"""
CONTEXT_59_LAYOUT = """expected for `fcclip prepare pascal_context_59` is:
    VOCdevkit/VOC2010/trainval_merged.json (of PASCAL in Detail)
    VOCdevkit/VOC2010/JPEGImages/*.jpg"""
CONTEXT_459_LAYOUT = """expected for `fcclip prepare pascal_context_459` is:
    VOCdevkit/VOC2010/trainval/*.mat (of PASCAL Context)
    pascal_ctx_d2/images/{validation,training}/*.jpg (which `fcclip prepare pascal_context_59` makes)"""


def pascal_voc(root: Path, split: str, kind: int) -> list[Job]:
    """`pascal_voc_d2`: images, and label maps of 21 classes (background is 0) or of 20 (it is ignored); 255 is
    ignored in both."""
    base, made, folder = root / "VOCdevkit/VOC2012", root / "pascal_voc_d2", SPLITS[split]
    names = base / f"ImageSets/Segmentation/{split}.txt"
    expect_folder(base / "SegmentationClass", VOC_LAYOUT)
    if not names.is_file():
        raise DataError(names, f"no such file; {VOC_LAYOUT}")
    table = np.full(256, -1, np.int32)
    table[1 : VOC_CLASSES + 1] = np.arange(1, VOC_CLASSES + 1) - (kind == VOC_CLASSES)
    table[0], table[255] = (255 if kind == VOC_CLASSES else 0), 255
    conversions = []
    for line in names.read_text(encoding="utf-8").split():
        name = plain_name(line, names)
        sources = base / f"JPEGImages/{name}.jpg", base / f"SegmentationClass/{name}.png"
        outputs = made / "images" / folder / f"{name}.jpg", made / f"annotations_pascal{kind}" / folder / f"{name}.png"
        conversions.append(Conversion(name, outputs, partial(_voc, *sources, *outputs, table)))
    return [Job(f"PASCAL VOC {kind}, {folder}", conversions)]


def _voc(image: Path, labels: Path, image_output: Path, label_output: Path, table: Int32[np.ndarray, "256"]) -> None:
    array = decode_labels(read_file(labels), str(labels))
    check_size(labels, array, image, stored_size(image))
    write_image(label_output, look_up(table, array, str(labels)).astype(np.uint8))
    copy_file(image, image_output)


def pascal_context_59(root: Path, split: str) -> list[Job]:
    """`pascal_ctx_d2`: images, and label maps of 59 classes, 255 elsewhere, drawn from the masks of PASCAL in Detail
    in the order of its file."""
    base, made, folder = root / "VOCdevkit/VOC2010", root / "pascal_ctx_d2", SPLITS[split]
    path = base / "trainval_merged.json"
    content = read_json(path, CONTEXT_59_LAYOUT)
    masks: dict[int, list[tuple[int, dict]]] = defaultdict(list)
    try:
        for entry in json_entries(path, content, "annos_segmentation", "the file of PASCAL in Detail"):
            masks[entry["image_id"]].append((entry["category_id"], entry["segmentation"]))
        images = [
            (image["image_id"], plain_name(image["file_name"], path))
            for image in json_entries(path, content, "images", "the file of PASCAL in Detail")
            if image["phase"] == split
        ]
    except (KeyError, TypeError) as error:
        raise DataError(path, f"not the file of PASCAL in Detail: {type(error).__name__} {error}") from error
    if not images:
        raise DataError(path, f"lists no image of the phase {split!r}")
    class_of = {cls.id: place for place, cls in enumerate(Vocabulary.builtin("pascal_context_59").classes)}
    conversions = []
    for id_, name in images:
        source = base / "JPEGImages" / name
        outputs = made / "images" / folder / name, made / "annotations_ctx59" / folder / f"{Path(name).stem}.png"
        convert = partial(_context_59, source, *outputs, tuple(masks[id_]), class_of, str(path))
        conversions.append(Conversion(name, outputs, convert))
    return [Job(f"PASCAL Context 59, {folder}", conversions)]


def _context_59(
    image: Path,
    image_output: Path,
    label_output: Path,
    masks: Sequence[tuple[int, dict]],
    class_of: dict[int, int],
    where: str,
) -> None:
    height, width = stored_size(image)
    labels = np.full((height, width), 255, np.uint8)
    for category, rle in masks:
        name = f"{where}: {image.name}"
        if category not in class_of:
            raise DataError(name, f"a mask has the category {category}, which is none of the 59 classes")
        try:
            mask = coco_mask.decode(rle).astype(bool)
        except Exception as error:  # pycocotools raises whatever its C code met
            raise DataError(name, f"a mask of category {category} is no run-length encoding ({error})") from error
        check_size(Path(name), mask, image, (height, width))
        labels[mask] = class_of[category]
    write_image(label_output, labels)
    copy_file(image, image_output)


def pascal_context_459(root: Path, split: str) -> list[Job]:
    """`pascal_ctx_d2/annotations_ctx459`: 16-bit TIFFs of 459 classes, 65535 elsewhere, from PASCAL Context's .mat."""
    folder, matrices = SPLITS[split], expect_folder(root / "VOCdevkit/VOC2010/trainval", CONTEXT_459_LAYOUT)
    made = root / "pascal_ctx_d2/annotations_ctx459" / folder
    conversions = []
    for image in list_files(root / "pascal_ctx_d2/images" / folder, "*.jpg", CONTEXT_459_LAYOUT):
        source, output = matrices / f"{image.stem}.mat", made / f"{image.stem}.tif"
        conversions.append(Conversion(image.stem, (output,), partial(_context_459, image, source, output)))
    return [Job(f"PASCAL Context 459, {folder}", conversions)]


def _context_459(image: Path, source: Path, output: Path) -> None:
    read_file(source)  # its errors are clearer
    try:
        labels = np.asarray(loadmat(source, variable_names=["LabelMap"])["LabelMap"])
    except KeyError:
        raise DataError(source, "holds no LabelMap; the files of PASCAL Context (trainval.tar.gz) do") from None
    except Exception as error:  # scipy raises a dozen kinds of error on damaged files
        raise DataError(source, f"damaged, or no MATLAB file ({str(error) or type(error).__name__})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 459:
        raise DataError(
            source, f"its LabelMap is {labels.dtype} {list(labels.shape)}; expected are whole numbers 0 to 459"
        )
    check_size(source, labels, image, stored_size(image))
    write_image(output, (labels.astype(np.uint16) - np.uint16(1)))  # 0, nothing, becomes 65535
