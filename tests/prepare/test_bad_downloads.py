"""What is wrong with a download is one line that names the file; nothing half done is left."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcclip_jax import cli
from tests import benchmark_layouts as layouts

WRITE = {
    "coco_panoptic": layouts.write_coco,
    "ade20k_150": layouts.write_ade,
    "cityscapes": layouts.write_cityscapes,
    "ade20k_847": layouts.write_ade_full,
    "pascal_voc_21": layouts.write_voc,
    "pascal_context_59": layouts.write_context_59,
    "pascal_context_459": layouts.write_context_459,
    "mapillary_vistas": layouts.write_mapillary,
    "coco_stuff_171": layouts.write_coco_stuff,
}
COCO_JSON = "coco/annotations/panoptic_val2017.json"
COCO_MAP = "coco/panoptic_val2017/000000000139.png"
ADE = "ADEChallengeData2016"
ADE_NAME = "validation/ADE_val_00000001.png"
CITY = f"cityscapes/gtFine/val/frankfurt/{layouts.CITYSCAPES_STEM}_gtFine"
FULL = "ADE20K_2021_17_01/images/ADE/validation/home_or_hotel/bedroom/ADE_val_00000002"
VOC = "VOCdevkit/VOC2012"
CONTEXT = "VOCdevkit/VOC2010"


def spoil_json(root, path, change):
    content = json.loads((root / path).read_text())
    change(content)
    (root / path).write_text(json.dumps(content))


def cut(root, path, keep=0.5):
    data = (root / path).read_bytes()
    (root / path).write_bytes(data[: int(len(data) * keep)])


def repaint(root, path, value):
    array = np.asarray(Image.open(root / path)).copy()
    array[0, 0] = value
    Image.fromarray(array).save(root / path)


def other_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 12


def no_such_mask(content):
    content["annos_segmentation"][0]["category_id"] = 7


def two_classes(root):
    path = root / ADE / "annotations_instance" / ADE_NAME
    array = np.asarray(Image.open(path)).copy()
    array[20, 0, 0] = 9
    Image.fromarray(array).save(path)


# dataset, what is spoilt, parts of the message; `skipped`: --skip_bad goes on
MISSING = [
    ("coco_panoptic", COCO_JSON, "coco/annotations/panoptic_{val,train}2017.json"),
    ("coco_panoptic", "coco/panoptic_val2017", "coco/panoptic_{val,train}2017/*.png"),
    ("ade20k_150", f"{ADE}/annotations_instance", "annotations_instance.tar"),
    ("ade20k_150", f"{ADE}/annotations", "annotations/{validation,training}/*.png"),
    ("cityscapes", "cityscapes/gtFine/val", "*_gtFine_labelIds.png"),
    ("ade20k_847", "ADE20K_2021_17_01", "ADE_val_00000001_seg.png"),
    ("pascal_voc_21", f"{VOC}/ImageSets/Segmentation/val.txt", "VOCtrainval_11-May-2012.tar"),
    ("pascal_voc_21", f"{VOC}/SegmentationClass", "SegmentationClass/*.png"),
    ("pascal_context_59", f"{CONTEXT}/trainval_merged.json", "PASCAL in Detail"),
    ("pascal_context_459", "pascal_ctx_d2/images/validation", "fcclip prepare pascal_context_59"),
    ("mapillary_vistas", "mapillary_vistas/validation/panoptic", "mapillary_vistas/validation/labels/*.png"),
    ("coco_stuff_171", "coco/stuffthingmaps", "stuffthingmaps_trainval2017.zip"),
]
BAD = [
    ("coco_panoptic", COCO_MAP, lambda r: cut(r, COCO_MAP), "damaged or cut short"),
    ("coco_panoptic", COCO_MAP, lambda r: repaint(r, COCO_MAP, (9, 0, 0)), "segment id 9, which its annotation"),
    ("coco_panoptic", COCO_MAP, lambda r: (r / COCO_MAP).unlink(), "no such file"),
    ("coco_panoptic", COCO_MAP, lambda r: spoil_json(r, COCO_JSON, other_category), "the category 12"),
    ("ade20k_150", f"annotations/{ADE_NAME}", lambda r: repaint(r, f"{ADE}/annotations/{ADE_NAME}", 151), "label 151"),
    (
        "ade20k_150",
        f"annotations_instance/{ADE_NAME}",
        lambda r: layouts.picture(
            r / ADE / "annotations_instance" / ADE_NAME, np.zeros((layouts.W, layouts.H, 3), np.uint8)
        ),
        "is 40 x 60 pixels, but",
    ),
    ("ade20k_150", f"annotations_instance/{ADE_NAME}", two_classes, "instance 1 has the class 1, 9"),
    ("cityscapes", "_instanceIds.png", lambda r: repaint(r, f"{CITY}_instanceIds.png", 35001), "the instance id 35001"),
    ("cityscapes", "_labelIds.png", lambda r: repaint(r, f"{CITY}_labelIds.png", 40), "the label 40"),
    ("ade20k_847", f"{FULL}_seg.png", lambda r: (r / f"{FULL}_seg.png").unlink(), "no such file"),
    ("ade20k_847", f"{FULL}_seg.png", lambda r: layouts.photo(r / f"{FULL}_seg.png", (41, 60)), "60 x 41 pixels"),
    ("ade20k_847", f"{FULL}.jpg", lambda r: cut(r, f"{FULL}.jpg"), "cut short"),
    (
        "pascal_voc_21",
        "2007_000033.png",
        lambda r: repaint(r, f"{VOC}/SegmentationClass/2007_000033.png", 21),
        "the label 21",
    ),
    ("pascal_voc_21", "2007_000033.jpg", lambda r: (r / f"{VOC}/JPEGImages/2007_000033.jpg").unlink(), "no such file"),
    (
        "pascal_context_59",
        "2008_000002.jpg",
        lambda r: spoil_json(r, f"{CONTEXT}/trainval_merged.json", no_such_mask),
        "the category 7, which is none of the 59",
    ),
    (
        "pascal_context_459",
        "2008_000002.mat",
        lambda r: savemat(r / f"{CONTEXT}/trainval/2008_000002.mat", {"Other": np.zeros((2, 2))}),
        "no LabelMap",
    ),
    (
        "pascal_context_459",
        "2008_000002.mat",
        lambda r: cut(r, f"{CONTEXT}/trainval/2008_000002.mat", 0.9),
        "damaged, or no MATLAB file",
    ),
]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Each layout once; a test copies the one that it spoils."""
    base = tmp_path_factory.mktemp("downloads")
    for dataset, write in WRITE.items():
        write(base / dataset)
    return base


