"""What is written for a photo, without a model: results are made by hand."""

import errno
import json
import os
import resource

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fcclip_jax import segment_files
from fcclip_jax.segmenter import PanopticMap, Result
from fcclip_jax.structures import Instance, Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary

HEIGHT, WIDTH = 6, 8


def make_result(tasks=("panoptic", "semantic", "instance"), size=(HEIGHT, WIDTH), classes=3):
    """Left half cat 1, the upper right quarter sky, the rest nothing; ids 1 and 70000."""
    names = ["cat", "sky [stuff]", *(f"c{i}" for i in range(classes - 2))]
    panoptic = np.zeros(size, np.int32)
    panoptic[:, : size[1] // 2] = 1
    panoptic[: size[0] // 2, size[1] // 2 :] = 70000
    segments = [
        Segment(1, 0, "cat", True, 0.75, int((panoptic == 1).sum())),
        Segment(70000, 1, "sky", False, 0.5, int((panoptic == 70000).sum())),
    ]
    panoptic = panoptic.view(PanopticMap)
    panoptic.segments = segments
    semantic = np.full(size, classes - 1, np.uint8 if classes <= 255 else np.uint16)
    rle = coco_mask.encode(np.asfortranarray(panoptic == 1, np.uint8))
    return Result(
        np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8),
        Vocabulary.parse(names),
        panoptic if "panoptic" in tasks else None,
        segments if "panoptic" in tasks else None,
        semantic if "semantic" in tasks else None,
        [Instance(0, "cat", 0.625, rle)] if "instance" in tasks else None,
    )


def write(folder, result, stem="photo", image_name="photo.jpg"):
    segment_files.write_result(folder, stem, result, image_name=image_name)
    return sorted(path.name for path in folder.iterdir())


def test_the_files_of_a_photo(tmp_path):
    names = write(tmp_path, make_result())
    assert names == ["photo.json", "photo.overlay.png", "photo.panoptic.png", "photo.semantic.png"]
    rgb = np.asarray(Image.open(tmp_path / "photo.panoptic.png")).astype(int)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    np.testing.assert_array_equal(ids, make_result().panoptic)
    with Image.open(tmp_path / "photo.semantic.png") as semantic:
        assert semantic.mode == "L" and (np.asarray(semantic) == 2).all()
    assert np.asarray(Image.open(tmp_path / "photo.overlay.png")).shape == (HEIGHT, WIDTH, 3)


def test_the_content_of_the_json_file(tmp_path):
    write(tmp_path, make_result())
    content = json.loads((tmp_path / "photo.json").read_text())
    counts = content["instances"][0]["segmentation"].pop("counts")
    assert content == {
        "image": "photo.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "classes": [
            {"id": 0, "name": "cat", "isthing": True},
            {"id": 1, "name": "sky", "isthing": False},
            {"id": 2, "name": "c0", "isthing": True},
        ],
        "segments_info": [
            {"id": 1, "category_id": 0, "name": "cat", "isthing": True, "score": 0.75, "area": 24},
            {"id": 70000, "category_id": 1, "name": "sky", "isthing": False, "score": 0.5, "area": 12},
        ],
        "instances": [{"category_id": 0, "name": "cat", "score": 0.625, "segmentation": {"size": [HEIGHT, WIDTH]}}],
    }
    mask = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": counts.encode()})
    np.testing.assert_array_equal(mask, make_result().panoptic == 1)


