"""The figures against the official tools themselves, where they are installed:

pip install cityscapesscripts git+https://github.com/cocodataset/panopticapi
"""

import contextlib
import io
import json

import numpy as np
import pytest
from instance_samples import random_cityscapes
from panoptic_samples import CATEGORIES, IDS, random_pair
from PIL import Image

from fcclip_jax.evaluation.cityscapes_ap import CityscapesAP
from fcclip_jax.evaluation.panoptic_files import count_panoptic, panoptic_pairs
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality

pytestmark = pytest.mark.parity
PAIRS = 2000
SCENES = 300


def to_rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def panoptic_files(tmp_path_factory):
    """PAIRS random pairs in COCO's format, most of them small, with void, crowd, empty and single-pixel segments."""
    folder = tmp_path_factory.mktemp("panoptic")
    annotations = {"truth": [], "prediction": []}
    for name in annotations:
        (folder / name).mkdir()
    seen = dict.fromkeys(("void", "crowd", "empty", "single pixel"), 0)
    for k in range(PAIRS):
        rng = np.random.default_rng(k)
        truth, true_segments, prediction, predicted_segments = random_pair(rng, largest=120 if k % 10 == 0 else 24)
        seen["void"] += (truth == 0).any()
        seen["crowd"] += any(s["iscrowd"] for s in true_segments)
        seen["empty"] += any(s["area"] == 0 for s in true_segments)
        seen["single pixel"] += any(s["area"] == 1 for s in true_segments)
        for name, ids, segments in (
            ("truth", truth, true_segments),
            ("prediction", prediction, predicted_segments),
        ):
            Image.fromarray(to_rgb(ids)).save(folder / name / f"{k}.png", compress_level=1)
            annotations[name].append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
    assert min(seen.values()) > PAIRS // 4
    for name in annotations:
        content = {"annotations": annotations[name], "categories": CATEGORIES}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_panoptic_quality_equals_panopticapi(panoptic_files):
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="panopticapi is not installed")
    truth, prediction = (json.loads((panoptic_files / f"{n}.json").read_text()) for n in ("truth", "prediction"))
    categories = {c["id"]: c for c in CATEGORIES}
    _, pairs = panoptic_pairs(panoptic_files / "truth.json", panoptic_files / "prediction.json")
    total, official = PanopticQuality(CATEGORIES), evaluation.PQStat()
    for pair, *annotations in zip(pairs, truth["annotations"], prediction["annotations"], strict=True):
        quality = PanopticQuality(CATEGORIES)
        count_panoptic(quality, pair)
        with contextlib.redirect_stdout(io.StringIO()):
            one = evaluation.pq_compute_single_core(
                0, [annotations], panoptic_files / "truth", panoptic_files / "prediction", categories
            )
        for k, category in enumerate(IDS):
            theirs = one[category]
            assert [quality.tp[k], quality.fp[k], quality.fn[k]] == [theirs.tp, theirs.fp, theirs.fn], pair
            # an IoU above 1/2 is rounded to a multiple of 2^-40
            assert quality.iou[k] == pytest.approx(theirs.iou, rel=2.0**-40), pair
        total.merge(quality)
        official += one
    figures = total.compute()
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        average, _ = official.pq_average(categories, isthing)
        for figure in ("pq", "sq", "rq"):
            assert figures[figure.upper() + suffix] / 100 == pytest.approx(average[figure], rel=1e-12)
        assert figures["n" + suffix] == average["n"]


def test_instance_ap_equals_cityscapesscripts(tmp_path, monkeypatch):
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", reason="cityscapesscripts is not installed"
    )
    if not hasattr(np, "in1d"):  # gone from numpy 2.4, and still used there
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)  # its log, which numpy 2's integers break
    args = official.args
    for name, value in {
        "predictionPath": str(tmp_path),
        "gtInstancesFile": str(tmp_path / "gtInstances.json"),
        "JSONOutput": False,
        "quiet": True,
    }.items():
        monkeypatch.setattr(args, name, value)
    ap = CityscapesAP()
    truths, predictions = [], []
    for k in range(SCENES):
        ids, found = random_cityscapes(np.random.default_rng(k))
        ap.update(ids, *(list(zip(*found, strict=True)) or ([], [], [])))
        truths.append(str(tmp_path / f"ulm_000000_{k:06}_gtFine_instanceIds.png"))
        Image.fromarray(ids).save(truths[-1])
        lines = []
        for number, (label, score, mask) in enumerate(found):
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{k}_{number}.png")
            lines.append(f"{k}_{number}.png {label} {score}\n")
        predictions.append(str(tmp_path / f"ulm_000000_{k:06}_pred.txt"))
        (tmp_path / f"ulm_000000_{k:06}_pred.txt").write_text("".join(lines), encoding="ascii")
    averages = official.evaluateImgLists(predictions, truths, args)["averages"]
    figures = ap.compute()
    # the same floats in another order of summation
    assert figures["AP"] / 100 == pytest.approx(averages["allAp"], rel=1e-12)
    assert figures["AP50"] / 100 == pytest.approx(averages["allAp50%"], rel=1e-12)
    assert figures["AP"] > 1
    for c in figures["per_class"]:
        theirs = averages["classes"][c["name"]]
        if c["AP"] is None:
            assert np.isnan(theirs["ap"])
        else:
            assert c["AP"] / 100 == pytest.approx(theirs["ap"], rel=1e-12, abs=1e-15)
            assert c["AP50"] / 100 == pytest.approx(theirs["ap50%"], rel=1e-12, abs=1e-15)
