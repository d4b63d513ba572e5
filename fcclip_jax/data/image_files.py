"""Image files: which ones a person means, and how any of them becomes uint8 RGB."""

import contextlib
import functools
import glob
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 20000 * 20000
"""The largest image that is read (its RGB array takes 1.2 GB). Pillow's own limit, 179 million, is lower."""

# A closed list: some of Pillow's other readers start external programs (EPS), and some take almost any bytes
# for an image (TGA). HEIF is Pillow's only where a plugin such as pillow-heif has been registered.
_FORMATS = "JPEG PNG WEBP TIFF GIF BMP DIB MPO AVIF JPEG2000 PPM ICO HEIF"
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_STRIP_PIXELS = 1 << 22


class ImageError(ValueError):
    """An image that cannot be read, or a name that stands for none. `path` and `reason` say which and why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        # A name that is not valid UTF-8 must not make printing the message fail.
        name = str(self.path).encode("utf-8", "backslashreplace").decode("utf-8")
        return f"{name}: {self.reason}"


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file as RGB, upright (EXIF orientation applied), colour profiles ignored.

    8-bit images of every kind become what Pillow's `convert("RGB")` makes of them, as in the reference. So
    transparency is dropped, not composited: the colour stored under a transparent pixel shows.
    Grey images of more than 8 bits are scaled, where the reference clips all above 255 to white: 16-bit
    values by 65535; 32-bit integers and floats by the first range that holds all values of [0, 1] (floats
    only), [0, 255], [0, 65535], smallest to largest; what is not finite becomes 0.
    Of an animation or a file with several pages the first picture is read.

    Raises:
        ImageError: there is no such file; it is a folder, empty, cut short, damaged or no image; it has more
            than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    _check_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from error
    with file:
        return _read_rgb(path, file)


def decode_image(data: bytes, name: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """As `read_image`, from the bytes of a file, which messages call `name`."""
    if not data:
        raise ImageError(name, "the file is empty")
    return _read_rgb(Path(name), io.BytesIO(data))


def upright_size(data: bytes, name: str | Path) -> tuple[int, int]:
    """Height and width that `decode_image` will give, from the head of the file alone. Raises ImageError for no
    image."""
    try:
        with _pillow_limit_raised(), _open(io.BytesIO(data)) as image:
            turned = _ORIENTATIONS.get(_orientation(image)) in _TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as in _decode
        raise ImageError(name, _unreadable(Path(name)) if data else "the file is empty") from error


def _read_rgb(path: Path, file: io.BufferedIOBase) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with _pillow_limit_raised(), contextlib.ExitStack() as files:
            return _to_rgb(_decode(path, file, files))
    except MemoryError as error:
        raise ImageError(path, "too large: not enough memory to hold it") from error


def _check_file(path: Path) -> None:
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ImageError(path, "no such file") from None
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from None
    if stat.S_ISDIR(info.st_mode):
        raise ImageError(path, "is a folder, not an image file")
    if not stat.S_ISREG(info.st_mode):
        raise ImageError(path, "is not a regular file")
    if info.st_size == 0:
        raise ImageError(path, "the file is empty")


def _unreadable(path: Path) -> str:
    if path.suffix.lower() in (".heic", ".heif"):
        return "HEIC images are not read: convert it to JPEG or PNG"
    known = "JPEG, PNG, WebP, TIFF, GIF, BMP, AVIF, JPEG 2000, PNM, ICO"
    return f"not an image, or damaged at its start, or of a kind that is not read (these are: {known})"


_limit_lock = threading.Lock()
_limit_users = 0
_limit_before: int | None = None


@contextlib.contextmanager
def _pillow_limit_raised() -> Iterator[None]:
    """Raises Pillow's process-wide limit to `MAX_PIXELS` while a read is under way, then restores it.

    Counted, so that threads may read at the same time. Only ever raised: a limit that somebody switched off
    stays off. It holds for the whole read because the TIFF reader checks again while it loads.
    """
    global _limit_users, _limit_before
    with _limit_lock:
        if _limit_users == 0:
            _limit_before = Image.MAX_IMAGE_PIXELS
            if _limit_before is not None:
                Image.MAX_IMAGE_PIXELS = max(_limit_before, MAX_PIXELS)
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before


def _open(file: io.BufferedIOBase) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS.split() if name in Image.OPEN])


def _decode(path: Path, file: io.BufferedIOBase, files: contextlib.ExitStack) -> Image.Image:
    """The upright image, its pixels loaded; what has to be closed after it goes to `files`."""
    try:
        image = files.enter_context(_open(file))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        image.load()
        method = _ORIENTATIONS.get(_orientation(image))
        return image if method is None else image.transpose(method)
    except UnidentifiedImageError as error:
        raise ImageError(path, _unreadable(path)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"over the limit of {MAX_PIXELS} pixels (20000 x 20000)"
        raise ImageError(path, f"too large: {limit} ({error})") from error
    except MemoryError:
        raise
    # On damaged files Pillow's readers raise a dozen kinds of error, SyntaxError among them.
    except Exception as error:
        raise ImageError(path, f"damaged or cut short ({str(error) or type(error).__name__})") from error


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # A damaged EXIF block spoils the orientation, not the picture.
        return None


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Converts in strips, so that no third copy of a large image is held."""
    # Pillow warns when it drops a palette's transparency: here that is intended.
    image.info.pop("transparency", None)
    convert = _strip_converter(image)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _strips(image):
        rgb[rows] = convert(strip)
    return rgb


