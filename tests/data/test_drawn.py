import json
import threading

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.data.sources import CocoPanopticSource
from fcclip_jax.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", images=12, size=(40, 56), seed=3)


def ids(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int) @ [1, 256, 65536]


def test_layout_and_masks(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["images", "labels.txt", "panoptic", "panoptic.json"]
    content = json.loads((folder / "panoptic.json").read_text())
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    assert {cls.id: cls.isthing for cls in vocabulary.classes} == {
        category["id"]: bool(category["isthing"]) for category in content["categories"]
    }
    assert [image["id"] for image in content["images"]] == list(range(1, 13))
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        assert Image.open(folder / "images" / image["file_name"]).size == (56, 40)
        panoptic = ids(folder / "panoptic" / annotation["file_name"])
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(panoptic)) - {0} == set(segments)
        assert len(segments) >= 2
        for id_, segment in segments.items():
            rows, columns = np.nonzero(panoptic == id_)
            left, top, width, height = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_every_class_occurs_and_ids_use_all_bytes(folder):
    content = json.loads((folder / "panoptic.json").read_text())
    segments = [segment for annotation in content["annotations"] for segment in annotation["segments_info"]]
    assert {segment["category_id"] for segment in segments} == {c["id"] for c in content["categories"]}
    assert max(segment["id"] for segment in segments) > 65536


def test_masks_are_exact(folder):
    """Inside a plain thing the colour varies by the grain of the picture alone (sigma 3)."""
    content = json.loads((folder / "panoptic.json").read_text())
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    checked = 0
    for annotation in content["annotations"]:
        picture = np.asarray(Image.open(folder / "images" / annotation["file_name"])).astype(float)
        panoptic = ids(folder / "panoptic" / annotation["file_name"])
        for segment in annotation["segments_info"]:
            if segment["category_id"] in things:
                inside = picture[panoptic == segment["id"]]
                assert np.abs(inside - np.median(inside, axis=0)).max() < 18  # six sigma
                checked += 1
    assert checked > 10


def test_reads_as_a_source(folder):
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    source = CocoPanopticSource(folder / "images", folder / "panoptic", folder / "panoptic.json", vocabulary)
    assert len(source) == 12
    assert isinstance(source[0], PanopticRecord)
    assert all(vocabulary.classes[row].id in (1, 2, 4, 92, 93, 95, 100) for row in source[0].classes)


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_arguments_same_bytes_other_seed_others(folder, tmp_path):
    again = draw_dataset(tmp_path / "again", images=12, size=(40, 56), seed=3)
    assert contents(again) == contents(folder)
    other = draw_dataset(tmp_path / "other", images=12, size=(40, 56), seed=4)
    assert contents(other).keys() == contents(folder).keys()
    assert contents(other) != contents(folder)


def test_a_drawn_folder_is_left_as_it_is(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=2, size=(16, 16))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert draw_dataset(folder, images=2, size=(16, 16)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_nothing_else_is_overwritten(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=2, size=(16, 16))
    with pytest.raises(FileExistsError, match="other drawn images"):
        draw_dataset(folder, images=3, size=(16, 16))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="something else"):
        draw_dataset(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "set"]  # and nothing is left aside


def test_several_at_once(tmp_path):
    threads = [
        threading.Thread(target=draw_dataset, args=(tmp_path / "set",), kwargs={"images": 3, "size": (16, 16)})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set" / "images").iterdir())) == 3


@pytest.mark.parametrize("arguments", [{"images": 0}, {"size": (8, 64)}])
def test_bad_numbers(tmp_path, arguments):
    with pytest.raises(ValueError, match="at least 1 image of at least 16 x 16"):
        draw_dataset(tmp_path / "set", **arguments)
