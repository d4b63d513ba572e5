"""`fcclip score instance`: COCO's JSON and Cityscapes' text files."""

import json

import numpy as np
import pytest
from instance_samples import random_cityscapes
from PIL import Image
from pycocotools import mask as coco_mask
from score_command import drop, read, score, write

from fcclip_jax.evaluation.png import BadSample


def as_rle(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@pytest.fixture
def instances(tmp_path):
    """Two images with an object each, found with IoU 1 and 0.72."""
    pytest.importorskip("hotcoco", reason="mask AP needs hotcoco, of the extra `evaluate`")
    mask, part = np.zeros((2, 20, 20), bool)
    mask[:10, :10] = True
    part[:9, :8] = True
    truth = {
        "images": [{"id": name, "height": 20, "width": 20} for name in ("a", "b")],
        "annotations": [
            {"id": k, "image_id": name, "category_id": 1, "segmentation": as_rle(mask), "area": 100, "iscrowd": 0}
            for k, name in enumerate(("a", "b"))
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    found = [
        {"image_id": "a", "category_id": 1, "segmentation": as_rle(mask), "score": 0.9},
        {"image_id": "b", "category_id": 1, "segmentation": as_rle(part), "score": 0.8},
    ]

    def run(*more, truth_change=None, change=None) -> int:
        contents = json.loads(json.dumps([truth, found]))
        for content, edit in zip(contents, (truth_change, change), strict=True):
            if edit:
                edit(content)
        sides = ("--truth", write(tmp_path / "truth.json", contents[0]), "--predictions")
        return score(
            "instance", *sides, write(tmp_path / "found.json", contents[1]), "--output", tmp_path / "out.json", *more
        )

    return run


def test_instance_files(instances, tmp_path, capsys):
    assert instances() == 0
    figures = read(tmp_path / "out.json")
    # IoU 0.72 is a match at five thresholds; elsewhere precision is 1 up to the recall 1/2: 51 of 101 points
    assert figures["AP"] == pytest.approx(50 + 50 * 51 / 101, rel=1e-14)
    assert (figures["AP50"], figures["images"]) == (pytest.approx(100.0), 2)
    assert "AP50   100.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("side", "change", "message"),
    [
        ("change", lambda c: c[1].update(category_id=7), r"found.json: image 'b': unknown category_id 7"),
        ("change", lambda c: c[1].update(category_id=[7]), r"found.json: image 'b': unknown category_id \[7\]"),
        ("change", lambda c: c[1].update(score=None), r"found.json: image 'b': the score None is not a finite number"),
        ("change", lambda c: drop(c[1], "segmentation"), r"found.json: image 'b': an entry has no 'segmentation'"),
        ("change", lambda c: c[1]["segmentation"].update(size=[20, 10]), r"'b': a mask is 20x10 pixels, the image is"),
        ("change", lambda c: c[1]["segmentation"].update(counts="04"), r"'b': the runs of a mask do not add up to 20x"),
        ("change", lambda c: c[1]["segmentation"].update(counts="\x01"), r"'b': a mask is not a run-length encoding"),
        ("change", lambda c: c[1]["segmentation"].update(counts=[-4, 404]), r"'b': the runs of a mask do not add up"),
        ("change", lambda c: c[1].update(segmentation=[[1, 1, 5, 5, 1, 5]]), r"'b': a mask is not a run-length"),
        ("truth_change", lambda c: drop(c["annotations"][1], "area"), r"truth.json: image 'b': an entry has no 'area'"),
        ("truth_change", lambda c: drop(c["images"][1], "width"), r"truth.json: image 'b' has no height and width"),
    ],
)
def test_a_bad_instance_stops_or_its_image_is_skipped(instances, tmp_path, side, change, message):
    with pytest.raises(BadSample, match=message):
        instances(**{side: change})
    assert instances("--skip_bad", **{side: change}) == 1
    figures = read(tmp_path / "out.json")
    assert (figures["AP"], figures["images"], len(figures["skipped"])) == (pytest.approx(100.0), 1, 1)


def test_a_detection_on_an_unknown_image(instances, tmp_path):
    with pytest.raises(BadSample, match=r"found.json: image_id 'c' is not among the images of .*truth.json"):
        instances(change=lambda c: c.append(c[0] | {"image_id": "c"}))
    assert instances("--skip_bad", change=lambda c: c.append(c[0] | {"image_id": "c"})) == 1
    assert read(tmp_path / "out.json")["images"] == 2


def test_another_instance_layout(instances):
    for change, message in (
        (lambda c: c[0].update(image_id=None), r"an entry of .*found.json has no 'image_id'. Expected COCO results"),
        (lambda c: c.append(7), r"found.json is not a list of objects. Expected COCO results JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            instances("--skip_bad", change=change)
    with pytest.raises(ValueError, match=r"truth.json has no images"):
        instances(truth_change=lambda c: c["images"].clear())


# Cityscapes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cityscapes(tmp_path):
    scenes = [random_cityscapes(np.random.default_rng(seed)) for seed in range(3)]
    (tmp_path / "val" / "ulm").mkdir(parents=True)
    (tmp_path / "found" / "masks").mkdir(parents=True)
    for k, (ids, found) in enumerate(scenes):
        Image.fromarray(ids).save(tmp_path / "val" / "ulm" / f"ulm_000000_{k:06}_gtFine_instanceIds.png")
        lines = []
        for number, (label, confidence, mask) in enumerate(found):
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "found" / "masks" / f"{k}_{number}.png")
            lines.append(f"masks/{k}_{number}.png {label} {confidence}\n")
        (tmp_path / "found" / f"ulm_000000_{k:06}_pred.txt").write_text("".join(lines), encoding="utf-8")

    def run(*more) -> int:
        sides = ("--truth", tmp_path / "val", "--predictions", tmp_path / "found", "--protocol", "cityscapes")
        return score("instance", *sides, "--output", tmp_path / "out.json", *more)

    run.scenes = scenes
    return run


def test_cityscapes_files(cityscapes, tmp_path):
    from fcclip_jax.evaluation.cityscapes_ap import CityscapesAP

    ap = CityscapesAP()
    for ids, found in cityscapes.scenes:
        ap.update(ids, *zip(*found, strict=True))
    assert cityscapes() == 0
    assert ap.compute()["AP"] > 0
    assert read(tmp_path / "out.json") == ap.compute() | {"images": 3, "skipped": []}


def test_bad_cityscapes_files(cityscapes, tmp_path):
    text = tmp_path / "found" / "ulm_000000_000001_pred.txt"
    for content, message in (
        ("masks/1_0.png 24", "line 1 is not `mask.png label_id score`"),
        ("\nmasks/no.png 24 0.5", r"masks/no.png: No such file"),
        ("../val/ulm/ulm_000000_000001_gtFine_instanceIds.png 24 0.5", "line 1 names a file outside"),
        ("masks/1_0.png 24 nan", "a score is not a finite number"),
    ):
        text.write_text(content, encoding="utf-8")
        with pytest.raises(BadSample, match=message):
            cityscapes()
    text.rename(text.with_name("ulm_000000_000000_again.txt"))
    with pytest.raises(ValueError, match=r"are predictions for the same image"):
        cityscapes()
    (tmp_path / "found" / "ulm_000000_000000_again.txt").unlink()
    with pytest.raises(BadSample, match=r"000001_gtFine_instanceIds.png: no prediction. Expected CITY_"):
        cityscapes()
    assert cityscapes("--skip_bad") == 1
    assert read(tmp_path / "out.json")["images"] == 2
    with pytest.raises(ValueError, match=r"nothing to score in .*found. Expected CITY/CITY_"):
        cityscapes("--truth", tmp_path / "found")
