import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcclip_jax.evaluation import png
from fcclip_jax.evaluation.png import BadSample, read_label_png, read_mask_png, read_panoptic_png, rgb_to_id


@pytest.fixture(params=["fast decoder", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(png, "_fast_decoder", lambda: None)
    else:
        pytest.importorskip("kornia_rs", reason="the fast decoder is of the extra `evaluate`")


def save(path, array: np.ndarray, **options):
    Image.fromarray(array).save(path, **options)
    return path


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_ids_are_r_256_g_65536_b(height, width, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    wide = rgb.astype(np.uint32)
    np.testing.assert_array_equal(rgb_to_id(rgb), wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2])
    np.testing.assert_array_equal(rgb_to_id(rgb[:, ::-1]), rgb_to_id(rgb)[:, ::-1])


def test_panoptic(tmp_path, decoder):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    blocks = np.kron(rgb, np.ones((9, 9, 1), np.uint8))
    for image in (rgb, blocks):
        np.testing.assert_array_equal(read_panoptic_png(save(tmp_path / "a.png", image)), rgb_to_id(image))
    alpha = np.dstack([rgb, rgb[..., 0]])
    np.testing.assert_array_equal(read_panoptic_png(save(tmp_path / "a.png", alpha)), rgb_to_id(rgb))


def test_panoptic_must_be_rgb(tmp_path, decoder):
    path = save(tmp_path / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(BadSample, match=r"a.png: a panoptic PNG is an RGB image .* mode L"):
        read_panoptic_png(path)


def test_labels(tmp_path):
    small = np.arange(12, dtype=np.uint8).reshape(3, 4)
    large = small.astype(np.uint16) * 5000
    for name, array in (("a.png", small), ("b.png", large), ("c.tif", large)):
        read = read_label_png(save(tmp_path / name, array))
        np.testing.assert_array_equal(read, array)
    palette = Image.fromarray(small)
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label_png(tmp_path / "p.png"), small)
    with pytest.raises(BadSample, match="one channel, this image has the mode RGB"):
        read_label_png(save(tmp_path / "rgb.png", np.zeros((3, 3, 3), np.uint8)))


def test_masks(tmp_path):
    mask = np.array([[0, 1], [255, 0]], np.uint8)
    np.testing.assert_array_equal(read_mask_png(save(tmp_path / "a.png", mask)), mask > 0)


@pytest.mark.parametrize("read", [read_panoptic_png, read_label_png, read_mask_png])
def test_missing_and_damaged(tmp_path, read, decoder):
    with pytest.raises(BadSample, match=r"gone.png: No such file"):
        read(tmp_path / "gone.png")
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (50, 50, 3)).astype(np.uint8))
    whole = path.read_bytes()
    for content in (b"", b"GIF89a?", whole[:20], whole[:60], whole[: len(whole) // 2], _wrong_filter()):
        path.write_bytes(content)
        with pytest.raises(BadSample, match=r"a.png: (damaged|not an image)") as caught:
            read(path)
        assert "\n" not in str(caught.value) and "object at" not in str(caught.value)


def _wrong_filter() -> bytes:
    """A PNG that is whole on the outside, with a row of an unknown filter type."""
    chunk = io.BytesIO()
    chunk.write(png.SIGNATURE)
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes([77] * 7))),
        (b"IEND", b""),
    ):
        chunk.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return chunk.getvalue()
