"""Every kind of image file becomes upright uint8 RGB, or one clear error; names become lists of files."""

import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from fcclip_jax.data import image_files
from fcclip_jax.data.image_files import ImageError, find_images, output_stems, read_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **options) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


# ------------------------------------------------------------------------------------------------ kinds


def test_rgb_is_read_as_it_is_and_is_writable(tmp_path):
    image = read_image(save(tmp_path / "x.png", PIXELS))
    np.testing.assert_array_equal(image, PIXELS)
    assert image.dtype == np.uint8
    image[0, 0] = 1


def test_grey_is_three_equal_channels(tmp_path):
    image = read_image(save(tmp_path / "x.png", PIXELS[..., 0]))
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)
    image = read_image(save(tmp_path / "x.png", Image.fromarray(bits).convert("1")))
    np.testing.assert_array_equal(image, np.repeat(bits[..., None], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palette_gives_its_colours_and_no_warning_about_transparency(tmp_path, transparency):
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(save(tmp_path / "x.png", palette, **options))
    np.testing.assert_array_equal(image, [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])


def test_alpha_is_dropped_not_composited(tmp_path):
    alpha = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
    image = read_image(save(tmp_path / "x.png", np.concatenate([PIXELS, alpha], axis=2)))
    np.testing.assert_array_equal(image, PIXELS)
    grey = Image.merge("LA", (Image.fromarray(PIXELS[..., 0]), Image.fromarray(alpha[..., 0])))
    image = read_image(save(tmp_path / "y.png", grey))
    np.testing.assert_array_equal(image[..., 1], PIXELS[..., 0])


def test_cmyk_is_converted_without_a_profile(tmp_path):
    # Pillow: R = (255 - C)(255 - K) / 255. No ink is white, full black ink is black, full cyan has no red.
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    image = read_image(save(tmp_path / "x.tif", Image.fromarray(inks, "CMYK")))
    np.testing.assert_array_equal(image, [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]])


def test_cmyk_jpeg_is_what_pillow_makes_of_it(tmp_path):
    path = save(tmp_path / "x.jpg", Image.fromarray(PIXELS).convert("CMYK"))
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    # 65535 / 255 = 257; 32768 / 257 = 127.502.
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    image = read_image(save(tmp_path / f"x{suffix}", values))
    np.testing.assert_array_equal(image[0], np.repeat([[0], [0], [1], [1], [128], [255]], 3, axis=1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),  # at most 1: a fraction of white; 127.5 rounds up
        ([0.0, 127.4, 255.0], [0, 127, 255]),  # at most 255: 8-bit values
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),  # at most 65535: 16-bit values
        ([0.0, 1e6, 2e6], [0, 128, 255]),  # beyond: from smallest to largest
        ([-1.0, 0.0, 1.0], [0, 128, 255]),  # negative: from smallest to largest
        ([float("nan"), 1.0, float("inf")], [0, 255, 0]),  # what is not finite is black
        ([7e8, 7e8, 7e8], [0, 0, 0]),  # nothing to tell apart
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_float_tiff_is_scaled_by_the_range_it_needs(tmp_path, values, expected):
    image = read_image(save(tmp_path / "x.tif", np.array([values], np.float32)))
    np.testing.assert_array_equal(image[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 255], [0, 1, 255]), ([0, 257, 65535], [0, 1, 255]), ([-10, 0, 10], [0, 128, 255])],
)
def test_32_bit_integers_are_scaled_by_the_range_they_need(tmp_path, values, expected):
    image = read_image(save(tmp_path / "x.tif", np.array([values], np.int32)))
    np.testing.assert_array_equal(image[0, :, 0], expected)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_several_pictures_the_first_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), color) for color in ("white", "black", "black")]
    path = save(tmp_path / f"x{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert len(list(ImageSequence.Iterator(image))) > 1
    np.testing.assert_array_equal(read_image(path), np.full((4, 6, 3), 255))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".tif"])
