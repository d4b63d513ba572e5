"""Equal to OpenCV to the bit: sums of what cv2.resize 4.11 and 5.0 (the same) make of pictures drawn by a formula."""

import hashlib

import numpy as np
import pytest

from fcclip_jax.prepare.opencv_resize import resize_linear, resize_nearest


def sum_of(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_linear():
    y, x, c = np.mgrid[:700, :933, :3]
    image = ((x * x // 7 + y * 5 + c * 91 + (x * y) // 13) % 256).astype(np.uint8)
    resized = resize_linear(image, 512, 682)
    assert resized[100, 200:203].tolist() == [[196, 84, 122], [61, 153, 203], [184, 140, 110]]
    assert sum_of(resized) == "4b6dbd80839d45032858692a589f426d75d3c7b1c7758570c56e92738feb2aed"
    np.testing.assert_array_equal(resize_linear(image[..., 0], 512, 682), resized[..., 0])


@pytest.mark.parametrize(
    ("height", "width", "new", "expected"),
    [
        (700, 933, (512, 682), "7449cf39359401d514951ee2ccc00e9f9408b19d311de6c2441deee6d6ebc5ad"),
        # Here the reciprocal of a reciprocal matters.
        (840, 1184, (512, 722), "ca7fafd81864435458e240d672507ef30898f28d8d646d1e64497f9ce7d24892"),
    ],
)
def test_nearest(height, width, new, expected):
    y, x = np.mgrid[:height, :width]
    labels = (x // 3 * 31 + y // 2 * 7) % 3000 if height == 700 else y * width + x
    assert sum_of(resize_nearest(labels.astype(np.int32), *new)) == expected


def test_halving_is_the_mean_of_four():
    image = np.array([[0, 10, 1, 1], [20, 30, 1, 0]], np.uint8)
    assert resize_linear(image, 1, 2).tolist() == [[15, 1]]
    assert resize_nearest(image, 1, 2).tolist() == [[0, 1]]
