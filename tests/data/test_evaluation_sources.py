"""Sources to evaluate on: what they refuse, and that every complaint names the file.

That each benchmark's layout is read right stands in tests/prepare/test_prepare_command.py.
"""

import io
import json
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.benchmarks import BENCHMARKS, open_benchmark, relabelled
from fcclip_jax.data.evaluation_record import EvaluationRecord, InstanceTruth, TrueInstance
from fcclip_jax.data.evaluation_sources import EvaluationSource
from fcclip_jax.data.own_folder import open_folder
from fcclip_jax.data.records import DataError
from fcclip_jax.vocabulary import ClassName, Vocabulary
from tests import benchmark_layouts as layouts

JSON = "coco/annotations/panoptic_val2017.json"
INSTANCES = "coco/annotations/instances_val2017.json"
IMAGE = "coco/val2017/000000000139.jpg"
MAP = "coco/panoptic_val2017/000000000139.png"
SEMANTIC = "coco/panoptic_semseg_val2017/000000000139.png"


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    layouts.write_coco(root)
    for name, labels in (("139", layouts.coco_semantic()), ("285", np.full((40, 60), 255))):
        layouts.picture(root / f"coco/panoptic_semseg_val2017/{int(name):012d}.png", labels.astype(np.uint8))
    return root


