import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

pytest.importorskip("hotcoco", reason="mask AP needs hotcoco, of the extra `evaluate`")
from fcclip_jax.evaluation.instance_files import rle_runs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 3), st.integers(1, 60_000)), min_size=1, max_size=12), st.booleans())
def test_runs_of_pycocotools_strings(lengths, ones_first):
    pixels = np.repeat(np.arange(len(lengths)) % 2, lengths)
    pixels = 1 - pixels if ones_first else pixels
    rle = coco_mask.encode(np.asfortranarray(pixels[:, None].astype(np.uint8)))
    expected = [0, *lengths] if ones_first else lengths
    assert rle_runs(rle["counts"]).tolist() == expected
    assert rle_runs(rle["counts"].decode("ascii")).tolist() == expected
    assert rle_runs(expected).tolist() == expected


@pytest.mark.parametrize("counts", ["", " ", "~", "P", "PPPPPPPP0", "é", ["a"], None])
def test_not_counts(counts):
    with pytest.raises((ValueError, TypeError, AttributeError)):
        rle_runs(counts)
