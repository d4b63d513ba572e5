"""Ids, colours and labels of annotation maps."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from fcclip_jax.data.annotation_maps import decode_ids, decode_labels, id_to_rgb, rgb_to_id, runs
from fcclip_jax.data.evaluation_record import look_up
from fcclip_jax.data.records import DataError

MAPS = arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 3))


def encoded(array, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


@given(arrays.arrays(np.int32, (3, 4), elements=st.integers(0, (1 << 24) - 1)))
def test_ids_and_colours_are_inverse(ids):
    np.testing.assert_array_equal(rgb_to_id(id_to_rgb(ids)), ids)
    np.testing.assert_array_equal(decode_ids(encoded(id_to_rgb(ids)), "x"), ids)
    red, green, blue = id_to_rgb(ids)[0, 0].tolist()
    assert red + 256 * green + 65536 * blue == ids[0, 0]


@given(MAPS)
def test_runs_are_the_map(map_):
    values, lengths = runs(map_)
    np.testing.assert_array_equal(np.repeat(values, lengths).reshape(map_.shape), map_)
    assert (values[1:] != values[:-1]).all() and lengths.min() > 0


@given(MAPS, st.lists(st.integers(-1, 9), min_size=1, max_size=4))
def test_look_up_is_a_dictionary(labels, table):
    table = np.array(table, np.int32)
    allowed = {value: cls for value, cls in enumerate(table.tolist()) if cls >= 0}
    strays = [value for value in labels.ravel().tolist() if value not in allowed]
    if not strays:
        expected = [allowed[value] for value in labels.ravel().tolist()]
        assert look_up(table, labels, "x").ravel().tolist() == expected
    elif allowed:
        with pytest.raises(DataError, match=rf"x: holds the label {strays[0]} \({len(strays)} pixels"):
            look_up(table, labels, "x")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_of_one_channel(kind, dtype):
    labels = np.array([[0, 255], [np.iinfo(dtype).max, 7]], dtype)
    found = decode_labels(encoded(labels, kind), "x")
    np.testing.assert_array_equal(found, labels)
    assert found.dtype.isnative


def test_labels_of_a_palette_and_of_32_bits():
    image = Image.fromarray(np.array([[0, 1, 200]], np.uint8))
    image.putpalette([9] * 768)  # all colours alike: the index counts
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert decode_labels(buffer.getvalue(), "x").tolist() == [[0, 1, 200]]
    assert decode_labels(encoded(np.array([[70000, 1]], np.int32), "TIFF"), "x").tolist() == [[70000, 1]]


@pytest.mark.parametrize("decode", [decode_ids, decode_labels])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"text", "no image, or damaged at its start"),
        (encoded(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))[:-900], "damaged or cut short"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "no image, or damaged"),  # JPEG changes ids
    ],
)
def test_damaged_maps(decode, data, message):
    with pytest.raises(DataError, match=f"^y.png: {message}"):
        decode(data, "y.png")


def test_maps_of_another_kind():
    with pytest.raises(DataError, match=r"y: is no panoptic map: those are RGB images, .* this has the mode L"):
        decode_ids(encoded(np.zeros((2, 2), np.uint8)), "y")
    with pytest.raises(DataError, match="y: is no label map: those have one channel, this image has the mode RGB"):
        decode_labels(encoded(np.zeros((2, 2, 3), np.uint8)), "y")
