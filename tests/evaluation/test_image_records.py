"""Records of images on disk: whole ones come back, torn and damaged ones are dropped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.evaluation.image_records import ImageRecord, RecordWriter, decode, encode, read_record, read_records


def record(index: int) -> ImageRecord:
    rng = np.random.default_rng(index)
    sparse = np.zeros((30, 30), np.int64)
    sparse[rng.integers(0, 30, 9), rng.integers(0, 30, 9)] = rng.integers(-5, 1 << 40, 9)
    states = {
        "semantic": {"confusion": sparse, "images": np.array(1)},
        "instance": {"stream": rng.integers(0, 256, 77, np.uint8), "scores": rng.random(3), "none": np.zeros((0, 10))},
        "panoptic": {},
    }
    predictions = {"panoptic": {"file_name": "ä.png", "segments_info": [{"id": 3, "area": 1.5}]}}
    return ImageRecord(index, f"image {index}", states, 12.5, None, predictions)


def same(a: ImageRecord, b: ImageRecord) -> None:
    assert (a.index, a.image_id, a.score, a.skipped, a.predictions) == (
        b.index,
        b.image_id,
        b.score,
        b.skipped,
        b.predictions,
    )
    assert list(a.states) == list(b.states)
    for task, state in a.states.items():
        assert list(state) == list(b.states[task])
        for name, array in state.items():
            assert array.dtype == b.states[task][name].dtype
            np.testing.assert_array_equal(array, b.states[task][name])


def write(path, records) -> None:
    writer = RecordWriter(path)
    for r in records:
        writer.append(r)
    writer.close()


def test_a_record_comes_back():
    same(decode(encode(record(4))), record(4))
    passed_over = ImageRecord(7, 12, skipped="x.jpg: damaged")
    same(decode(encode(passed_over)), passed_over)


def test_a_sparse_array_takes_little_room():
    """A confusion matrix of 847 classes, of which an image has a few, is 5.7 MB as it stands."""
    confusion = np.zeros((848, 848), np.int64)
    confusion[:10, :10] = np.random.default_rng(0).integers(1, 1 << 20, (10, 10))
    assert len(encode(ImageRecord(0, 0, {"semantic": {"confusion": confusion}}))) < 2000


def test_records_come_back_in_their_order_and_singly(tmp_path):
    write(tmp_path / "a", [record(k) for k in range(5)])
    found = list(read_records(tmp_path / "a"))
    assert len(found) == 5
    for k, (place, r) in enumerate(found):
        same(r, record(k))
        same(read_record(tmp_path / "a", place), record(k))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_wherever_a_file_is_cut_the_whole_records_before_it_come_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "a"
    write(path, [record(k) for k in range(3)])
    places = [place for place, _ in read_records(path)]
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    ends = [*places[1:], len(whole)]
    assert [r.index for _, r in read_records(path)] == [k for k in range(3) if ends[k] <= cut]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_byte_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "a"
    write(path, [record(k) for k in range(3)])
    places = [place for place, _ in read_records(path)]
    whole = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    found = list(read_records(path))
    assert len(found) == max(k for k, place in enumerate(places) if place <= where)
    for k, (_, r) in enumerate(found):
        same(r, record(k))


def test_a_file_is_never_written_over(tmp_path):
    write(tmp_path / "a", [record(1)])
    with pytest.raises(FileExistsError):
        RecordWriter(tmp_path / "a")
