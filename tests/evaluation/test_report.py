"""The report beside the paper's figures."""

import json

import pytest

from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
from fcclip_jax.evaluation.paper import BACKBONES, published
from fcclip_jax.evaluation.report import Report, comparison, markdown, notes, write_report
from fcclip_jax.models.fcclip import VARIANTS

LARGE = "convnext_large_d_320"


def report(**changes) -> Report:
    quality = PanopticQuality([{"id": 1, "name": "cat", "isthing": 1}]).compute()
    figures = {"panoptic": quality | {"PQ": 25.3}, "semantic": {"mIoU": None, "per_class": []}}
    figures["semantic"] |= {"fwIoU": None, "mACC": None, "pACC": None}
    return Report(
        **{"benchmark": "ade20k_150", "title": "ADE20K-150", "backbone": LARGE, "classifier": "ensemble"}
        | {"figures": figures, "images": 2000, "expected": 2000}
        | changes
    )


@pytest.mark.parametrize(
    ("backbone", "benchmark", "classifier", "expected"),
    [
        (LARGE, "ade20k_150", "ensemble", {"PQ": 26.8, "AP": 16.8, "mIoU": 34.1}),
        (LARGE, "coco_panoptic", "ensemble", {"PQ": 54.4, "AP": 44.6, "mIoU": 63.7}),
        (LARGE, "mapillary_vistas", "ensemble", {"PQ": 18.3, "mIoU": 27.8}),
        ("RN50x16", "cityscapes", "ensemble", {"PQ": 42.0, "AP": 25.6, "mIoU": 56.0}),
        ("RN50", "pascal_context_459", "ensemble", {"mIoU": 12.9}),
        ("RN50x64", "pascal_voc_21", "ensemble", {"mIoU": 80.3}),
        (LARGE, "ade20k_150", "in_vocabulary", {"PQ": 17.8}),
        (LARGE, "ade20k_150", "out_vocabulary", {"PQ": 21.9}),
        (LARGE, "cityscapes", "out_vocabulary", {}),
        ("convnext_base_w_320", "ade20k_150", "ensemble", {}),
        (LARGE, "folder", "ensemble", {}),
    ],
)
def test_published_figures(backbone, benchmark, classifier, expected):
    assert published(backbone, benchmark, classifier) == expected


def test_the_rows_go_by_the_names_of_our_models():
    """A checkpoint's configuration has the variant's name, which finds its row."""
    resnets = {name for name in VARIANTS if name.startswith("RN")}
    assert len(resnets) == 5 and BACKBONES.keys() == {LARGE} | resnets
    assert all(published(name, "ade20k_150") for name in BACKBONES)


def test_the_rows_stand_side_by_side():
    assert comparison(report()).splitlines() == [
        "| percent | PQ | mIoU |",
        "| --- | --- | --- |",
        f"| this run ({LARGE}) | 25.30 | - |",
        "| FC-CLIP, ConvNeXt-L (paper) | 26.80 | 34.10 |",
        "| difference | -1.50 | - |",
    ]


def test_without_a_published_row_there_is_one_row():
    changed = report(backbone="convnext_base_w_320")
    assert len(comparison(changed).splitlines()) == 3
    assert notes(changed)[-1].startswith("the paper has no row for convnext_base_w_320")


def test_a_reader_is_told_what_is_not_as_in_the_paper():
    changed = report(images=10, skipped=["x.jpg: damaged"], departures=["true masks given"])
    assert notes(changed) == [
        "11 of the benchmark's 2000 images",
        "1 of them could not be used and are not counted",
        "true masks given",
    ]
    assert "## Passed over\n\n- x.jpg: damaged" in markdown(changed)


def test_files(tmp_path):
    write_report(tmp_path, report(worst=[(1.25, "139")]), {"model": "a"})
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["panoptic"]["PQ"] == 25.3 and figures["paper"]["PQ"] == 26.8
    assert figures["evaluation"] == {"model": "a"} and figures["images"] == 2000
    assert "| 139 | 1.25 |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "report.md"]