def test_common_formats_equal_pillow_s_own_conversion(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", PIXELS)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16", "F"])
def test_strips_do_not_show(tmp_path, monkeypatch, mode):
    plain = {"I;16": PIXELS[..., 0].astype(np.uint16) * 200, "F": PIXELS[..., 0] / np.float32(255)}
    image = Image.fromarray(plain[mode]) if mode in plain else Image.fromarray(PIXELS).convert(mode)
    path = save(tmp_path / "x.tif", image)
    whole = read_image(path)
    monkeypatch.setattr(image_files, "_STRIP_PIXELS", 11)
    np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),  # stored lying on its left side: turn clockwise
        (7, lambda x: np.rot90(x.swapaxes(0, 1), 2)),
        (8, np.rot90),
        (9, lambda x: x),  # undefined
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, upright, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x{suffix}", PIXELS, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright(PIXELS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_stop_the_reading(tmp_path):
    path = save(tmp_path / "x.png", PIXELS, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_one_pixel(tmp_path, suffix):
    assert read_image(save(tmp_path / f"x{suffix}", np.zeros((1, 1, 3), np.uint8))).tolist() == [[[0, 0, 0]]]


def test_a_photo_from_a_camera():
    assert read_image(Path(__file__).parents[1] / "golden" / "coffee.jpg").shape == (400, 600, 3)


# ----------------------------------------------------------------------------------------------- errors


def test_missing_folder_and_empty(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.jpg: no such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "empty.png" / "x.png")
    with pytest.raises(ImageError, match="no such file"):
        read_image("x\0y")
    with pytest.raises(ImageError, match="name too long"):
        read_image("x" * 1000)


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        # Pillow would start Ghostscript on these.
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        bytes(100),
    ],
)
def test_what_is_no_image(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.jpg: not an image, or damaged at its start"):
        read_image(path)


def test_heic_says_what_to_do(tmp_path):
    path = tmp_path / "x.HEIC"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(50))
    with pytest.raises(ImageError, match="convert it to JPEG"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".tif", ".bmp", ".jp2", ".ppm"])