def test_numbers_of_a_label_file_go_into_the_json_file(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("7:road [stuff]\n24:person\n")
    vocabulary = segment_files.read_vocabulary(None, str(labels), None, None)
    result = make_result()
    content = segment_files.to_json(
        "x.jpg", Result(result.image, vocabulary, result.panoptic, result.segments, None, None)
    )
    assert [entry["label_id"] for entry in content["classes"]] == [7, 24]


@pytest.mark.parametrize("classes, mode", [(255, "L"), (256, "I;16"), (300, "I;16")])
def test_the_class_map_has_16_bits_above_255_classes(tmp_path, classes, mode):
    write(tmp_path, make_result(classes=classes))
    with Image.open(tmp_path / "photo.semantic.png") as semantic:
        assert semantic.mode == mode and (np.asarray(semantic) == classes - 1).all()


@pytest.mark.parametrize(
    "task, names, keys",
    [
        ("panoptic", ["photo.json", "photo.overlay.png", "photo.panoptic.png"], {"segments_info"}),
        ("semantic", ["photo.json", "photo.overlay.png", "photo.semantic.png"], set()),
        ("instance", ["photo.json"], {"instances"}),
    ],
)
def test_only_what_was_asked_for_is_written(tmp_path, task, names, keys):
    assert write(tmp_path, make_result((task,))) == names
    content = json.loads((tmp_path / "photo.json").read_text())
    assert content.keys() == {"image", "height", "width", "classes"} | keys


def test_a_file_name_that_is_no_text_survives_in_the_json_file(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write(tmp_path, make_result(), stem=os.fsdecode(b"caf\xe9"), image_name=name)
    assert json.loads((tmp_path / os.fsdecode(b"caf\xe9.json")).read_text(encoding="utf-8"))["image"] == name


def test_a_new_result_replaces_the_old_one(tmp_path):
    write(tmp_path, make_result(size=(20, 30)))
    write(tmp_path, make_result())
    assert json.loads((tmp_path / "photo.json").read_text())["height"] == HEIGHT
    assert Image.open(tmp_path / "photo.overlay.png").size == (WIDTH, HEIGHT)


def old_results(folder):
    write(folder, make_result())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("which", ["photo.overlay.png", "photo.panoptic.png", "photo.semantic.png", "photo.json"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_file_leaves_the_folder_as_it_was(tmp_path, monkeypatch, which, problem):
    before = old_results(tmp_path)
    open_ = segment_files.Path.open

    def save(image, path, *arguments):
        if path.name == which:
            path.write_bytes(b"half of a picture")
            raise problem
        real_save(image, path, *arguments)

    def write_text(path, text, **options):
        if path.name == which:
            path.write_bytes(b"{")
            raise problem
        with open_(path, "w", **options) as file:
            file.write(text)

    real_save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", save)
    monkeypatch.setattr(segment_files.Path, "write_text", write_text)
    with pytest.raises(type(problem)):
        write(tmp_path, make_result(size=(20, 30)))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_outgrows_the_limit_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        # Noise does not compress: the overlay takes about 90 kB.
        with pytest.raises(OSError):
            write(tmp_path, make_result(size=(150, 200)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "names, results",
    [
        # The pictures and the JSON file of a photo, whether the photo is still there or not.
        (["a.jpg", "a.json", "a.overlay.png", "a.panoptic.png", "a.semantic.png"], {1, 2, 3, 4}),
        (["a.json", "a.overlay.png"], {0, 1}),
        (["v1.2.jpg", "v1.2.json", "v1.2.semantic.png"], {1, 2}),
        # Photos that only happen to be called so.
        (["a.overlay.png", "a.semantic.png"], set()),
        (["a.json", "a.png"], set()),
        (["b.json", "a.overlay.png"], set()),
        (["overlay.png", "a_overlay.png", "a.json"], set()),
    ],
)
def test_results_of_earlier_runs_are_recognised(tmp_path, names, results):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert {i for i, name in enumerate(names) if segment_files._is_result(tmp_path / name)} == results


def test_table():
    lines = segment_files.table("photo.jpg", make_result()).splitlines()
    assert lines == [
        "photo.jpg  (8 x 6)",
        "    id  kind   score    area  name",
        "     1  thing   0.75   50.0%  cat",
        "  70000  stuff   0.50   25.0%  sky",
        "  1 instances",
    ]
    empty = make_result(("panoptic",))
    empty.segments.clear()
    assert segment_files.table("x", empty).splitlines() == ["x  (8 x 6)", "  no segment was found"]


@pytest.mark.parametrize(
    "text, tasks",
    [
        ("panoptic", ("panoptic",)),
        ("instance, panoptic", ("panoptic", "instance")),
        ("semantic,semantic,", ("semantic",)),
        ("panoptic,semantic,instance", ("panoptic", "semantic", "instance")),
    ],
)
def test_tasks(text, tasks):
    assert segment_files.parse_tasks(text) == tasks


@pytest.mark.parametrize("text", ["", ",", "panoptik", "panoptic;semantic", "Panoptic"])
def test_tasks_that_do_not_exist(text):
    with pytest.raises(ValueError, match="panoptic, semantic, instance"):
        segment_files.parse_tasks(text)


def test_the_three_ways_to_give_a_vocabulary(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("0:cat,kitten\n1:sky [stuff]\n")
    from_file = segment_files.read_vocabulary(None, str(labels), None, None)
    from_words = segment_files.read_vocabulary("cat, kitten; sky", None, None, "sky")
    assert from_file.synonyms == from_words.synonyms == ("cat", "kitten", "sky")
    assert from_file.isthing.tolist() == from_words.isthing.tolist() == [True, False]
    assert segment_files.read_vocabulary(None, None, "coco_panoptic", None).num_classes == 133
    assert not segment_files.read_vocabulary(None, str(labels), None, "cat").isthing.any()
