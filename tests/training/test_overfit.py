"""Everything together learns: two real photos, from pixels to panoptic quality through the command."""

import json
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tests.own_process import finish, shared_folder
from tests.training.train_process import metrics, start_training


@pytest.mark.slow
def test_two_photos_are_learnt_by_heart(tmp_path, tmp_path_factory):
    samples = SHARED / "samples"
    if not samples.is_dir():
        pytest.skip("the two photos (../shared/samples) are not beside this checkout")
    paths = [
        f"{group}.{key}={path}"
        for group in ("data", "validation")
        for key, path in (
            ("images", samples),
            ("panoptic", samples / "panoptic"),
            ("annotations", samples / "panoptic.json"),
        )
    ]
    cache = shared_folder(tmp_path_factory, "cache")
    config = Path(__file__).with_name("two_photos.py")
    process, log = start_training(tmp_path / "run", cache, *paths, config=config, flags="")
    finish(process, log, timeout=3600)
    scores = [line["eval/PQ"] for line in metrics(tmp_path / "run") if "eval/PQ" in line]
    assert scores[-1] > 90, json.dumps(scores)
