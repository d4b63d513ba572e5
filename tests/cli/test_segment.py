"""`fcclip segment` and `fcclip demo`: what they write and what they say."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax.models.shipped import ABOUT, SIZES
from fcclip_jax.segmenter import Segmenter
from tests.cli.command import LOOSE, WORDS, is_one_error, names

# ---------------------------------------------------------------------------------------------- the main job


def test_segment_writes_what_the_segmenter_finds(segment, photos, tmp_path, tiny_model):
    code, out, err = segment(photos, *WORDS, *LOOSE)
    assert (code, err) == (0, "")
    stems = ["a", "b_jpg", "b_png"]
    kinds = ["json", "overlay.png", "panoptic.png", "semantic.png"]
    assert names(tmp_path / "out") == sorted(f"{stem}.{kind}" for stem in stems for kind in kinds)
    segmenter = Segmenter.from_checkpoint(tiny_model, min_size=64, max_size=64)
    found = 0
    for stem, name in zip(stems, names(photos), strict=True):
        image = np.asarray(Image.open(photos / name).convert("RGB"))
        result = segmenter(image, "cup; saucer, plate; table", stuff="table", overlap_threshold=0.3)
        rgb = np.asarray(Image.open(tmp_path / "out" / f"{stem}.panoptic.png")).astype(int)
        np.testing.assert_array_equal(rgb @ [1, 256, 65536], result.panoptic)
        semantic = np.asarray(Image.open(tmp_path / "out" / f"{stem}.semantic.png"))
        np.testing.assert_array_equal(semantic, result.semantic)
        overlay = np.asarray(Image.open(tmp_path / "out" / f"{stem}.overlay.png"))
        np.testing.assert_array_equal(overlay, result.draw())
        content = json.loads((tmp_path / "out" / f"{stem}.json").read_text())
        assert content["image"] == name and (content["height"], content["width"]) == image.shape[:2]
        assert [entry["area"] for entry in content["segments_info"]] == [s.area for s in result.segments]
        assert {entry["id"] for entry in content["segments_info"]} == set(np.unique(result.panoptic)) - {0}
        assert [entry["score"] for entry in content["instances"]] == [round(i.score, 6) for i in result.instances]
        for entry, instance in zip(content["instances"], result.instances, strict=True):
            entry["segmentation"]["counts"] = entry["segmentation"]["counts"].encode()
            np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), instance.mask)
        found += len(result.segments)
    assert found >= 3
    # The table: a title a photo, and a line a segment.
    assert [line for line in out.splitlines() if str(photos) in line] == [
        f"{photos / name}  ({width} x {height})"
        for name, (height, width) in zip(names(photos), [(90, 120), (60, 80), (45, 60)], strict=True)
    ]
    assert len(re.findall(r"^ +\d+  (thing|stuff)  +\d\.\d\d +\d+\.\d%  (cup|saucer|table)$", out, re.M)) == found
    assert re.search(rf"^3 photos in \d+\.\d s, written to {tmp_path}/out$", out, re.M)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_task(segment, photos, tmp_path, task):
    assert segment(photos / "a.png", *WORDS, "--task", task)[0] == 0
    kinds = {"panoptic": ["overlay", "panoptic"], "semantic": ["overlay", "semantic"], "instance": []}[task]
    assert names(tmp_path / "out") == ["a.json", *(f"a.{kind}.png" for kind in kinds)]


def test_batches_write_what_single_photos_write(segment, photos, tmp_path):
    assert segment(photos, *WORDS, *LOOSE)[0] == 0
    assert segment(photos, *WORDS, *LOOSE, "--batch_size", "2", output=tmp_path / "batched")[0] == 0
    assert names(tmp_path / "out") == names(tmp_path / "batched")
    for name in names(tmp_path / "out"):
        if name.endswith("panoptic.png"):
            one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("out", "batched"))
            # A batch changes the order of sums: a pixel on a border may change sides.
            assert (one != other).any(axis=-1).mean() <= 0.001


def test_thresholds_reach_the_results(segment, photos, tmp_path):
    def count(*options):
        assert segment(photos / "a.png", *WORDS, "--task", "panoptic", *options)[0] == 0
        return len(json.loads((tmp_path / "out" / "a.json").read_text())["segments_info"])

    assert count("--overlap_threshold", "0") > count("--overlap_threshold", "1")
    assert count("--overlap_threshold", "0", "--object_threshold", "1") == 0


def test_sizes_reach_the_network(segment, photos, monkeypatch):
    seen = []
    real = Segmenter.from_checkpoint
    monkeypatch.setattr(
        Segmenter, "from_checkpoint", lambda *arguments, **sizes: seen.append(sizes) or real(*arguments, **sizes)
    )
    assert segment(photos / "a.png", *WORDS)[0] == 0
    assert seen == [{"min_size": 64, "max_size": 64}]


def test_label_file_and_built_in_list(segment, photos, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("5:cup,mug\n9:table [stuff]\n")
    assert segment(photos / "a.png", "--labels", labels)[0] == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["classes"] == [
        {"id": 0, "name": "cup", "isthing": True, "label_id": 5},
        {"id": 1, "name": "table", "isthing": False, "label_id": 9},
    ]
    assert segment(photos / "a.png", "--dataset", "pascal_voc_20", "--task", "semantic")[0] == 0
    assert len(json.loads((tmp_path / "out" / "a.json").read_text())["classes"]) == 20


def test_any_script_reaches_the_files(segment, photos, tmp_path):
    words = "猫; 🐈‍⬛; naïve café; <script>; %s{}\\"
    code, _, err = segment(photos / "a.png", "--vocabulary", words, *LOOSE)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "out" / "a.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in content["classes"]] == words.split("; ")


def test_without_a_checkpoint_the_packages_model_is_used_and_named(fcclip, photos, tmp_path):
    code, _, err = fcclip("segment", photos / "a.png", *WORDS, "--output", tmp_path / "out")
    assert code == 0 and err == ABOUT + "\n" and err.count("\n") == 1
    assert (tmp_path / "out" / "a.overlay.png").is_file()


def test_sizes_that_are_not_given_are_the_models_own(fcclip, photos, tmp_path, tiny_model, monkeypatch):
    sizes = []
    monkeypatch.setattr(Segmenter, "from_checkpoint", lambda folder, **options: sizes.append(options) or 1 / 0)
    for arguments in ((), ("--checkpoint", tiny_model), ("--checkpoint", tiny_model, "--min_size", "64")):
        with pytest.raises(ZeroDivisionError):
            fcclip("segment", photos / "a.png", *WORDS, "--output", tmp_path / "out", *arguments)
    assert sizes == [SIZES, {}, {"min_size": 64}]


# ------------------------------------------------------------------------------------- photos that cannot be read


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(segment, photos, tmp_path):
    (photos / "empty.png").touch()
    (photos / "text.jpg").write_text("not a photo")
    whole = (photos / "b.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    code, out, err = segment(photos, photos / "gone.jpg", "nowhere/*.jpg", *WORDS)
    assert code == 1
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines) and len(lines) == 5
    for name in ("gone.jpg", "nowhere", "empty.png", "text.jpg", "cut.jpg"):
        assert sum(name in line for line in lines) == 1, name
    assert {name.partition(".")[0] for name in names(tmp_path / "out")} == {"a", "b_jpg", "b_png"}
    assert "3 photos in" in out and "5 failed: see the errors above" in out


@pytest.mark.parametrize("what", ["gone.jpg", "empty.png", "folder", "no*.jpg"])
def test_when_nothing_can_be_read(segment, tmp_path, what):
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    code, _, err = segment(tmp_path / what, *WORDS)
    assert code == 2 and is_one_error(err) and what in err
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_results_among_the_photos_are_not_photos(segment, photos):
    before = names(photos)
    assert segment(photos, *WORDS, output=photos)[0] == 0
    after = names(photos)
    assert len(after) == len(before) + 3 * 4
    for again in ([photos], sorted(photos.iterdir()), [photos / "*"]):
        code, _, err = segment(*again, *WORDS, output=photos)
        assert code == 0 and names(photos) == after
        assert re.fullmatch(r"passed over: \d+ files that earlier runs have written\n", err)
    for name in before:
        (photos / name).unlink()
    code, _, err = segment(photos, *WORDS, output=photos)
    assert code == 2 and "only results of earlier runs" in err


def test_a_file_name_that_is_no_text(segment, photos, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "a.png", photos / name)
    code, out, err = segment(photos / name, *WORDS)
    assert (code, err) == (0, "") and "caf\\udce9.png" in out
    assert json.loads((tmp_path / "out" / os.fsdecode(b"caf\xe9.json")).read_text(encoding="utf-8"))["image"] == name


def test_a_file_name_too_long_for_its_results(segment, photos, tmp_path):
    name = "x" * 245 + ".png"
    shutil.copy(photos / "a.png", photos / name)
    code, _, err = segment(photos / name, photos / "b.png", *WORDS)
    assert code == 1 and is_one_error(err) and "File name too long" in err
    assert {name.partition(".")[0] for name in names(tmp_path / "out")} == {"b"}
