"""Areas and boxes of segments."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcclip_jax.prepare.segments import bounding_box, regions, segment_info

MAPS = arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 3))


@given(MAPS)
def test_regions_are_those_of_the_masks(ids):
    expected = {}
    for id_ in sorted(set(ids.ravel().tolist())):
        rows, columns = np.nonzero(ids == id_)
        box = [min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1]
        expected[id_] = {"area": len(rows), "bbox": box}
    assert regions(ids) == expected and list(regions(ids)) == list(expected)
    for id_, region in expected.items():
        assert bounding_box(ids == id_) == region["bbox"]
        assert segment_info(5, 2, ids == id_) == {"id": 5, "category_id": 2, "iscrowd": 0} | region
