"""`fcclip prepare`: each layout as it is downloaded, prepared, against answers worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.benchmarks import open_benchmark
from tests import benchmark_layouts as layouts


@pytest.fixture
def prepare(capsys):
    """Runs the command in this process; gives exit code, stdout and stderr."""
    from fcclip_jax import cli

    def call(*arguments):
        capsys.readouterr()
        code = cli.main(["prepare", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def labels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_coco_semantic(tmp_path, prepare):
    layouts.write_coco(tmp_path)
    code, out, err = prepare("coco_panoptic", "--root", tmp_path)
    assert (code, err) == (0, "")
    assert "COCO semantic, val2017: 2 made, 0 there already, 0 bad" in out
    made = tmp_path / "coco/panoptic_semseg_val2017"
    np.testing.assert_array_equal(labels(made / "000000000139.png"), layouts.coco_semantic())
    np.testing.assert_array_equal(labels(made / "000000000285.png"), 255)
    assert Image.open(made / "000000000139.png").mode == "L"


def test_coco_is_read_as_it_was_written(tmp_path, prepare):
    layouts.write_coco(tmp_path)
    prepare("coco_panoptic", "--root", tmp_path)
    source = open_benchmark("coco_panoptic", tmp_path)
    assert source.ids() == [139, 285] and source.truths == {"panoptic", "semantic", "instance"}
    record = source[0]
    assert (record.image_id, record.file_stem, record.size()) == (139, "000000000139", (40, 60))
    ids, segments = record.panoptic()
    np.testing.assert_array_equal(ids, layouts.coco_ids())
    assert segments == [(7, 0, False, 200), (70000, 0, True, 100), (300, 131, False, 1200)]
    np.testing.assert_array_equal(record.semantic(), layouts.coco_semantic())
    person, crowd = record.instances()
    assert (person.class_index, person.iscrowd, person.area) == (0, False, 200)
    assert (crowd.class_index, crowd.iscrowd, crowd.area) == (0, True, 100)
    np.testing.assert_array_equal(layouts.coco_mask.decode(person.rle), layouts.coco_ids() == 7)
    np.testing.assert_array_equal(layouts.coco_mask.decode(crowd.rle), layouts.coco_ids() == 70000)
    assert source[1].panoptic()[1] == [] and source[1].instances() == []


def test_coco_stuff(tmp_path, prepare):
    layouts.write_coco_stuff(tmp_path)
    assert prepare("coco_stuff_171", "--root", tmp_path)[0] == 0
    source = open_benchmark("coco_stuff_171", tmp_path)
    assert source.ids() == [139]
    np.testing.assert_array_equal(source[0].semantic(), layouts.coco_stuff_truth())


def test_ade20k(tmp_path, prepare):
    layouts.write_ade(tmp_path)
    code, out, _ = prepare("ade20k_150", "--root", tmp_path)
    assert code == 0 and out.count("2 made, 0 there already, 0 bad") == 3
    base = tmp_path / "ADEChallengeData2016"
    expected = layouts.ade_semantic_file().astype(int) - 1
    expected[expected < 0] = 255
    np.testing.assert_array_equal(labels(base / "annotations_detectron2/validation/ADE_val_00000001.png"), expected)
    source = open_benchmark("ade20k_150", tmp_path)
    assert source.ids() == ["ADE_val_00000001", "ADE_val_00000002"]
    record = source[0]
    np.testing.assert_array_equal(record.semantic(), expected)
    ids, segments = record.panoptic()
    # Wall first, its area counted before the door is pasted over it; then the things by their numbers.
    assert [(s.class_index, s.area) for s in segments] == [(0, 1200), (7, 100), (7, 100), (14, 200)]
    wall, bed, other_bed, door = (s.id for s in segments)
    truth = np.zeros((40, 60), int)
    truth[:20] = wall
    truth[20:30, :10], truth[20:30, 10:20], truth[15:35, 50:] = bed, other_bed, door
    np.testing.assert_array_equal(ids, truth)
    instances = record.instances()
    assert [(i.class_index, i.area, i.iscrowd) for i in instances] == [(7, 100, 0), (7, 100, 0), (14, 200, 0)]
    np.testing.assert_array_equal(layouts.coco_mask.decode(instances[2].rle), truth == door)
    assert source[1].panoptic()[1] == [] and source[1].instances() == []
    assert (source[1].semantic() == 255).all()


def test_ade20k_files_are_those_of_the_scripts(tmp_path, prepare):
    layouts.write_ade(tmp_path)
    layouts.write_ade(tmp_path, "training", "ADE_train")
    assert prepare("ade20k_150", "--root", tmp_path)[0] == 0
    base = tmp_path / "ADEChallengeData2016"
    for split in ("val", "train"):
        panoptic = json.loads((base / f"ade20k_panoptic_{split}.json").read_text())
        assert panoptic["categories"][7] == {"id": 7, "name": "bed", "isthing": 1, "color": [204, 5, 255]}
        assert panoptic["images"][0] == {
            "id": f"ADE_{split}_00000001",
            "file_name": f"ADE_{split}_00000001.jpg",
            "width": 60,
            "height": 40,
        }
        entry = panoptic["annotations"][0]
        assert (entry["image_id"], entry["file_name"]) == (f"ADE_{split}_00000001", f"ADE_{split}_00000001.png")
        # The id of stuff, and of the first thing of a class, is the class's colour.
        assert entry["segments_info"][0] == {
            "id": 120 + 256 * 120 + 65536 * 120,
            "category_id": 0,
            "area": 1200,
            "bbox": [0, 0, 60, 20],
            "iscrowd": 0,
        }
        assert entry["segments_info"][1]["id"] == 204 + 256 * 5 + 65536 * 255
        instances = json.loads((base / f"ade20k_instance_{split}.json").read_text())
        assert len(instances["categories"]) == 100 and [a["id"] for a in instances["annotations"]] == [1, 2, 3]
        assert instances["annotations"][2]["bbox"] == [50, 15, 10, 20]
        assert instances["annotations"][2]["category_id"] == 14
    assert not list(base.rglob(".*"))


def test_cityscapes(tmp_path, prepare):
    layouts.write_cityscapes(tmp_path)
    assert prepare("cityscapes", "--root", tmp_path)[0] == 0
    source = open_benchmark("cityscapes", tmp_path)
    assert source.ids() == [layouts.CITYSCAPES_STEM, "munster_000001_000019"]
    record = source[0]
    assert record.file_stem == layouts.CITYSCAPES_STEM
    np.testing.assert_array_equal(record.semantic(), layouts.cityscapes_semantic())
    file = layouts.cityscapes_instance_file()
    np.testing.assert_array_equal(record.cityscapes_ids(), file)
    ids, segments = record.panoptic()
    np.testing.assert_array_equal(ids, np.where(np.isin(file, (1, 29003)), 0, file))
    # Only things are crowds where they are not parted.
    assert segments == [(7, 0, False, 600), (23, 10, False, 600), (26, 13, True, 100), (26001, 13, False, 100)]
    assert [(i.class_index, i.iscrowd, i.area) for i in record.instances()] == [(13, True, 100), (13, False, 100)]


def test_mapillary_needs_nothing(tmp_path, prepare):
    layouts.write_mapillary(tmp_path)
    code, out, _ = prepare("mapillary_vistas", "--root", tmp_path)
    assert code == 0 and "1 images, nothing has to be made" in out
    source = open_benchmark("mapillary_vistas", tmp_path)
    expected = np.full((40, 60), 255)
    expected[:10], expected[30:] = 0, 64
    np.testing.assert_array_equal(source[0].semantic(), expected)
    assert source.ids() == ["-0AbC_d"]
    assert source[0].panoptic()[1] == [(256, 0, False, 600), (65 * 256, 64, False, 600)]


def test_ade20k_full(tmp_path, prepare):
    layouts.write_ade_full(tmp_path)
    assert prepare("ade20k_847", "--root", tmp_path)[0] == 0
    source = open_benchmark("ade20k_847", tmp_path)
    assert source.ignore_label == 65535 and source.ids() == ["ADE_val_00000001", "ADE_val_00000002"]
    # 640 x 800 becomes 512 x 640, what is small stays.
    for record, (height, width) in zip((source[0], source[1]), ((512, 640), (40, 60)), strict=True):
        assert record.decode_image().shape == (height, width, 3)
        row = np.array([class_ for _, class_ in layouts.ADE_FULL])[np.arange(width) * 4 // width]
        np.testing.assert_array_equal(record.semantic(), np.tile(row, (height, 1)))
    assert labels(tmp_path / "ADE20K_2021_17_01/annotations_detectron2/validation/ADE_val_00000001.tif").max() == 65535


@pytest.mark.parametrize("kind", [20, 21])
def test_voc(tmp_path, prepare, kind):
    layouts.write_voc(tmp_path)
    assert prepare(f"pascal_voc_{kind}", "--root", tmp_path)[0] == 0
    expected = layouts.voc_file().astype(int)
    if kind == 20:
        expected = np.where(np.isin(expected, (0, 255)), 255, expected - 1)
    for split, name in (("val", "2007_000033"), ("train", "2007_000032")):
        source = open_benchmark(f"pascal_voc_{kind}", tmp_path, split=split)
        assert source.ids() == [name]
        np.testing.assert_array_equal(source[0].semantic(), expected)
        original = tmp_path / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"
        assert source[0].image == original.read_bytes()


def test_context_59(tmp_path, prepare):
    layouts.write_context_59(tmp_path)
    assert prepare("pascal_context_59", "--root", tmp_path)[0] == 0
    for split, name in (("val", "2008_000002"), ("train", "2008_000003")):
        source = open_benchmark("pascal_context_59", tmp_path, split=split)
        assert source.ids() == [name]
        np.testing.assert_array_equal(source[0].semantic(), layouts.context_59_truth())


def test_context_459(tmp_path, prepare):
    layouts.write_context_459(tmp_path)
    assert prepare("pascal_context_459", "--root", tmp_path)[0] == 0
    source = open_benchmark("pascal_context_459", tmp_path)
    np.testing.assert_array_equal(source[0].semantic(), layouts.context_459_truth())
    assert Image.open(tmp_path / "pascal_ctx_d2/annotations_ctx459/validation/2008_000002.tif").mode == "I;16"
