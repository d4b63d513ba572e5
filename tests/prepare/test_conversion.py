"""Running conversions: what is done is kept, whatever ended the run before."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data.records import DataError
from fcclip_jax.prepare.conversion import Conversion, Job, copy_file, run, write_aside, write_image
from tests import benchmark_layouts as layouts

ROOT = Path(__file__).parents[2]


def convert(path: Path, number: int, bad: Path) -> dict:
    if bad.exists() and str(number) in bad.read_text().split():
        raise DataError(path, f"number {number} is bad")
    write_image(path, np.full((2, 3), number, np.uint8))
    return {"number": number}


def make_job(folder: Path, count: int = 6, bad: str = "") -> Job:
    folder.mkdir(exist_ok=True)
    (folder / "bad").write_text(bad)
    conversions = []
    for k in range(count):
        path = folder / f"made/{k}.png"
        conversions.append(Conversion(str(k), (path,), partial(convert, path, k, folder / "bad")))
    return Job("numbers", conversions, folder / "all.json", lambda notes: {"numbers": [n["number"] for n in notes]})


def times(folder: Path) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "made").glob("*")}


def summary(folder: Path) -> list[int]:
    return json.loads((folder / "all.json").read_text())["numbers"]


def test_what_is_done_is_not_done_again(tmp_path):
    first = run(make_job(tmp_path))
    assert (first.made, first.kept, first.bad) == (6, 0, [])
    before = times(tmp_path)
    again = run(make_job(tmp_path))
    assert (again.made, again.kept) == (0, 6) and times(tmp_path) == before
    assert summary(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "bad", "made"]


def test_after_a_bad_one_the_rest_is_kept(tmp_path):
    with pytest.raises(DataError, match="number 3 is bad"):
        run(make_job(tmp_path, bad="3"))
    assert not (tmp_path / "all.json").exists() and len(times(tmp_path)) == 3
    before = times(tmp_path)
    outcome = run(make_job(tmp_path))
    assert (outcome.made, outcome.kept) == (3, 3) and before.items() <= times(tmp_path).items()
    assert summary(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_skipped_ones_are_left_out_and_tried_again(tmp_path):
    outcome = run(make_job(tmp_path, bad="1 4"), skip_bad=True)
    assert outcome.made == 4 and [message[-15:] for message in outcome.bad] == ["number 1 is bad", "number 4 is bad"]
    assert summary(tmp_path) == [0, 2, 3, 5]
    before = times(tmp_path)
    outcome = run(make_job(tmp_path), skip_bad=True)
    assert (outcome.made, outcome.kept) == (2, 4) and before.items() <= times(tmp_path).items()
    assert summary(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_a_journal_that_was_cut_off_costs_one_image(tmp_path):
    with pytest.raises(DataError):
        run(make_job(tmp_path, bad="5"))
    journal = tmp_path / ".all.json.journal"
    journal.write_text(journal.read_text()[:-4])
    outcome = run(make_job(tmp_path))
    assert (outcome.made, outcome.kept) == (2, 4) and summary(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_a_file_that_was_deleted_is_made_again(tmp_path):
    run(make_job(tmp_path))
    (tmp_path / "made/2.png").unlink()
    run(make_job(tmp_path))
    assert len(times(tmp_path)) == 6 and summary(tmp_path) == [0, 1, 2, 3, 4, 5]


def test_workers_change_nothing(tmp_path):
    with pytest.raises(DataError, match="number 9 is bad"):
        run(make_job(tmp_path / "a", count=20, bad="9"), workers=2)
    run(make_job(tmp_path / "a", count=20), workers=1)
    run(make_job(tmp_path / "b", count=20), workers=1)
    assert (tmp_path / "a/all.json").read_bytes() == (tmp_path / "b/all.json").read_bytes()
    for name in times(tmp_path / "b"):
        assert (tmp_path / "a/made" / name).read_bytes() == (tmp_path / "b/made" / name).read_bytes()


def die(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told(tmp_path):
    job = Job("deaths", [Conversion(str(k), (tmp_path / f"{k}",), partial(die, tmp_path)) for k in range(3)])
    with pytest.raises(OSError, match="a worker process died"):
        run(job, workers=2)


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("old")

    def fail(aside):
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_aside(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(DataError, match="no such file"):
        copy_file(tmp_path / "nowhere", path)
    assert path.read_text() == "old"


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fcclip_jax.cli", "prepare", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_goes_on_where_it_stood(tmp_path):
    """`kill -9` in the middle of the panoptic maps: what is there is whole, and is kept."""
    base = tmp_path / "ADEChallengeData2016"
    layouts.write_ade(tmp_path)
    for folder, ending in (("images", ".jpg"), ("annotations", ".png"), ("annotations_instance", ".png")):
        source = base / folder / f"validation/ADE_val_00000001{ending}"
        for k in range(3, 300):
            os.link(source, source.with_name(f"ADE_val_{k:08d}{ending}"))
    arguments = "ade20k_150", "--root", tmp_path, "--split", "val", "--workers", "1"
    made = base / "ade20k_panoptic_val"
    process = start(*arguments)
    try:
        deadline = time.monotonic() + 60
        while len(list(made.glob("*.png"))) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in made.glob("*.png")}
    assert 20 <= len(before) < 299 and not made.with_suffix(".json").exists()
    for name in before:
        Image.open(made / name).load()
    process = start(*arguments)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "ADE20K semantic, validation: 0 made, 299 there already" in out
    kept = int(out.partition("ADE20K panoptic, validation: ")[2].split(" made, ")[1].split()[0])
    # One map may have been renamed without its line in the journal.
    assert len(before) - 1 <= kept <= len(before)
    after = {path.name: path.stat().st_mtime_ns for path in made.glob("*.png")}
    assert len(after) == 299 and sum(after[name] == before[name] for name in before) == kept
    content = json.loads(made.with_suffix(".json").read_text())
    assert [image["id"] for image in content["images"]] == [f"ADE_val_{k:08d}" for k in range(1, 300)]
    segments = {json.dumps(a["segments_info"]) for a in content["annotations"][2:]}
    assert segments == {json.dumps(content["annotations"][0]["segments_info"])}
    assert not list(base.rglob("*.partial")) and not list(base.glob(".*"))
