"""Whose results a folder holds, and which images it knows."""

import json
import subprocess
import sys

import pytest

from fcclip_jax.evaluation.image_records import ImageRecord
from fcclip_jax.evaluation.result_folder import FolderError, ResultFolder

IDENTITY = {"model": {"name": "a", "sha256": "1"}, "options": {"alpha": 0.5, "tasks": ["panoptic"]}}


@pytest.fixture
def folder(tmp_path):
    """A folder with records of two starts: image 3 was passed over first and counted then."""
    folder = ResultFolder(tmp_path / "out")
    folder.claim(IDENTITY)
    for start, records in (
        (1, [ImageRecord(0, "a", score=1.0), ImageRecord(3, "d", skipped="damaged")]),
        (2, [ImageRecord(3, "d", score=4.0), ImageRecord(1, "b", skipped="lost"), ImageRecord(0, "a", score=9.0)]),
    ):
        writer = folder.writer(start, 0)
        for record in records:
            writer.append(record)
        writer.close()
    yield folder
    folder.release()


def test_each_image_once(folder):
    known = folder.images()
    assert {index: (k.score, k.skipped) for index, k in known.items()} == {
        0: (1.0, None),
        1: (None, "lost"),
        3: (4.0, None),
    }
    assert folder.read(known[3]).image_id == "d"
    assert folder.start_number() == 3


def test_the_same_evaluation_may_go_on(folder):
    folder.release()
    again = ResultFolder(folder.path)
    again.claim(json.loads(json.dumps(IDENTITY)))
    assert len(again.images()) == 3
    again.release()


def test_another_one_may_not(folder):
    folder.release()
    other = IDENTITY | {"options": {"alpha": 0.25, "tasks": ["panoptic"], "beta": 1}}
    with pytest.raises(FolderError, match=r"another evaluation: options.alpha 0.5 \(now 0.25\), options.beta null"):
        ResultFolder(folder.path).claim(other)
    assert len(folder.images()) == 3


def test_a_folder_without_records_is_taken_over(tmp_path):
    first = ResultFolder(tmp_path)
    first.claim(IDENTITY)
    first.release()
    second = ResultFolder(tmp_path)
    second.claim(IDENTITY | {"model": {}})
    second.release()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"identity": 3}'])
def test_a_damaged_identity_is_no_identity(folder, content):
    folder.release()
    (folder.path / "evaluation.json").write_text(content, encoding="utf-8")
    with pytest.raises(FolderError, match=r"damaged|another evaluation"):
        ResultFolder(folder.path).claim(IDENTITY)
    (folder.path / "evaluation.json").unlink()
    with pytest.raises(FolderError, match=r"no evaluation\.json"):
        ResultFolder(folder.path).claim(IDENTITY)


def test_two_processes_do_not_claim_it_at_a_time(folder):
    program = (
        "import sys\n"
        "from fcclip_jax.evaluation.result_folder import ResultFolder\n"
        f"ResultFolder(sys.argv[1]).claim({IDENTITY!r})\n"
    )
    other = subprocess.run([sys.executable, "-c", program, str(folder.path)], capture_output=True, text=True)
    assert other.returncode == 1 and "another evaluation is running in" in other.stderr