@pytest.fixture
def prepare(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = cli.main(["prepare", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def assert_one_error(err, *parts):
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(("dataset", "gone", "layout"), MISSING, ids=lambda value: value if "/" not in value else None)
def test_what_is_missing_is_named_with_the_layout(downloads, tmp_path, prepare, dataset, gone, layout):
    root = shutil.copytree(downloads / dataset, tmp_path / "root")
    path = root / gone
    path.unlink() if path.is_file() else shutil.rmtree(path)
    code, _, err = prepare(dataset, "--root", root, "--split", "val")
    assert code == 2
    assert_one_error(err, gone.rpartition("/")[2], layout)


@pytest.mark.parametrize(("dataset", "file", "spoil", "message"), BAD)
def test_a_bad_file_is_named_and_can_be_skipped(downloads, tmp_path, prepare, dataset, file, spoil, message):
    root = shutil.copytree(downloads / dataset, tmp_path / "root")
    before = {path for path in root.rglob("*") if path.is_file()}
    spoil(root)
    code, _, err = prepare(dataset, "--root", root, "--split", "val")
    assert code == 2
    assert_one_error(err, file, message)
    assert not list(root.rglob("*.partial"))
    code, out, err = prepare(dataset, "--root", root, "--split", "val", "--skip_bad")
    assert code == 1 and err == ""
    skipped = [line for line in out.splitlines() if line.startswith("skipped: ")]
    assert skipped and all(file in line and message in line for line in skipped)
    assert ", 1 bad" in out
    for path in set(root.rglob("*.png")) | set(root.rglob("*.tif")):
        if path not in before:
            Image.open(path).load()


def climb(key):
    def change(content):
        content[key][0]["file_name"] = "../../elsewhere.png"

    return change


@pytest.mark.parametrize(
    ("dataset", "path", "spoil"),
    [
        ("coco_panoptic", COCO_JSON, lambda path: spoil_json(path.parent, path.name, climb("annotations"))),
        (
            "pascal_context_59",
            f"{CONTEXT}/trainval_merged.json",
            lambda path: spoil_json(path.parent, path.name, climb("images")),
        ),
        ("pascal_voc_21", f"{VOC}/ImageSets/Segmentation/val.txt", lambda path: path.write_text("../../elsewhere")),
    ],
)
def test_nothing_is_written_outside(downloads, tmp_path, prepare, dataset, path, spoil):
    root = shutil.copytree(downloads / dataset, tmp_path / "root")
    spoil(root / path)
    before = set(tmp_path.rglob("*"))
    code, _, err = prepare(dataset, "--root", root, "--split", "val")
    assert code == 2 and set(tmp_path.rglob("*")) == before
    assert_one_error(err, path, "where the plain name of a file is expected")


def test_an_unknown_data_set_and_folder(tmp_path, prepare):
    code, _, err = prepare("ade20k", "--root", tmp_path)
    assert code == 2
    assert_one_error(err, "no data set 'ade20k'", "ade20k_150", "pascal_voc_21")
    code, _, err = prepare("ade20k_150", "--root", tmp_path / "nowhere")
    assert code == 2
    assert_one_error(err, "no folder", "DETECTRON2_DATASETS")


def test_the_root_is_that_of_detectron2(downloads, tmp_path, prepare, monkeypatch):
    root = shutil.copytree(downloads / "coco_stuff_171", tmp_path / "root")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert prepare("coco_stuff_171")[0] == 0
    monkeypatch.delenv("DETECTRON2_DATASETS")
    shutil.copytree(downloads / "coco_stuff_171", tmp_path / "here/datasets")
    monkeypatch.chdir(tmp_path / "here")
    assert prepare("coco_stuff_171")[0] == 0
    assert (tmp_path / "here/datasets/coco/stuffthingmaps_detectron2/val2017/000000000139.png").is_file()