def _strip_converter(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """The function that takes a strip of `image` to uint8 `[h,W,3]`, or `[h,W,1]` for deep grey."""
    if image.mode.startswith("I;16"):
        return lambda strip: _scale(np.asarray(strip), 0.0, 65535.0)
    if image.mode in ("I", "F"):
        low, high = _value_range(image)
        return lambda strip: _scale(np.asarray(strip), low, high)
    return lambda strip: np.asarray(strip.convert("RGB"))


def _value_range(image: Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low < 0:
        return low, high
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next(((0.0, scale) for scale in scales if high <= scale), (low, high))


def _scale(values: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "h W 1"]:
    """Takes [low, high] to [0, 255], rounding to nearest. float64 holds every 32-bit value exactly."""
    wide = np.where(np.isfinite(values), values, low).astype(np.float64)
    share = (wide - low) / (high - low if high > low else 1.0)
    return np.floor(share * 255 + 0.5).astype(np.uint8)[..., None]


def find_images(arguments: Sequence[str | Path]) -> list[Path]:
    """The image files that file names, folders and patterns stand for, each once, in the order given.

    A file is taken as it is, whatever its suffix. A folder gives the files directly inside it, a pattern
    (`*`, `?`, `[...]`, and `**` for any depth) the files that match it; of both, those with an image suffix,
    in alphabetical order, without hidden ones. `~` is the home folder.

    Raises:
        ImageError: an argument that is no file and no folder, or stands for no image; no argument at all.
    """
    if not arguments:
        raise ImageError("(no image)", "give at least one image file, folder or pattern")
    found: dict[str, Path] = {}
    for argument in arguments:
        for path in _expand(argument):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(argument: str | Path) -> list[Path]:
    path = Path(argument)
    if not _exists(path):
        path = Path(os.path.expanduser(argument))  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    if _exists(path):
        return _folder_images(path) if path.is_dir() else [path]
    if not glob.has_magic(str(path)):
        raise ImageError(argument, "no such file or folder")
    # Not Path.glob: it takes no absolute pattern.
    images = _only_images(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not images:
        raise ImageError(argument, "no image file matches this pattern")
    return images


def _folder_images(folder: Path) -> list[Path]:
    try:
        images = _only_images(folder.iterdir())
    except OSError as error:
        raise ImageError(folder, error.strerror or str(error)) from error
    if not images:
        raise ImageError(folder, "no image file in this folder (folders inside it are not searched)")
    return images


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _only_images(paths: Iterable[Path]) -> list[Path]:
    suffixes = _image_suffixes()
    return sorted(
        path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


@functools.cache
def _image_suffixes() -> frozenset[str]:
    formats = _FORMATS.split()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    # Without a plugin HEIC cannot be read, but leaving a phone's photos out in silence would be worse.
    return frozenset(known | {".heic", ".heif"})


def output_stems(paths: Sequence[str | Path]) -> list[str]:
    """One name a path, for its output files: the file's stem, made longer only where two would be the same.

    `photo.jpg` and `photo.png` give `photo_jpg` and `photo_png`; `a/x.jpg` and `b/x.jpg` give `a_x` and
    `b_x`; what is still the same (a path given twice) is numbered. No two differ in case alone, since not
    every disk tells case apart.
    """
    absolute = [Path(path).absolute() for path in paths]
    names = [path.stem for path in absolute]
    depth = [0] * len(names)
    for _ in range(1 + max((len(path.parts) for path in absolute), default=0)):
        for group in _same_names(names):
            if len({absolute[i].suffix.casefold() for i in group}) == len(group):
                for i in group:
                    names[i] += absolute[i].suffix.replace(".", "_")
                continue
            for i in group:
                depth[i] += 1
                if depth[i] < len(absolute[i].parts) - 1:
                    names[i] = f"{absolute[i].parts[-1 - depth[i]]}_{names[i]}"
    return _numbered(names)


def _same_names(names: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name.casefold(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _numbered(names: Sequence[str]) -> list[str]:
    reserved = {name.casefold() for name in names}
    taken: set[str] = set()
    unique = []
    for name in names:
        if name.casefold() in taken:
            choices = (f"{name}_{number}" for number in itertools.count(2))
            name = next(c for c in choices if c.casefold() not in taken and c.casefold() not in reserved)
        taken.add(name.casefold())
        unique.append(name)
    return unique
