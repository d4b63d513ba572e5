"""Data of one's own: folders of images and truth, and nothing else."""

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.own_folder import open_folder
from fcclip_jax.data.records import DataError
from fcclip_jax.vocabulary import Vocabulary
from tests import benchmark_layouts as layouts

THREE = Vocabulary.parse(["sky [stuff]", "cat", "dog"])


def labels(path, array=None, **options):
    layouts.picture(path, np.full((40, 60), 255, np.uint8) if array is None else array, **options)


def test_label_maps_of_any_kind_and_depth(tmp_path):
    map_ = np.full((40, 60), 255, np.uint8)
    map_[:10] = 2
    layouts.photo(tmp_path / "images/a/x.JPG")
    layouts.photo(tmp_path / "images/b/y.png")
    layouts.photo(tmp_path / "images/no_truth.jpg")
    labels(tmp_path / "maps/a/x.png", map_)
    labels(tmp_path / "maps/b/y.tif", map_.astype(np.uint16))
    source = open_folder(tmp_path / "images", THREE, semantic=tmp_path / "maps")
    assert source.ids() == ["x", "y"] and source.truths == {"semantic"}
    for record in (source[0], source[1]):
        np.testing.assert_array_equal(record.semantic(), map_)


def test_names_that_repeat_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        layouts.photo(tmp_path / f"images/{folder}/x.jpg")
        labels(tmp_path / f"maps/{folder}/x.png")
    assert open_folder(tmp_path / "images", THREE, semantic=tmp_path / "maps").ids() == ["a_x", "b_x"]


def test_ids_of_the_label_file_are_the_values(tmp_path):
    map_ = np.zeros((40, 60), np.uint16)
    map_[:10], map_[10:20] = 1000, 7
    layouts.photo(tmp_path / "images/x.jpg")
    labels(tmp_path / "maps/x.png", map_)
    (tmp_path / "labels.txt").write_text("7:sky [stuff]\n1000:cat\n")
    vocabulary = Vocabulary.from_file(tmp_path / "labels.txt")
    source = open_folder(tmp_path / "images", vocabulary, semantic=tmp_path / "maps", ignored=0)
    expected = np.full((40, 60), 255)
    expected[:10], expected[10:20] = 1, 0
    np.testing.assert_array_equal(source[0].semantic(), expected)
    with pytest.raises(DataError, match="holds the label 0"):
        open_folder(tmp_path / "images", vocabulary, semantic=tmp_path / "maps")[0].semantic()
    with pytest.raises(ValueError, match="not counted must be from 0 to 65535 and no class, not 7"):
        open_folder(tmp_path / "images", vocabulary, semantic=tmp_path / "maps", ignored=7)


def test_panoptic_and_instances_with_label_maps_beside(tmp_path):
    layouts.write_coco(tmp_path)
    coco = tmp_path / "coco"
    labels(tmp_path / "maps/000000000139.png", layouts.coco_semantic().astype(np.uint8))
    # Values are ids here: 0 is none of COCO's.
    vocabulary = Vocabulary.builtin("coco_panoptic")
    source = open_folder(
        coco / "val2017",
        vocabulary,
        panoptic=coco / "panoptic_val2017",
        annotations=coco / "annotations/panoptic_val2017.json",
        instances=coco / "annotations/instances_val2017.json",
        semantic=tmp_path / "maps",
    )
    assert source.ids() == [139, 285] and source.truths == {"panoptic", "semantic", "instance"}
    record = source[0]
    np.testing.assert_array_equal(record.panoptic()[0], layouts.coco_ids())
    assert len(record.instances()) == 2
    with pytest.raises(DataError, match="holds the label 0"):
        record.semantic()
    with pytest.raises(DataError, match=r"maps/000000000285\.png: no such file"):
        source[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no annotations are given"),
        ({"panoptic": "maps"}, "go together; only one is given"),
        ({"annotations": "x.json"}, "go together; only one is given"),
        ({"semantic": "nowhere"}, "nowhere: no such folder; expected is one or more of"),
        ({"semantic": "empty"}, "holds no label map"),
        ({"instances": "x.json"}, "no class has an id"),
    ],
)
def test_what_is_given_must_fit(tmp_path, given, message):
    layouts.photo(tmp_path / "images/x.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path / "images", THREE, **{key: tmp_path / name for key, name in given.items()})


def test_a_map_without_an_image_is_told_in_its_turn(tmp_path):
    layouts.photo(tmp_path / "images/x.jpg")
    labels(tmp_path / "maps/x.png")
    labels(tmp_path / "maps/y.png")
    source = open_folder(tmp_path / "images", THREE, semantic=tmp_path / "maps")
    assert (source[0].semantic() == 255).all()
    with pytest.raises(DataError, match=r"images/y\.jpg: no such file"):
        source[1]


def test_two_files_of_one_image_are_refused(tmp_path):
    layouts.photo(tmp_path / "images/x.jpg")
    layouts.photo(tmp_path / "images/x.png")
    labels(tmp_path / "maps/x.png")
    with pytest.raises(DataError, match="files of the same image"):
        open_folder(tmp_path / "images", THREE, semantic=tmp_path / "maps")


def test_sixteen_bit_maps_hold_more_than_255_classes(tmp_path):
    vocabulary = Vocabulary.parse([f"class {k}" for k in range(300)])
    map_ = np.full((40, 60), 65535, np.uint16)
    map_[0] = 299
    map_[1] = 255
    layouts.photo(tmp_path / "images/x.jpg")
    labels(tmp_path / "maps/x.png", map_)
    source = open_folder(tmp_path / "images", vocabulary, semantic=tmp_path / "maps")
    assert source.ignore_label == 65535 and Image.open(tmp_path / "maps/x.png").mode == "I;16"
    np.testing.assert_array_equal(source[0].semantic(), map_)
