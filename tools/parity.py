"""How far every stage is from the original program: `make parity` writes docs/parity.md.

The tiny model's reference arrays come with the repository. Those of the full ConvNeXt-L, on a real photo, are read from
the folder of reference outputs, `../shared/oracle`, and left out where it is absent.
"""

import argparse
import datetime
import json
import platform
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from pycocotools import mask as coco_mask

from convert.fcclip import convert
from fcclip_jax.data.image_files import read_image
from fcclip_jax.results.results import compute_results
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from tests import formula_weights
from tests.reference_stages import StageError, compare

ROOT = Path(__file__).resolve().parents[1]
ORACLE = ROOT.parent / "shared" / "oracle"
SAMPLES = ROOT.parent / "shared" / "samples"
PHOTO = "000000142238.jpg"


def formula_model(manifest: Path, folder: Path, train_classes: list[str] | None = None) -> Path:
    """A model folder with formula weights, made anew in `folder` by today's converter."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, labels = folder / "formula.pth", None
    formula_weights.write_checkpoint(formula_weights.read_manifest(manifest), checkpoint)
    if train_classes is not None:
        labels = folder / "train_labels.txt"
        labels.write_text("".join(f"{i}:{line}\n" for i, line in enumerate(train_classes)), encoding="utf-8")
    convert(checkpoint, folder / "model", train_labels=labels)
    checkpoint.unlink()
    return folder / "model"


def reference_vocabulary(name: str) -> Vocabulary:
    """The class list that the reference outputs were computed with, things and stuff told apart."""
    table = json.loads((ORACLE / "vocabularies.json").read_text())[name]
    things = set(table["thing_contiguous_ids"])
    lines = table["stuff_classes"]
    return Vocabulary.parse([f"{line} [{'thing' if i in things else 'stuff'}]" for i, line in enumerate(lines)])


def tiny_errors(folder: Path) -> list[StageError]:
    """Every stage of the tiny model on a drawn picture."""
    reference = np.load(ROOT / "tests" / "golden" / "forward.npz")
    segmenter = Segmenter.from_checkpoint(formula_model(ROOT / "tests" / "golden" / "manifest_tiny.json", folder))
    counts = reference["ade/num_templates"]
    classes = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    seen = reference["ade/category_overlapping_mask"].astype(bool)
    images = reference["ade/images"].transpose(0, 2, 3, 1)
    return compare(segmenter.intermediates(images, reference["ade/text_classifier"], classes, seen), reference, "ade/")


def full_errors(folder: Path) -> tuple[list[StageError], dict[str, str]]:
    """Every stage of ConvNeXt-L on a real photo, from its pixels and the words on; and how the results compare."""
    reference = np.load(ORACLE / "e2e_ade_142238_s256.npz")
    manifest = ORACLE / "manifest_fcclip_convnext_large_d_320.json"
    train = json.loads((ORACLE / "vocabularies.json").read_text())["coco"]["stuff_classes"]
    segmenter = Segmenter.from_checkpoint(formula_model(manifest, folder, train), min_size=256)
    vocabulary = reference_vocabulary("ade")
    segmenter.prepare(vocabulary, progress=_progress)
    photo = read_image(SAMPLES / PHOTO)
    ours = segmenter.forward(photo, vocabulary)
    rows = segmenter._text.rows(vocabulary)
    texts = np.load(ORACLE / "text_classifier_ade.npz")
    scale = float(np.abs(texts["text_classifier"]).max())
    worst = float(np.abs(rows - texts["text_classifier"]).max())
    errors = [
        StageError(
            "text rows",
            float(np.linalg.norm(rows - texts["text_classifier"]) / np.linalg.norm(texts["text_classifier"])),
            worst / scale,
        )
    ]
    assert (vocabulary.seen(segmenter.train_vocabulary) == texts["category_overlapping_mask"]).all()
    return errors + compare(ours, reference), compare_results(ours, reference, photo, vocabulary)


def compare_results(ours: dict, reference, photo: np.ndarray, vocabulary: Vocabulary) -> dict[str, str]:
    """Panoptic, semantic and instance results of the photo against the reference's."""
    notes = {}

    def results(tasks, **thresholds):
        return compute_results(
            ours["masks"][-1][0],
            ours["class_log_probs"][0],
            network_size=tuple(int(n) for n in reference["image_chw_uint8"].shape[1:]),
            output_size=photo.shape[:2],
            names=vocabulary.names,
            isthing=vocabulary.isthing,
            tasks=tasks,
            **thresholds,
        )

    full = results(("semantic", "instance"))
    notes["semantic map"] = f"{np.mean(full.semantic == reference['sem_seg.argmax']):.4%} of pixels equal"
    for key in (name for name in reference.files if name.startswith("panoptic_seg") and "info" not in name):
        overlap, least = _thresholds(key)
        found = results(("panoptic",), overlap_threshold=overlap, object_threshold=least)
        expected = json.loads(str(reference[key.replace("panoptic_seg", "panoptic_segments_info")]))
        segments = [{"id": s.id, "isthing": s.isthing, "category_id": s.category_id} for s in found.segments]
        equal = np.mean(found.panoptic == reference[key])
        notes[f"panoptic map, overlap {overlap}, object {least}"] = (
            f"{equal:.4%} of pixels equal, {len(expected)} segments, "
            + ("the same" if segments == expected else f"ours has {len(segments)}")
        )
    notes["instances"] = _compare_instances(full.instances, reference)
    return notes


