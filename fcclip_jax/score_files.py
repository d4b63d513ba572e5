"""`fcclip score`: prediction files of any program, in the official formats, to the figures of the official tools."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

EXIT_SKIPPED = 1
NO_LABEL = 65535  # no class has it, and no list is that long


def add_arguments(commands) -> None:
    """Adds `score` to the subparsers of the command line; its namespace has `run(options) -> exit code`."""
    score = commands.add_parser("score", help="score prediction files of any program, in the official formats")
    kinds = score.add_subparsers(dest="kind", required=True, metavar="panoptic|semantic|instance")
    panoptic = _add(kinds, "panoptic", run_panoptic, "PQ, SQ, RQ of a COCO panoptic JSON and its folder of PNGs")
    panoptic.add_argument("--truth", required=True, metavar="JSON", help="with categories, segments_info, areas")
    panoptic.add_argument("--truth_dir", metavar="DIR", help="its PNGs (default: the name of --truth without .json)")
    panoptic.add_argument("--predictions", required=True, metavar="JSON")
    panoptic.add_argument("--predictions_dir", metavar="DIR", help="its PNGs (default: as for --truth_dir)")
    semantic = _add(kinds, "semantic", run_semantic, "mIoU, fwIoU, mACC, pACC of a folder of label maps")
    semantic.add_argument("--truth", required=True, metavar="DIR", help="label maps, one channel, labels 0 .. N-1")
    semantic.add_argument("--predictions", required=True, metavar="DIR", help="the same, under the same names")
    semantic.add_argument("--classes", required=True, type=_positive, metavar="N", help="number of classes")
    semantic.add_argument("--ignore", type=int, default=None, metavar="LABEL", help="true label not counted (255)")
    semantic.add_argument("--truth_ids", metavar="LABELS", help=_IDS + "; other true labels are not counted")
    semantic.add_argument("--predictions_ids", metavar="LABELS", help=_IDS)
    semantic.add_argument("--truth_suffix", metavar="TEXT", help="only truth files that end so (default: .png, .tif)")
    semantic.add_argument("--predictions_suffix", metavar="TEXT", help="only predictions that end so (the same)")
    instance = _add(kinds, "instance", run_instance, "mask AP of a COCO results JSON, or of Cityscapes text files")
    instance.add_argument(
        "--truth", required=True, metavar="JSON", help="COCO instances; Cityscapes: folder gtFine/val"
    )
    instance.add_argument("--predictions", required=True, metavar="JSON", help="COCO results; Cityscapes: a folder")
    instance.add_argument("--protocol", choices=("coco", "cityscapes"), default="coco", help="default: %(default)s")


_IDS = "these maps hold the numbers of this label file or built-in list, not places from 0"


def _add(kinds, name: str, run: Callable, description: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=description, description=description)
    parser.add_argument("--output", required=True, metavar="JSON", help="figures in percent, and by class")
    parser.add_argument("--skip_bad", action="store_true", help="pass over images that cannot be used, and list them")
    parser.add_argument("--workers", type=_positive, help="processes (default: as many as there are processors)")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run_panoptic(options: argparse.Namespace) -> int:
    """Scores panoptic PNGs. Returns 0, or 1 when images were skipped. ValueError: the input cannot be used."""
    from fcclip_jax.evaluation.panoptic_files import count_panoptic, panoptic_pairs
    from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
    from fcclip_jax.evaluation.tables import panoptic_table

    categories, pairs = panoptic_pairs(options.truth, options.predictions, options.truth_dir, options.predictions_dir)
    return _score(options, pairs, partial(PanopticQuality, categories), count_panoptic, panoptic_table)


def run_semantic(options: argparse.Namespace) -> int:
    """Scores label maps. Returns and raises as run_panoptic."""
    from fcclip_jax.evaluation.miou import IGNORE, MeanIoU
    from fcclip_jax.evaluation.semantic_files import count_labels, label_pairs
    from fcclip_jax.evaluation.tables import semantic_table

    if options.ignore is None and options.classes > IGNORE:
        raise ValueError(
            f"with {options.classes} classes, {IGNORE} is one of them: give the ignored label, such as --ignore 65535"
        )
    ignore = IGNORE if options.ignore is None else options.ignore
    tables = {
        "truth_table": _table_of(options.truth_ids, options.classes, ignore, others=ignore),
        "predictions_table": _table_of(options.predictions_ids, options.classes, ignore, others=NO_LABEL),
    }
    pairs = label_pairs(options.truth, options.predictions, options.truth_suffix, options.predictions_suffix)
    feed = partial(count_labels, **tables)
    return _score(options, pairs, partial(MeanIoU, options.classes, ignore), feed, semantic_table)


def _table_of(labels: str | None, classes: int, ignore: int, others: int):
    from fcclip_jax.evaluation.semantic_files import label_table
    from fcclip_jax.vocabulary.vocabulary import Vocabulary

    if labels is None:
        return None
    ids = [cls.id for cls in Vocabulary.parse(labels).classes]
    if len(ids) != classes or None in ids:
        raise ValueError(
            f"{labels} has {len(ids)} classes{' without numbers' * (None in ids)}, --classes says {classes}"
        )
    if ignore in ids or max(ids) >= NO_LABEL:
        raise ValueError(
            f"{labels} has a class with the number {ignore if ignore in ids else max(ids)}: it cannot be one"
        )
    return label_table(ids, ignore, others)


def run_instance(options: argparse.Namespace) -> int:
    """Scores instance masks. Returns and raises as run_panoptic."""
    from fcclip_jax.evaluation.tables import instance_table

    if options.protocol == "cityscapes":
        from fcclip_jax.evaluation.cityscapes_ap import CityscapesAP
        from fcclip_jax.evaluation.cityscapes_files import cityscapes_images, count_cityscapes

        samples = cityscapes_images(options.truth, options.predictions)
        return _score(options, samples, CityscapesAP, count_cityscapes, instance_table)
    try:
        from fcclip_jax.evaluation.mask_ap import MaskAP
    except ImportError as error:
        raise ValueError(str(error)) from None
    from fcclip_jax.evaluation.instance_files import count_instances, instance_images

    categories, samples = instance_images(options.truth, options.predictions)
    options.workers = 1  # to hand the masks over would take longer than to match them
    return _score(options, samples, partial(MaskAP, categories), count_instances, instance_table)


def _score(options: argparse.Namespace, samples: Sequence, new: Callable, feed: Callable, table: Callable) -> int:
    from fcclip_jax.evaluation.json_files import write_json
    from fcclip_jax.evaluation.tally import tally

    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; it is the JSON file to write")
    total, skipped = tally(samples, new, feed, skip_bad=options.skip_bad, workers=options.workers)
    if not total.images:
        raise ValueError(f"none of the {len(samples)} images could be used; the first: {skipped[0]}")
    figures = total.compute() | {"images": total.images, "skipped": skipped}
    write_json(output, figures)
    print(table(figures))
    print(f"{total.images} images, {len(skipped)} skipped; figures in {output}")
    for message in skipped:
        print(f"skipped: {message}")
    return EXIT_SKIPPED if skipped else 0
