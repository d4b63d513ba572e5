"""Published figures, to stand beside one's own. Source: FC-CLIP (arXiv 2308.02487), tables 1 to 3 and its repository.

Percent. The released ConvNeXt-L checkpoint was picked on ADE20K's validation images.
"""

from collections.abc import Mapping

BACKBONES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "convnext_large_d_320": "ConvNeXt-L",
}
"""Name of the towers in open_clip, and in the paper."""

_COLUMNS = (
    ("ade20k_150", "PQ"),
    ("ade20k_150", "AP"),
    ("ade20k_150", "mIoU"),
    ("cityscapes", "PQ"),
    ("cityscapes", "AP"),
    ("cityscapes", "mIoU"),
    ("mapillary_vistas", "PQ"),
    ("mapillary_vistas", "mIoU"),
    ("ade20k_847", "mIoU"),
    ("pascal_context_59", "mIoU"),
    ("pascal_context_459", "mIoU"),
    ("pascal_voc_21", "mIoU"),
    ("pascal_voc_20", "mIoU"),
    ("coco_panoptic", "PQ"),
    ("coco_panoptic", "AP"),
    ("coco_panoptic", "mIoU"),
)
_ROWS = {
    "RN50": (17.9, 9.5, 23.3, 40.3, 21.6, 53.2, 15.9, 24.4, 7.1, 50.5, 12.9, 75.9, 89.5, 50.7, 40.7, 58.8),
    "RN101": (19.1, 10.2, 24.0, 40.9, 24.1, 53.9, 16.7, 23.2, 7.7, 48.9, 12.3, 77.6, 91.3, 51.4, 41.6, 58.9),
    "RN50x4": (21.8, 11.7, 26.8, 42.2, 23.8, 54.6, 17.4, 24.6, 8.7, 54.0, 13.1, 79.0, 92.9, 52.1, 42.8, 60.4),
    "RN50x16": (22.5, 13.6, 29.4, 42.0, 25.6, 56.0, 17.8, 26.1, 10.3, 56.4, 15.7, 80.7, 94.5, 54.4, 45.0, 63.3),
    "RN50x64": (22.8, 13.6, 28.4, 42.7, 27.4, 55.1, 18.2, 27.3, 10.8, 55.7, 16.2, 80.3, 95.1, 55.6, 46.4, 65.3),
    "ConvNeXt-L": (26.8, 16.8, 34.1, 44.0, 26.8, 56.2, 18.3, 27.8, 14.8, 58.4, 18.2, 81.8, 95.4, 54.4, 44.6, 63.7),
}
_ABLATIONS = {
    ("ConvNeXt-L", "in_vocabulary", "ade20k_150"): {"PQ": 17.8},
    ("ConvNeXt-L", "out_vocabulary", "ade20k_150"): {"PQ": 21.9},
}


def published(backbone: str, benchmark: str, classifier: str = "ensemble") -> Mapping[str, float]:
    """Figure to percent of the paper's model with these towers (their name in open_clip) on a benchmark; empty where
    the paper has none. `classifier`: "ensemble", or one of its ablations "in_vocabulary" and "out_vocabulary"."""
    name = BACKBONES.get(backbone)
    if name is None:
        return {}
    if classifier != "ensemble":
        return _ABLATIONS.get((name, classifier, benchmark), {})
    return {figure: value for (column, figure), value in zip(_COLUMNS, _ROWS[name], strict=True) if column == benchmark}