def _thresholds(key: str) -> tuple[float, float]:
    if key == "panoptic_seg":
        return 0.8, 0.0
    overlap, least = key.removeprefix("panoptic_seg.ov").split(".obj")
    return float(overlap), float(least)


def _compare_instances(instances, reference) -> str:
    shape = tuple(reference["inst.masks_shape"])
    masks = np.unpackbits(reference["inst.masks_packed"])[: np.prod(shape)].reshape(shape)
    theirs = sorted(
        zip(reference["inst.classes"].tolist(), reference["inst.scores"].tolist(), range(len(masks)), strict=True),
        key=lambda item: (-item[1], item[0]),
    )
    ours = sorted(instances, key=lambda item: (-item.score, item.category_id))
    if [i.category_id for i in ours] != [t[0] for t in theirs]:
        return f"{len(ours)} and {len(theirs)}, classes differ"
    scores = max(abs(i.score - t[1]) for i, t in zip(ours, theirs, strict=True))
    differing = sum(int((coco_mask.decode(i.rle) != masks[t[2]]).sum()) for i, t in zip(ours, theirs, strict=True))
    return f"{len(ours)}, classes equal, scores within {scores:.1e}, {differing} of {masks.size} mask pixels differ"


def _progress(done: int, total: int) -> None:
    print(f"\rprompts {done}/{total}", end="\n" if done == total else "", file=sys.stderr)


def table(title: str, errors: list[StageError]) -> list[str]:
    """Markdown of one comparison."""
    rows = []
    for e in errors:
        note = f"{e.left_out} queries left out; {e.with_all:.1e} with them" if e.left_out else ""
        rows.append(f"| {e.stage} | {e.relative:.1e} | {e.largest:.1e} | {note} |")
    return [f"## {title}", "", "| stage | relative (L2) | largest | |", "|---|---|---|---|", *rows, ""]


def too_far(errors: list[StageError], limit: float) -> list[str]:
    """Stages that differ by more than `limit`, relative, or leave out more than five queries."""
    return [e.stage for e in errors if e.relative > limit or e.left_out > 5]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md")
    options = parser.parse_args()
    where = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    lines = [_HEADER.format(date=datetime.date.today(), jax=jax.__version__, machine=where)]
    with tempfile.TemporaryDirectory() as folder:
        tiny = tiny_errors(Path(folder) / "tiny")
        far = too_far(tiny, 1e-5)
        lines += table("Tiny model, drawn picture, 128 x 160", tiny)
        if ORACLE.is_dir():
            errors, results = full_errors(Path(folder) / "full")
            far += too_far(errors, 1e-4)
            lines += table("ConvNeXt-L, photo 142238, 256 x 384, ADE20K words", errors)
            lines += ["## Results on the photo, ConvNeXt-L", "", "| result | against the original |", "|---|---|"]
            lines += [f"| {key} | {value} |" for key, value in results.items()] + ["", _NOTE]
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"written: {options.output}")
    if far:
        print(f"further from the original than promised: {', '.join(far)}", file=sys.stderr)
    return 1 if far else 0


_HEADER = """# Parity with the original program

Every stage of the forward pass against what the original PyTorch program computed from the same weights (drawn by a
formula, `tests/formula_weights.py`), in float32. `relative` is the norm of the difference over the norm of the
reference, `largest` the largest absolute difference over the largest absolute value; for attention masks both are the
share of cells that differ. Written by `make parity` on {date}, jax {jax}, {machine};
it fails where a stage of the tiny model is further away than 1e-5, or one of ConvNeXt-L than 1e-4, relative.
"""

_NOTE = """Queries left out: the class logits of a layer are pooled over the pixels whose mask logit is positive. Where
one lies within rounding of 0, one program counts the pixel and the other does not, and in a mask of few pixels that
moves the query's logits. Queries, masks and the layers after them are not touched: logits feed nothing.
"""

if __name__ == "__main__":
    sys.exit(main())