def test_truncated(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=rf"x\{suffix}: (damaged|not an image)"):
        read_image(path)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, bytes]:
    folder, image = tmp_path_factory.mktemp("samples"), Image.fromarray(PIXELS)
    names = ["jpg", "png", "webp", "gif", "tif", "bmp", "jp2", "ppm", "ico"]
    return {name: save(folder / f"x.{name}", image).read_bytes() for name in names}


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_an_image_or_one_kind_of_error(samples, tmp_path, data):
    content = bytearray(samples[data.draw(st.sampled_from(sorted(samples)))])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata and of large sizes
        try:
            image = read_image(path)
        except ImageError as error:
            assert str(path) in str(error)
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def png_of_size(width: int, height: int) -> bytes:
    """A valid start of a 1-bit PNG that claims to have this size."""

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20001, 20000), (2**31 - 1, 2**31 - 1)])
def test_too_large_is_refused_before_decoding(tmp_path, width, height):
    path = tmp_path / "x.png"
    path.write_bytes(png_of_size(width, height))
    with pytest.raises(ImageError, match=r"too large: over the limit of 400000000"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("limit", [4, None])
def test_pillow_s_limit_is_lifted_only_while_reading(tmp_path, monkeypatch, suffix, limit):
    path = save(tmp_path / f"x{suffix}", PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit:
        with pytest.raises(Image.DecompressionBombError), Image.open(path) as image:
            image.load()
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError):
        read_image(tmp_path / "missing")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_share_the_lifted_limit(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    images = []
    threads = [threading.Thread(target=lambda: images.extend(read_image(path) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 80
    assert Image.MAX_IMAGE_PIXELS == 4


@pytest.mark.slow
def test_the_largest_image(tmp_path):
    """About 5 s and 3 GB."""
    path = save(tmp_path / "x.png", Image.new("L", (20000, 20000), 90), compress_level=1)
    image = read_image(path)
    assert image.shape == (20000, 20000, 3)
    assert image.min() == image.max() == 90


def test_the_error_travels_between_processes_and_prints_anywhere():
    error = pickle.loads(pickle.dumps(ImageError(Path("a\udcff.jpg"), "no such file")))
    assert error.path == Path("a\udcff.jpg")
    assert str(error).encode("utf-8") == rb"a\udcff.jpg: no such file"


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ["b.jpg", "a.PNG", "c.webp", "notes.txt", ".hidden.jpg", "sub/d.jpg", "sub/deep/e.tif"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str | Path) -> list[str]:
    return [path.as_posix() for path in find_images(arguments)]


def test_a_folder_gives_its_own_images_in_order(folder):
    assert names(".") == ["a.PNG", "b.jpg", "c.webp"]
    assert names(folder) == [f"{folder.as_posix()}/{name}" for name in ("a.PNG", "b.jpg", "c.webp")]


def test_patterns(folder):
    assert names("*.jpg") == ["b.jpg"]
    assert names("*") == ["a.PNG", "b.jpg", "c.webp"]
    assert names("sub/*.jpg") == ["sub/d.jpg"]
    assert names("[ab].*") == ["a.PNG", "b.jpg"]
    assert names("**/*.tif") == ["sub/deep/e.tif"]
    assert names(f"{folder}/sub/?.jpg") == [f"{folder.as_posix()}/sub/d.jpg"]


def test_a_file_is_taken_whatever_its_suffix_and_even_with_pattern_signs(folder):
    (folder / "x[1].jpg").touch()
    assert names("notes.txt", "x[1].jpg") == ["notes.txt", "x[1].jpg"]


def test_each_image_once_in_the_order_given(folder):
    (folder / "link.jpg").symlink_to(folder / "b.jpg")
    assert names("c.webp", ".", "sub/../b.jpg", "*.jpg", "sub") == ["c.webp", "a.PNG", "b.jpg", "sub/d.jpg"]


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names("~/sub/*.jpg") == [f"{folder.as_posix()}/sub/d.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one image"),
        (["nothing.jpg"], r"nothing\.jpg: no such file or folder"),
        (["b.jpg", "*.bmp"], r"\*\.bmp: no image file matches"),
        (["bare"], "bare: no image file in this folder"),
        (["x" * 1000], "no such file or folder"),
        (["~nobody-of-this-name/x.jpg"], "no such file or folder"),
    ],
)
def test_names_that_stand_for_nothing(folder, arguments, message):
    (folder / "bare").mkdir()
    with pytest.raises(ImageError, match=message):
        find_images(arguments)


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["photo.jpg", "photo.png", "other.png"], ["photo_jpg", "photo_png", "other"]),
        (["a/x.jpg", "b/x.jpg"], ["a_x", "b_x"]),
        (["p/a/x.jpg", "q/a/x.jpg"], ["p_a_x", "q_a_x"]),
        (["a/x.jpg", "a/x.png", "b/x.jpg"], ["a_x_jpg", "a_x_png", "b_x"]),
        (["A.jpg", "d/a.jpg"], None),
        (["a.jpg", "a.jpg", "a.jpg"], None),
        (["photo", "photo.jpg"], ["photo", "photo_jpg"]),
        ([], []),
    ],
)
def test_output_stems(paths, stems):
    found = output_stems(paths)
    assert len({stem.casefold() for stem in found}) == len(paths)
    assert stems is None or found == stems


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a/", "b/", "a/b/", "A/"]),
            st.sampled_from(["x", "X", "x_jpg", "a_x", "x_2", "b_x", "a_b_x"]),
            st.sampled_from(["", ".jpg", ".png", ".JPG"]),
        ).map("".join),
        max_size=12,
    )
)
def test_output_stems_are_unique_file_names(paths):
    stems = output_stems(paths)
    assert len({stem.casefold() for stem in stems}) == len(paths)
    assert stems == output_stems([Path(path) for path in paths])
    for path, stem in zip(paths, stems, strict=True):
        assert "/" not in stem and Path(path).stem in stem
