"""Sources: what is read, and that everything wrong is one clear line that names the file."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.records import DataError, decode_image
from fcclip_jax.data.sources import CocoPanopticSource, TfdsPanopticSource
from fcclip_jax.data.targets import row_map
from fcclip_jax.vocabulary import ClassName, Vocabulary

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", images=5, size=(40, 56))


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "set"))


def open_folder(folder: Path, skip_bad: bool = False, vocabulary: Vocabulary | None = None) -> CocoPanopticSource:
    vocabulary = vocabulary or Vocabulary.from_file(folder / "labels.txt")
    return CocoPanopticSource(
        folder / "images", folder / "panoptic", folder / "panoptic.json", vocabulary, skip_bad=skip_bad
    )


def edit(folder: Path, change) -> None:
    path = folder / "panoptic.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_one_line(error, *parts: str) -> None:
    for part in parts:
        assert part in str(error.value)
    assert "Traceback" not in str(error.value)


def test_reads_what_the_annotation_says(drawn):
    source = open_folder(drawn)
    content = json.loads((drawn / "panoptic.json").read_text())
    vocabulary = Vocabulary.from_file(drawn / "labels.txt")
    assert len(source) == 5
    for record, annotation in zip((source[i] for i in range(5)), content["annotations"], strict=True):
        segments = annotation["segments_info"]
        assert record.image_id == annotation["image_id"]
        assert record.segment_ids.tolist() == [segment["id"] for segment in segments]
        assert [vocabulary.classes[row].id for row in record.classes] == [s["category_id"] for s in segments]
        assert not record.crowd.any()
        image, panoptic = record.decode()
        assert image.size == panoptic.size == (56, 40)
        np.testing.assert_array_equal(image, Image.open(drawn / "images" / annotation["file_name"]))


def test_images_without_annotation_are_left_out_and_crowds_are_marked(folder):
    def change(content):
        del content["annotations"][1]
        content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
        del content["annotations"][0]["segments_info"][0]["iscrowd"]

    edit(folder, change)
    source = open_folder(folder)
    assert [source[i].image_id for i in range(len(source))] == [1, 3, 4, 5]
    assert source[0].crowd.tolist()[:2] == [False, True]


def test_travels_by_pickle(drawn):
    source = open_folder(drawn)
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == len(source)
    assert again[2].image == source[2].image
    np.testing.assert_array_equal(again[2].segment_ids, source[2].segment_ids)


@pytest.mark.parametrize("missing", ["images", "panoptic", "panoptic.json"])
def test_a_missing_part_is_named_with_the_layout(folder, missing):
    (folder / missing).rename(folder / "elsewhere")
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    with pytest.raises(DataError) as error:
        open_folder(folder, vocabulary=vocabulary)
    assert_one_line(error, f"{folder / missing}: no such", "train2017/", "panoptic_train2017.json")


def test_a_folder_of_other_images(folder):
    for path in (folder / "images").iterdir():
        path.rename(path.with_name("other_" + path.name))
    with pytest.raises(DataError) as error:
        open_folder(folder)
    assert_one_line(error, "images/000000000001.png: no such file; expected is the layout")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images": [', "not JSON, or cut short: line 1"),
        ("[]", "it has no list `images`"),
        ('{"images": [], "annotations": {}}', "it has no list `annotations`"),
        ('{"images": [], "annotations": []}', "nothing to train on"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}', "another COCO one"),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "file_name": "b", "segments_info": []}]}',
            "KeyError 'file_name'",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], '
            '"annotations": [{"image_id": 2, "file_name": "b", "segments_info": []}]}',
            "an annotation of image 2, which its `images` do not list",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], '
            '"annotations": [{"image_id": 1, "file_name": "b", "segments_info": [7]}]}',
            "not a COCO panoptic file",
        ),
    ],
)
def test_another_kind_of_annotation_file(folder, text, message):
    (folder / "panoptic.json").write_text(text)
    with pytest.raises(DataError) as error:
        open_folder(folder)
    assert_one_line(error, "panoptic.json: ", message)


def test_unknown_category(folder):
    edit(folder, lambda content: content["annotations"][2]["segments_info"][0].update(id=77, category_id=999))
    with pytest.raises(DataError) as error:
        open_folder(folder)
    assert_one_line(
        error, "panoptic.json: 000000000003.png: segment 77 has category 999", "vocabulary", "7 ids from 1 to 100"
    )
    source = open_folder(folder, skip_bad=True)
    assert source[1].image_id == 2
    with pytest.raises(DataError, match=r"panoptic/000000000003.png: segment 77 has category 999"):
        source[2]


def test_a_vocabulary_without_ids(drawn):
    with pytest.raises(DataError, match="no class has an id"):
        open_folder(drawn, vocabulary=Vocabulary((ClassName(("disc",)),)))


def spoil_cut_short(path):
    path.write_bytes(path.read_bytes()[:200])


def spoil_emptied(path):
    path.write_bytes(b"")


def spoil_text(path):
    path.write_text("no image at all")


def spoil_removed(path):
    path.unlink()


def spoil_resized(path):
    Image.new("RGB", (57, 40)).save(path)


@pytest.mark.parametrize("which", ["images", "panoptic"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_cut_short, "damaged or cut short"),
        (spoil_emptied, "the file is empty"),
        (spoil_text, "no image, or damaged at its start"),
        (spoil_removed, "no such file"),
    ],
)
def test_bad_files_are_named(folder, which, spoil, message):
    source = open_folder(folder)
    spoil(folder / which / "000000000002.png")
    with pytest.raises(DataError) as error:
        source[1].decode()
    assert_one_line(error, f"{which}/000000000002.png: {message}")
    assert "\n" not in str(error.value)


def test_sizes_that_differ(folder):
    spoil_resized(folder / "panoptic" / "000000000002.png")
    with pytest.raises(DataError, match=r"panoptic/000000000002.png: is 57 x 40 pixels, but its image .* is 56 x 40"):
        open_folder(folder)[1].decode()


def test_decoding_applies_exif_and_makes_rgb(tmp_path):
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)  # grey
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(decode_image((tmp_path / "turned.png").read_bytes(), "turned.png"))
    np.testing.assert_array_equal(upright, np.stack([np.rot90(np.asarray(picture), -1)] * 3, -1))


def test_errors_travel_by_pickle():
    error = pickle.loads(pickle.dumps(DataError("a.png", "is bad")))
    assert (str(error), error.name, error.reason) == ("a.png: is bad", "a.png", "is bad")


@pytest.fixture(scope="module")
def prepared(drawn, tmp_path_factory):
    from fcclip_jax.data.tfds_panoptic import prepare

    vocabulary = Vocabulary.from_file(drawn / "labels.txt")
    source = open_folder(drawn)
    return prepare(tmp_path_factory.mktemp("tfds"), {"train": source, "val": source}, vocabulary)


def test_array_record_gives_the_same_records(drawn, prepared):
    folder = open_folder(drawn)
    source = TfdsPanopticSource(prepared, Vocabulary.from_file(drawn / "labels.txt"))
    assert len(source) == 5
    source = pickle.loads(pickle.dumps(source))
    by_id = {source[i].image_id: source[i] for i in range(5)}  # tfds shuffles as it writes
    for original in (folder[i] for i in range(5)):
        record = by_id[original.image_id]
        assert (record.image, record.panoptic) == (original.image, original.panoptic)
        np.testing.assert_array_equal(record.segment_ids, original.segment_ids)
        np.testing.assert_array_equal(record.classes, original.classes)
        np.testing.assert_array_equal(record.crowd, original.crowd)
        assert Path(original.image_name).name in record.image_name
        row_map(record, np.asarray(record.decode()[1]))
    with pytest.raises(IndexError):
        source[5]


def test_array_record_features_are_those_of_coco(drawn, prepared):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(prepared).info
    objects = info.features["panoptic_objects"]
    assert set(info.features) == {
        "image",
        "image/filename",
        "image/id",
        "panoptic_image",
        "panoptic_image/filename",
        "panoptic_objects",
    }
    assert set(objects.feature) == {"id", "area", "bbox", "label", "is_crowd"}
    assert objects["label"].names[:3] == ["disc", "square", "triangle"]
    example = tfds.builder_from_directory(prepared).as_data_source("train")[0]
    content = json.loads((drawn / "panoptic.json").read_text())
    segments = content["annotations"][int(example["image/id"]) - 1]["segments_info"]
    assert list(example["panoptic_objects"]["area"]) == [segment["area"] for segment in segments]
    left, top, width, height = segments[0]["bbox"]
    np.testing.assert_allclose(
        example["panoptic_objects"]["bbox"][0],
        [top / 40, left / 56, (top + height) / 40, (left + width) / 56],
        rtol=1e-6,  # stored as float32
    )


def test_array_record_slices_and_its_errors(drawn, prepared, tmp_path):
    vocabulary = Vocabulary.from_file(drawn / "labels.txt")
    assert len(TfdsPanopticSource(prepared, vocabulary, split="val[:40%]")) == 2
    with pytest.raises(DataError, match=r"cannot read the split 'test' \(it has: train, val\)"):
        TfdsPanopticSource(prepared, vocabulary, split="test")
    with pytest.raises(DataError, match=r"no dataset_info.json"):
        TfdsPanopticSource(tmp_path, vocabulary)
    fewer = Vocabulary(vocabulary.classes[1:])
    with pytest.raises(DataError, match="has the category 1, which the vocabulary does not have"):
        TfdsPanopticSource(prepared, fewer)


def test_array_record_is_not_prepared_from_bad_records(folder, tmp_path):
    from fcclip_jax.data.tfds_panoptic import prepare

    (folder / "images" / "000000000004.png").unlink()
    with pytest.raises(DataError, match=r"images/000000000004.png: no such file"):
        prepare(tmp_path / "tfds", {"train": open_folder(folder)}, Vocabulary.from_file(folder / "labels.txt"))
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


def test_array_record_without_our_metadata_goes_by_rising_ids(drawn, prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / prepared.parent.name / prepared.name))
    (copy / "metadata.json").unlink()
    vocabulary = Vocabulary.from_file(drawn / "labels.txt")
    shuffled = Vocabulary(vocabulary.classes[::-1])
    record, other = TfdsPanopticSource(copy, vocabulary)[0], TfdsPanopticSource(copy, shuffled)[0]
    assert [vocabulary.classes[row].id for row in record.classes] == [shuffled.classes[row].id for row in other.classes]
    with pytest.raises(DataError, match="has 7 labels, but the vocabulary has 6 classes with an id"):
        TfdsPanopticSource(copy, Vocabulary(vocabulary.classes[1:]))


@pytest.fixture(scope="module")
def samples() -> CocoPanopticSource:
    if not SAMPLES.is_dir():
        pytest.skip("the two annotated photos (../shared/samples) are not beside this checkout")
    vocabulary = Vocabulary.builtin("coco_panoptic")
    return CocoPanopticSource(SAMPLES, SAMPLES / "panoptic", SAMPLES / "panoptic.json", vocabulary)


def test_real_photos(samples):
    content = json.loads((SAMPLES / "panoptic.json").read_text())
    vocabulary = Vocabulary.builtin("coco_panoptic")
    segments = {entry["image_id"]: entry["segments_info"] for entry in content["annotations"]}
    assert len(samples) == len(segments) == 2
    for record in (samples[0], samples[1]):
        expected = segments[record.image_id]
        assert [vocabulary.classes[row].id for row in record.classes] == [s["category_id"] for s in expected]
        rows = row_map(record, np.asarray(record.decode()[1]))
        kept = [segment for segment in expected if not segment["iscrowd"]]
        assert np.bincount(rows.ravel() + 1)[1:].tolist() == [segment["area"] for segment in kept]


def test_data_stays_light():
    """Loader processes import these: neither jax nor grain nor tensorflow may come along."""
    code = (
        "import sys\n"
        "from fcclip_jax.data import augment, drawn, loader, records, resize_window, sources, targets\n"
        "print(sorted({'jax', 'flax', 'grain', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
