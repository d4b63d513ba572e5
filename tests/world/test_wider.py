"""Wider pictures for tools/emoji/tower_sizes.py: larger, as full as before, things no larger."""

import numpy as np
import pytest

from tools.emoji.tower_sizes import enlarged, wider


@pytest.mark.parametrize("times, edge", [(1.0, 256), (1.5, 384), (2.0, 512), (3.0, 768)])
def test_wider(sprites, times, edge):
    few, many = wider(sprites, 0, 1.0), wider(sprites, 0, times)
    assert many.picture.shape == (edge, edge, 3) and many.rows.shape == (edge, edge)
    # Every piece has pixels, each its own number.
    sizes = np.bincount(many.rows.ravel(), minlength=len(many.pieces))
    assert len(sizes) == len(many.pieces) and sizes.min() > 0
    things = [size for size, piece in zip(sizes, many.pieces, strict=True) if piece.isthing]
    assert max(things) <= 128**2 * 1.3  # the longer side is 128 at most, turned and squeezed a little
    assert len(things) >= 2 * round(times) ** 2 // 2
    assert times == 1 or len(many.pieces) > len(few.pieces)


def test_enlarged_keeps_the_pieces(sprites):
    scene = wider(sprites, 1, 1.0)
    large = enlarged(scene, 512)
    assert large.pieces == scene.pieces
    np.testing.assert_array_equal(large.rows[::2, ::2], scene.rows)
