"""Real COCO annotations through `fcclip prepare`, against label maps that the original's script made of them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fcclip_jax import cli
from fcclip_jax.data.benchmarks import open_benchmark
from tests.conftest import SHARED


def test_coco_semantic_of_real_photos(tmp_path, oracle):
    truth = oracle / "eval"
    coco = tmp_path / "coco"
    shutil.copytree(truth / "gt_panoptic", coco / "panoptic_val2017")
    (coco / "annotations").mkdir()
    shutil.copy(truth / "gt_panoptic.json", coco / "annotations/panoptic_val2017.json")
    shutil.copy(truth / "gt_instances.json", coco / "annotations/instances_val2017.json")
    assert cli.main(["prepare", "coco_panoptic", "--root", str(tmp_path)]) == 0
    made = sorted((coco / "panoptic_semseg_val2017").iterdir())
    assert made
    for path in made:
        np.testing.assert_array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(truth / "gt_sem" / path.name))
        )


def test_real_photos_are_read(tmp_path):
    samples = SHARED / "samples"
    if not samples.is_dir():
        pytest.skip("the two photos of COCO (../shared/samples) are not beside this checkout")
    coco = tmp_path / "coco"
    shutil.copytree(samples / "panoptic", coco / "panoptic_val2017")
    (coco / "annotations").mkdir()
    shutil.copy(samples / "panoptic.json", coco / "annotations/panoptic_val2017.json")
    (coco / "val2017").mkdir()
    for photo in samples.glob("*.jpg"):
        shutil.copy(photo, coco / "val2017")
    assert cli.main(["prepare", "coco_panoptic", "--root", str(tmp_path)]) == 0
    source = open_benchmark("coco_panoptic", tmp_path, truths=["panoptic", "semantic"])
    content = json.loads((samples / "panoptic.json").read_text())
    assert source.ids() == [entry["image_id"] for entry in content["annotations"]]
    for record, entry in zip((source[0], source[1]), content["annotations"], strict=True):
        ids, segments = record.panoptic()
        semantic = record.semantic()
        assert record.decode_image().shape[:2] == ids.shape == semantic.shape
        for segment, info in zip(segments, entry["segments_info"], strict=True):
            mask = ids == segment.id
            assert mask.sum() == segment.area == info["area"]
            assert source.vocabulary.classes[segment.class_index].id == info["category_id"]
            assert (semantic[mask] == segment.class_index).all()
        assert (semantic[ids == 0] == 255).all()
