"""Benchmarks written as array_record and read back: the same records."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcclip_jax import cli
from fcclip_jax.data.benchmarks import open_benchmark
from fcclip_jax.data.records import DataError
from fcclip_jax.data.sources import TfdsPanopticSource
from fcclip_jax.data.tfds_evaluation import TfdsEvaluationSource
from fcclip_jax.vocabulary import Vocabulary
from tests import benchmark_layouts as layouts

WRITE = {
    "coco_panoptic": layouts.write_coco,
    "ade20k_150": layouts.write_ade,
    "cityscapes": layouts.write_cityscapes,
    "ade20k_847": layouts.write_ade_full,
    "mapillary_vistas": layouts.write_mapillary,
    "pascal_voc_20": layouts.write_voc,
}


@pytest.mark.parametrize("name", WRITE)
def test_what_is_read_back_is_what_was_written(tmp_path, name, capsys):
    root = tmp_path / "root"
    WRITE[name](root)
    assert cli.main(["prepare", name, "--root", str(root), "--tfds", str(tmp_path / "tfds")]) == 0
    folder = tmp_path / "tfds" / name / "1.0.0"
    assert str(folder) in capsys.readouterr().out
    ours, theirs = open_benchmark(name, root), TfdsEvaluationSource(folder)
    assert theirs.ids() == ours.ids() and theirs.truths == ours.truths
    assert theirs.vocabulary == ours.vocabulary and theirs.ignore_label == ours.ignore_label
    theirs = pickle.loads(pickle.dumps(theirs))
    for index in range(len(ours)):
        record, other = ours[index], theirs[index]
        assert (record.image_id, record.file_stem, record.image) == (other.image_id, other.file_stem, other.image)
        if "panoptic" in ours.truths:
            (ids, segments), (other_ids, other_segments) = record.panoptic(), other.panoptic()
            np.testing.assert_array_equal(other_ids, ids)
            assert other_segments == segments
        if "semantic" in ours.truths:
            np.testing.assert_array_equal(other.semantic(), record.semantic())
        if "instance" in ours.truths:
            assert other.instances() == record.instances()
        if name == "cityscapes":
            np.testing.assert_array_equal(other.cityscapes_ids(), record.cityscapes_ids())


def test_it_can_be_trained_on_and_has_its_splits(tmp_path):
    root = tmp_path / "root"
    layouts.write_coco(root)
    layouts.write_coco(root, "train")
    assert cli.main(["prepare", "coco_panoptic", "--root", str(root), "--tfds", str(tmp_path / "tfds")]) == 0
    folder = tmp_path / "tfds/coco_panoptic/1.0.0"
    source = TfdsPanopticSource(folder, Vocabulary.builtin("coco_panoptic"), "train")
    assert [record.image_id for record in (source[0], source[1])] == [139, 285]
    assert source[0].classes.tolist() == [0, 0, 131] and source[0].crowd.tolist() == [False, True, False]
    assert TfdsEvaluationSource(folder, "train").ids() == [139, 285]
    with pytest.raises(DataError, match="no split 'test'; it has: val, train"):
        TfdsEvaluationSource(folder, "test")
    other = Vocabulary.parse("cat; dog")
    with pytest.raises(DataError, match=r"has 2 classes, but .* is annotated with 133"):
        TfdsEvaluationSource(folder, labels=other)
    with pytest.raises(DataError, match=r"no dataset_info\.json"):
        TfdsEvaluationSource(tmp_path)


def test_bad_records_are_skipped_on_request(tmp_path, capsys):
    root = tmp_path / "root"
    layouts.write_coco(root)
    path = root / "coco/val2017/000000000139.jpg"
    path.write_bytes(path.read_bytes()[:8])
    arguments = ["prepare", "coco_panoptic", "--root", str(root), "--tfds", str(tmp_path / "tfds")]
    assert cli.main(arguments) == 2
    assert "000000000139.jpg: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tfds/coco_panoptic/1.0.0").exists()
    assert cli.main([*arguments, "--skip_bad"]) == 1
    assert "skipped: " in capsys.readouterr().out
    source = TfdsEvaluationSource(tmp_path / "tfds/coco_panoptic/1.0.0")
    assert source.ids() == [285] and source[0].image_id == 285


def test_without_tensorflow(tmp_path):
    layouts.write_voc(tmp_path)
    program = "import sys; from fcclip_jax import cli; code = cli.main(); sys.exit(code or 'tensorflow' in sys.modules)"
    arguments = ["prepare", "pascal_voc_20", "--root", str(tmp_path), "--tfds", str(tmp_path / "t")]
    command = [sys.executable, "-c", program, *arguments]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    info = json.loads((tmp_path / "t/pascal_voc_20/1.0.0/dataset_info.json").read_text())
    assert [split["name"] for split in info["splits"]] == ["val", "train"] and info["fileFormat"] == "array_record"