@pytest.fixture
def root(coco, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(coco, tmp_path / "root")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repaint(path, value):
    array = np.asarray(Image.open(path)).copy()
    array[0, 0] = value
    Image.fromarray(array).save(path)


def read_all(record: EvaluationRecord) -> None:
    record.decode_image(), record.panoptic(), record.semantic(), record.instances()


def segment(key, value):
    return lambda content: content["annotations"][0]["segments_info"][0].update({key: value})


def annotation(key, value):
    return lambda content: content["annotations"][0].update({key: value})


WRONG = [
    (IMAGE, cut, IMAGE, "damaged or cut short"),
    (IMAGE, lambda path: path.write_bytes(b""), IMAGE, "the file is empty"),
    (IMAGE, lambda path: path.unlink(), IMAGE, "no such file"),
    (IMAGE, lambda path: layouts.photo(path, (60, 40)), MAP, "60 x 40 pixels, but its image"),
    (MAP, cut, MAP, "damaged or cut short"),
    (MAP, lambda path: path.write_text("text"), MAP, "no image"),
    (MAP, lambda path: Image.open(path).convert("L").save(path), MAP, "is no panoptic map"),
    (MAP, lambda path: repaint(path, (1, 2, 3)), MAP, f"segment id {1 + 2 * 256 + 3 * 65536}, which its annotation"),
    (MAP, lambda path: path.unlink(), MAP, "no such file"),
    (JSON, lambda path: edit(path, segment("category_id", 12)), MAP, "has category 12, which the vocabulary does not"),
    (JSON, lambda path: edit(path, segment("id", 300)), MAP, "lists segment 300 twice"),
    (SEMANTIC, lambda path: repaint(path, 133), SEMANTIC, "holds the label 133 (1 pixels"),
    (SEMANTIC, lambda path: Image.open(path).convert("RGB").save(path), SEMANTIC, "is no label map"),
    (SEMANTIC, lambda path: Image.fromarray(np.zeros((40, 61), np.uint8)).save(path), SEMANTIC, "is 61 x 40 pixels"),
    (SEMANTIC, lambda path: path.unlink(), SEMANTIC, "no such file"),
    (INSTANCES, lambda path: edit(path, annotation("category_id", 92)), INSTANCES, "annotation 11: category 92"),
    (INSTANCES, lambda path: edit(path, annotation("segmentation", [[1, 2]])), INSTANCES, "annotation 11: its"),
    (INSTANCES, lambda path: edit(path, annotation("segmentation", "x")), INSTANCES, "annotation 11: its"),
    (
        INSTANCES,
        lambda path: edit(path, annotation("segmentation", {"size": [3, 4], "counts": "0<"})),
        INSTANCES,
        "its mask is 4 x 3 pixels, but the image is 60 x 40",
    ),
]


@pytest.mark.parametrize(("path", "spoil", "named", "message"), WRONG)
def test_a_bad_image_is_one_line_with_its_file(root, path, spoil, named, message):
    spoil(root / path)
    source = open_benchmark("coco_panoptic", root)
    with pytest.raises(DataError) as error:
        read_all(source[0])
    assert named in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    read_all(source[1])


def one_more_category(content):
    content["categories"].append({"id": 201, "name": "more"})


def a_category_of_another_list(content):
    one_more_category(content)
    content["annotations"][0]["segments_info"][0]["category_id"] = 201


def drop_category(content):
    content["categories"] = content["categories"][:-1]


REFUSED = [
    (JSON, lambda path: path.unlink(), "no such file"),
    (JSON, cut, "not JSON, or cut short"),
    (JSON, lambda path: path.write_text("[]"), "it has no list `annotations`"),
    (JSON, lambda path: edit(path, drop_category), "has 132 categories where the vocabulary has 133 classes"),
    (
        JSON,
        lambda path: edit(path, a_category_of_another_list),
        "has 134 categories .* it has 201",
    ),
    (JSON, lambda path: edit(path, annotation("image_id", 7)), "image 7, which its `images` do not list"),
    (JSON, lambda path: edit(path, lambda c: c["annotations"][0].pop("segments_info")), "KeyError 'segments_info'"),
    (JSON, lambda path: edit(path, annotation("file_name", "../x.png")), "plain name of a file is expected"),
    (INSTANCES, lambda path: path.unlink(), "expected under the root folder"),
    (INSTANCES, lambda path: edit(path, drop_category), "has 79 categories where the vocabulary has 80 classes"),
    (INSTANCES, lambda path: edit(path, annotation("image_id", 9)), "image 9, which its `images` do not list"),
    ("coco/val2017", shutil.rmtree, "coco/val2017/*.jpg"),
    ("coco/panoptic_val2017", shutil.rmtree, "coco/panoptic_val2017/*.png"),
    ("coco/panoptic_semseg_val2017", shutil.rmtree, "`fcclip prepare coco_panoptic` makes"),
]


@pytest.mark.parametrize(("path", "spoil", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_the_first_image(root, path, spoil, message):
    spoil(root / path)
    with pytest.raises(DataError) as error:
        open_benchmark("coco_panoptic", root)
    assert path in str(error.value) and re.search(message.replace("*.", "[*]."), str(error.value))


def test_a_category_that_nothing_has_does_not_matter(root):
    _, before = open_benchmark("coco_panoptic", root)[0].panoptic()
    edit(root / JSON, one_more_category)
    record = open_benchmark("coco_panoptic", root)[0]
    read_all(record)
    assert record.panoptic()[1] == before != []


def test_what_is_not_asked_for_need_not_be_there(root):
    shutil.rmtree(root / "coco/panoptic_semseg_val2017")
    (root / INSTANCES).unlink()
    source = open_benchmark("coco_panoptic", root, truths=["panoptic"])
    assert source.truths == {"panoptic"} and isinstance(source, EvaluationSource)
    with pytest.raises(KeyError, match="semantic"):
        source[0].semantic()


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_one_truth_alone_lists_the_same_images(coco, kind):
    source = open_benchmark("coco_panoptic", coco, truths=[kind])
    assert source.ids() == [139, 285] and source[0].file_stem == "000000000139"


def test_unknown_names():
    with pytest.raises(ValueError, match="no benchmark 'ade'; there are: coco_panoptic, ade20k_150"):
        open_benchmark("ade", "x")
    with pytest.raises(ValueError, match="no split 'test'"):
        open_benchmark("ade20k_150", "x", split="test")
    with pytest.raises(ValueError, match="has the truths semantic, not"):
        open_benchmark("ade20k_847", "x", truths=["panoptic"])
    with pytest.raises(DataError, match="no such folder"):
        open_benchmark("ade20k_150", "/no/where")


def test_a_vocabulary_of_another_size_is_refused(coco):
    with pytest.raises(DataError, match="has 2 classes, but coco_panoptic is annotated with 133"):
        open_benchmark("coco_panoptic", coco, labels=Vocabulary.parse("cat; dog"))


def test_published_label_files_fit_by_place_and_by_id():
    own = Vocabulary((ClassName(("sky",), False, 0), ClassName(("cat",), True, 1), ClassName(("sea",), False, 2)))
    # FC-CLIP counts ADE20K from 1: another set of ids, so the place counts; and it does not say what is stuff.
    published = Vocabulary(
        (ClassName(("heaven",), id=1), ClassName(("kitten", "cat"), id=2), ClassName(("lake",), id=3))
    )
    found = relabelled(own, published)
    assert [(cls.names, cls.isthing, cls.id) for cls in found.classes] == [
        (("heaven",), False, 0),
        (("kitten", "cat"), True, 1),
        (("lake",), False, 2),
    ]
    shuffled = Vocabulary((ClassName(("lake",), id=2), ClassName(("heaven",), id=0), ClassName(("kitten",), id=1)))
    assert relabelled(own, shuffled).names == ("heaven", "kitten", "lake")


def test_the_table_of_benchmarks_is_whole():
    for name, benchmark in BENCHMARKS.items():
        assert name == benchmark.name and benchmark.truths
        vocabulary = Vocabulary.builtin(benchmark.labels)
        assert all(cls.id is not None for cls in vocabulary.classes)
        assert "panoptic" not in benchmark.truths or benchmark.panoptic_json
        assert "{stem}" in benchmark.images and benchmark.expected_images
    assert {n for n, b in BENCHMARKS.items() if b.min_size == 1024} == {"cityscapes", "mapillary_vistas"}


def test_a_source_travels_between_processes(coco):
    source = open_benchmark("coco_panoptic", coco)
    other = pickle.loads(pickle.dumps(source))
    assert other.ids() == source.ids() and other[0].instances() == source[0].instances()


def test_sizes_are_those_of_the_upright_image(tmp_path):
    """A photo that lies on its side in the file has its truth upright, as in detectron2."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "i").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "i/x.jpg", exif=exif)
    layouts.picture(tmp_path / "m/x.png", np.ones((60, 40), np.uint8))
    record = open_folder(tmp_path / "i", Vocabulary.parse("cat; dog"), semantic=tmp_path / "m")[0]
    assert record.size() == (60, 40) and record.decode_image().shape == (60, 40, 3)
    assert (record.semantic() == 1).all()


def test_polygons_in_parts_are_one_mask():
    entry = {"id": 1, "category_id": 3, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2], [4, 0, 6, 0, 6, 2, 4, 2]]}
    record = EvaluationRecord("x", "x.png", "x", png((4, 8)), instance_truth=truth([entry]))
    (found,) = record.instances()
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, [0, 1, 4, 5]] = 1
    np.testing.assert_array_equal(layouts.coco_mask.decode(found.rle), mask)
    # Without an area of its own, an annotation has that of its mask.
    assert found == TrueInstance(0, found.rle, False, 8.0)


def png(size):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def truth(entries):
    return InstanceTruth("x.json", json.dumps(entries).encode(), {3: 0})
