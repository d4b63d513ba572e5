"""Cityscapes against its own scripts, where they are installed: pip install cityscapesscripts"""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fcclip_jax import cli
from tests import benchmark_layouts as layouts

pytestmark = pytest.mark.parity
STEM = "aachen_000000_000019"
# From the back to the front, as an annotator draws them; a number plate (id -1) is not drawn.
POLYGONS = [
    ("sky", [(0, 0), (59, 0), (59, 15), (0, 15)]),
    ("road", [(0, 16), (59, 16), (59, 39), (0, 39)]),
    ("car", [(5, 20), (20, 20), (20, 30), (5, 30)]),
    ("cargroup", [(22, 20), (40, 20), (40, 26), (22, 26)]),
    ("license plate", [(8, 26), (12, 26), (12, 28), (8, 28)]),
    ("caravan", [(45, 20), (55, 20), (55, 30), (45, 30)]),
    ("person", [(30, 24), (33, 24), (33, 36), (30, 36)]),
    ("ego vehicle", [(0, 37), (59, 37), (59, 39), (0, 39)]),
]


@pytest.fixture
def truth(tmp_path):
    """gtFine with polygons, and the label and instance maps that the data set's scripts draw of them."""
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    folder = tmp_path / "cityscapes/gtFine/val/aachen"
    objects = [{"label": name, "polygon": polygon} for name, polygon in POLYGONS]
    layouts.write_json(folder / f"{STEM}_gtFine_polygons.json", {"imgHeight": 40, "imgWidth": 60, "objects": objects})
    ids, instances = Image.new("L", (60, 40), 0), Image.new("I", (60, 40), 0)
    for name, polygon in POLYGONS:
        label = labels.name2label[name.removesuffix("group")]
        if label.id >= 0:
            number = label.id * 1000 if label.hasInstances and not name.endswith("group") else label.id
            ImageDraw.Draw(ids).polygon(polygon, fill=label.id)
            ImageDraw.Draw(instances).polygon(polygon, fill=number)
    ids.save(folder / f"{STEM}_gtFine_labelIds.png")
    Image.fromarray(np.asarray(instances).astype(np.uint16)).save(folder / f"{STEM}_gtFine_instanceIds.png")
    assert cli.main(["prepare", "cityscapes", "--root", str(tmp_path)]) == 0
    return tmp_path / "cityscapes/gtFine"


def test_train_ids_are_those_drawn_from_the_polygons(truth, tmp_path):
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    folder = truth / "val/aachen"
    json2labelImg(str(folder / f"{STEM}_gtFine_polygons.json"), str(tmp_path / "drawn.png"), "trainIds")
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / f"{STEM}_gtFine_labelTrainIds.png")),
        np.asarray(Image.open(tmp_path / "drawn.png")),
    )


def test_panoptic_maps_are_those_of_the_script(truth, tmp_path, capsys):
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    convert2panoptic(str(truth), str(theirs), setNames=["val"])
    content = json.loads((truth / "cityscapes_panoptic_val.json").read_text())
    assert content == json.loads((theirs / "cityscapes_panoptic_val.json").read_text())
    name = f"cityscapes_panoptic_val/{STEM}_gtFine_panoptic.png"
    np.testing.assert_array_equal(np.asarray(Image.open(truth / name)), np.asarray(Image.open(theirs / name)))
