"""The loader of evaluation: the reference's arrays to the bit, each image once, from any place on."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.data import buckets
from fcclip_jax.data.evaluation_loader import make_evaluation_loader
from fcclip_jax.data.own_folder import open_folder
from fcclip_jax.data.records import DataError
from fcclip_jax.data.transforms import normalize, normalize_and_pad, pad_to_multiple, resize_shortest_edge
from fcclip_jax.vocabulary import Vocabulary
from tests import benchmark_layouts as layouts

COUNT = 11
SIZES = {"min_size": 64, "max_size": 100}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k in range(COUNT):
        layouts.photo(folder / f"images/{k:02d}.jpg", (30 + 3 * k, 50), seed=k)
        layouts.picture(folder / f"maps/{k:02d}.png", np.full((30 + 3 * k, 50), k % 2, np.uint8))
    return open_folder(folder / "images", Vocabulary.parse("cat; dog"), semantic=folder / "maps")


def indices(loader):
    with loader:
        return [item.index for item in loader]


def test_what_is_handed_on(source):
    with make_evaluation_loader(source, **SIZES) as loader:
        items = list(loader)
    assert [item.index for item in items] == list(range(COUNT)) and len(loader) == COUNT
    for item in items:
        record = source[item.index]
        assert item.record.image_id == record.image_id and item.error is None
        np.testing.assert_array_equal(item.image, record.decode_image())
        resized = resize_shortest_edge(record.decode_image(), 64, 100)
        assert item.size == resized.shape[:2]
        np.testing.assert_array_equal(item.padded, pad_to_multiple(normalize(resized)))
        assert item.padded.dtype == np.float32 and item.padded.shape[0] % 32 == item.padded.shape[1] % 32 == 0
        assert (item.record.semantic() == item.index % 2).all()


def test_a_few_shapes_or_the_photo_alone(source):
    with make_evaluation_loader(source, bucketed=True, **SIZES) as loader:
        for item in loader:
            resized = resize_shortest_edge(item.image, 64, 100)
            shape = buckets.bucket(*item.size, 64, 100)
            np.testing.assert_array_equal(item.padded, buckets.fill(normalize(resized), shape))
    with make_evaluation_loader(source, decode_only=True) as loader:
        items = list(loader)
    assert [item.index for item in items] == list(range(COUNT)) and all(item.padded is None for item in items)
    np.testing.assert_array_equal(items[3].image, source[3].decode_image())


def test_the_arrays_of_the_original(oracle):
    """Photo 142238 at a shorter edge of 256, as detectron2 resized it."""
    photos = oracle.parent / "samples"
    vocabulary = Vocabulary.builtin("coco_panoptic")
    source = open_folder(photos, vocabulary, panoptic=photos / "panoptic", annotations=photos / "panoptic.json")
    with np.load(oracle / "e2e_ade_142238_s256.npz") as stored:
        image, padded = stored["image_chw_uint8"], stored["padded_hw"]
    with make_evaluation_loader(source, min_size=256, indices=[source.ids().index(142238)]) as loader:
        item = next(loader)
    np.testing.assert_array_equal(resize_shortest_edge(item.image, 256).transpose(2, 0, 1), image)
    height, width = item.size
    np.testing.assert_array_equal(
        item.padded[:height, :width].transpose(2, 0, 1), normalize(image.transpose(1, 2, 0)).transpose(2, 0, 1)
    )
    assert (
        item.padded.shape[:2] == tuple(padded) and not item.padded[height:].any() and not item.padded[:, width:].any()
    )


def test_normalize_and_pad_is_both_in_one():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (32, 64), (33, 95), (7, 32)):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        np.testing.assert_array_equal(normalize_and_pad(image), pad_to_multiple(normalize(image)))
        turned = image.transpose(1, 0, 2)  # not in one piece
        np.testing.assert_array_equal(normalize_and_pad(turned, 8), pad_to_multiple(normalize(turned), 8))
    np.testing.assert_array_equal(normalize(image[0]), normalize(image)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_processes_share_the_images(source, count):
    shares = [
        indices(make_evaluation_loader(source, process_index=k, process_count=count, **SIZES)) for k in range(count)
    ]
    assert sorted(index for share in shares for index in share) == list(range(COUNT))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_what_is_left(source):
    chosen = [9, 2, 4, 7]
    assert indices(make_evaluation_loader(source, indices=chosen, **SIZES)) == chosen
    assert indices(make_evaluation_loader(source, indices=chosen, process_index=1, process_count=2, **SIZES)) == [2, 7]
    assert indices(make_evaluation_loader(source, indices=[], **SIZES)) == []


def test_it_goes_on_from_a_saved_place(source):
    with make_evaluation_loader(source, threads=3, **SIZES) as loader:
        first = [next(loader).index for _ in range(4)]
        state = json.loads(json.dumps(loader.get_state()))
    other = make_evaluation_loader(source, threads=1, buffered=1, **SIZES)
    other.set_state(state)
    assert first + indices(other) == list(range(COUNT))
    share = make_evaluation_loader(source, process_index=0, process_count=2, **SIZES)
    with pytest.raises(ValueError, match="not of a share of 6 images"):
        share.set_state(state)


def test_a_bad_image_is_raised_or_handed_on(tmp_path):
    layouts.photo(tmp_path / "images/a.jpg")
    for name in "abc":
        layouts.picture(tmp_path / f"maps/{name}.png", np.zeros((40, 60), np.uint8))
    layouts.photo(tmp_path / "images/c.jpg")
    (tmp_path / "images/b.jpg").write_bytes(b"no image")
    broken = open_folder(tmp_path / "images", Vocabulary.parse("cat"), semantic=tmp_path / "maps")
    with make_evaluation_loader(broken, **SIZES) as loader:
        assert next(loader).index == 0
        for _ in range(2):  # it stays where it is
            with pytest.raises(DataError, match=r"b\.jpg: not an image"):
                next(loader)
    with make_evaluation_loader(broken, skip_bad=True, **SIZES) as loader:
        items = list(loader)
    assert [item.error is None for item in items] == [True, False, True]
    assert items[1].index == 1 and items[1].image is None and "b.jpg" in str(items[1].error)


def test_threads_end_with_it(source):
    before = set(threading.enumerate())
    loader = make_evaluation_loader(source, threads=4, **SIZES)
    next(loader)
    assert set(threading.enumerate()) != before
    loader.close()
    assert next(loader).index == 1  # it starts them again
    loader.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"process_index": 2, "process_count": 2}, "process_index must be in 0 to 1"),
        ({"threads": 0}, "both must be at least 1"),
        ({"min_size": 0}, "both must be at least 1"),
        ({"indices": [0, 11]}, "there is no image 11: the source has 11"),
    ],
)
def test_numbers_that_do_not_fit(source, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_evaluation_loader(source, **{**SIZES, **wrong})


def test_a_one_pixel_image(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((1, 1, 3), 9, np.uint8)).save(tmp_path / "images/x.png")
    layouts.picture(tmp_path / "maps/x.png", np.zeros((1, 1), np.uint8))
    source = open_folder(tmp_path / "images", Vocabulary.parse("cat"), semantic=tmp_path / "maps")
    with make_evaluation_loader(source, **SIZES) as loader:
        assert next(loader).padded.shape == (64, 64, 3)
