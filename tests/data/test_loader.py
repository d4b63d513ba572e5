"""One order of images and views, whoever loads them: threads, processes, after a stop; and bad records."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fcclip_jax.data.augment import LargeScaleJitter
from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.loader import TrainBatches, make_loader
from fcclip_jax.data.records import DataError
from fcclip_jax.data.sources import CocoPanopticSource
from fcclip_jax.data.targets import limit_segments, row_map
from fcclip_jax.vocabulary import Vocabulary

IMAGES = 10  # no multiple of the batch: batches straddle epochs
BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", images=IMAGES, size=(40, 56))


def open_folder(folder) -> CocoPanopticSource:
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    return CocoPanopticSource(folder / "images", folder / "panoptic", folder / "panoptic.json", vocabulary)


@pytest.fixture(scope="module")
def source(folder):
    return open_folder(folder)


def loader(source, **options):
    return make_loader(source, **({"batch_size": BATCH, "image_size": 32, "max_segments": 9, "seed": 5} | options))


def take(source, steps: int, **options) -> list[dict[str, np.ndarray]]:
    with loader(source, **options) as batches:
        return [{key: np.array(value) for key, value in next(batches).items()} for _ in range(steps)]


def assert_same(batches, expected) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


@pytest.fixture(scope="module")
def expected(source):
    return take(source, 8)


def test_shapes_and_types(expected):
    assert {key: (value.shape, str(value.dtype)) for key, value in expected[0].items()} == {
        "image": ((4, 32, 32, 3), "uint8"),
        "ids": ((4, 32, 32), "int16"),
        "labels": ((4, 9), "int32"),
        "valid": ((4, 9), "bool"),
        "image_id": ((4,), "int64"),
        "dropped_segments": ((4,), "int32"),
        "skipped_images": ((4,), "int32"),
    }


def test_a_batch_is_what_its_parts_make(source, expected):
    records = {source[i].image_id: source[i] for i in range(len(source))}
    for number, image_id in enumerate(np.concatenate([batch["image_id"] for batch in expected])):
        record = records[int(image_id)]
        image, panoptic = record.decode()
        picture, ids = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.int16)
        jitter = LargeScaleJitter(32)
        jitter.apply(image, row_map(record, np.asarray(panoptic)), jitter.draw(5, number), picture, ids)
        labels, valid, dropped = limit_segments(ids, record.classes, 9)
        batch, row = expected[number // BATCH], number % BATCH
        np.testing.assert_array_equal(batch["image"][row], picture)
        np.testing.assert_array_equal(batch["ids"][row], ids)
        np.testing.assert_array_equal(batch["labels"][row], labels)
        np.testing.assert_array_equal(batch["valid"][row], valid)
        assert batch["dropped_segments"][row] == dropped == 0
        assert batch["skipped_images"][row] == 0


def test_every_epoch_has_every_image_in_another_order(expected):
    stream = np.concatenate([batch["image_id"] for batch in expected])  # 32: three epochs and two
    epochs = [stream[start : start + IMAGES].tolist() for start in (0, IMAGES, 2 * IMAGES)]
    assert all(sorted(epoch) == list(range(1, IMAGES + 1)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_an_image_looks_different_in_each_epoch(expected):
    pictures = {}
    for batch in expected:
        for image_id, picture in zip(batch["image_id"], batch["image"], strict=True):
            pictures.setdefault(int(image_id), []).append(picture.tobytes())
    assert all(len(set(views)) == len(views) >= 3 for views in pictures.values())


def test_another_seed_is_another_stream(source, expected):
    other = take(source, 3, seed=6)
    assert [batch["image_id"].tolist() for batch in other] != [batch["image_id"].tolist() for batch in expected[:3]]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(source, expected, threads):
    assert_same(take(source, 8, threads=threads, buffered=3), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_training_processes_part_the_same_global_batch(source, expected, count):
    parts = [take(source, 4, process_index=index, process_count=count) for index in range(count)]
    assert parts[0][0]["image"].shape[0] == BATCH // count
    joined = [{key: np.concatenate([part[step][key] for part in parts]) for key in parts[0][0]} for step in range(4)]
    assert_same(joined, expected[:4])


def test_resumes_at_any_step(source, expected):
    for steps in (0, 1, 5):
        with loader(source) as first:
            for _ in range(steps):
                next(first)
            state = json.loads(json.dumps(first.get_state()))
        assert state["step"] == steps
        with loader(source, threads=2) as second:
            next(second)  # it may have been running before
            second.set_state(state)
            assert second.get_state() == state
            assert_same([next(second) for _ in range(3)], expected[steps : steps + 3])


def test_resumes_with_another_number_of_processes(source, expected):
    with loader(source) as first:
        next(first)
        state = first.get_state()
    with loader(source, process_index=1, process_count=2) as second:
        second.set_state(state)
        np.testing.assert_array_equal(next(second)["image"], expected[1]["image"][2:])


def test_workers_change_nothing(source, expected):
    """From a state on, and nothing is left in shared memory."""
    shared = Path("/dev/shm")
    before = set(shared.glob("psm_*"))
    with loader(source, workers=2) as batches:
        batches.set_state({"step": 3, "seed": 5, "batch_size": BATCH, "images": IMAGES})
        assert_same([next(batches) for _ in range(5)], expected[3:8])
        assert batches.get_state()["step"] == 8
    assert set(shared.glob("psm_*")) <= before


def test_worker_errors_arrive_as_they_are(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=4, size=(40, 56))
    source = open_folder(folder)
    (folder / "images" / "000000000002.png").write_bytes(b"")
    with loader(source, workers=1) as batches, pytest.raises(DataError, match=r"000000000002.png: the file is empty"):
        next(batches)


def test_travels_by_pickle(source, expected):
    batches = TrainBatches(source, LargeScaleJitter(32), BATCH, 9, 5)
    assert_same([pickle.loads(pickle.dumps(batches))[2]], expected[2:3])


def test_bad_records_stop_or_are_skipped_and_counted(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=IMAGES, size=(40, 56))
    source = open_folder(folder)
    good = take(source, 5)
    for bad in (3, 4, 10):
        (folder / "images" / f"{bad:012d}.png").write_bytes(b"")
    with loader(source) as batches:
        with pytest.raises(DataError, match=r"0000000000(03|04|10).png: the file is empty"):
            for _ in range(3):
                next(batches)
        assert batches.get_state()["step"] < 3  # the step that failed does not count
    skipping = take(source, 5, skip_bad=True)
    stand_in = {3: (5, 2), 4: (5, 1), 10: (1, 1)}  # the next in the source, around its end
    for batch, original in zip(skipping, good, strict=True):
        for row, image_id in enumerate(original["image_id"].tolist()):
            assert (batch["image_id"][row], batch["skipped_images"][row]) == stand_in.get(image_id, (image_id, 0))
            if image_id not in stand_in:
                np.testing.assert_array_equal(batch["image"][row], original["image"][row])
    assert sum(int((batch["skipped_images"] > 0).sum()) for batch in skipping) == 6  # three each epoch
    assert_same(take(source, 5, skip_bad=True, threads=2), skipping)


def test_nothing_good_is_given_up(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=3, size=(40, 56))
    source = open_folder(folder)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with (
        loader(source, skip_bad=True) as batches,
        pytest.raises(DataError, match="the 2 before it were bad too, so this is given up"),
    ):
        next(batches)


def test_a_map_that_contradicts_its_annotation_is_bad(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=2, size=(40, 56))
    content = json.loads((folder / "panoptic.json").read_text())
    content["annotations"][0]["segments_info"].pop()
    (folder / "panoptic.json").write_text(json.dumps(content))
    with loader(open_folder(folder)) as batches, pytest.raises(DataError, match=r"panoptic/000000000001.png: holds"):
        next(batches)
    (batch,) = take(open_folder(folder), 1, skip_bad=True)
    assert Counter(batch["image_id"].tolist()) == {2: 4}


def test_images_without_segments_and_with_too_many(tmp_path):
    folder = draw_dataset(tmp_path / "set", images=2, size=(40, 56))
    content = json.loads((folder / "panoptic.json").read_text())
    for segment in content["annotations"][0]["segments_info"]:
        segment["iscrowd"] = 1
    second = content["annotations"][1]["segments_info"]
    (folder / "panoptic.json").write_text(json.dumps(content))
    (batch,) = take(open_folder(folder), 1, max_segments=2, min_scale=1.0, max_scale=1.0)
    for row, image_id in enumerate(batch["image_id"].tolist()):
        if image_id == 1:
            assert not batch["valid"][row].any()
            assert (batch["ids"][row] == -1).all()
            assert batch["dropped_segments"][row] == 0
        else:
            assert batch["valid"][row].all()
            assert batch["ids"][row].max() == 1
            assert batch["dropped_segments"][row] == len(second) - 2 > 0
    assert set(batch["image_id"].tolist()) == {1, 2}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size 0 cannot be parted"),
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 cannot be parted evenly among 4 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index must be in 0 to 1, not 2"),
        ({"max_segments": 0}, "max_segments must be in 1 to 32767"),
        ({"seed": -1}, "seed must be in 0 to"),
        ({"threads": 0}, "threads 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
    ],
)
def test_numbers_that_do_not_fit(source, options, message):
    with pytest.raises(ValueError, match=message):
        loader(source, **options)


def test_a_state_of_another_run_is_refused(source):
    state = {"step": 3, "seed": 5, "batch_size": BATCH, "images": IMAGES}
    with loader(source) as batches:
        batches.set_state(state)
        for change in ({"seed": 6}, {"batch_size": 8}, {"images": 99}):
            (key,) = change
            with pytest.raises(ValueError, match=f"belongs to another run: {key} {change[key]} \\(here"):
                batches.set_state(state | change)
        with pytest.raises(ValueError, match="must be a whole number"):
            batches.set_state(state | {"step": -1})
        assert batches.get_state() == state
