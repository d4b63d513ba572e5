"""The pictures: emoji sets fetched with npm's client, rendered, and kept as one small file a style."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fcclip_jax.world.names import STYLES, THINGS

EDGE = 128  # of a sprite, pixels: its longer side fills it
_RENDERED = 256
_COLUMNS = 16  # of a sheet


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """One package of Iconify's on npm: its version, npm's own fingerprint of it, and whose pictures it holds."""

    version: str
    integrity: str
    licence: str
    author: str

    def line(self, style: str) -> str:
        """Attribution, as NOTICE gives it."""
        return f"{style}: {self.author}, {self.licence} (npm package @iconify-json/{style} {self.version})"


SETS: dict[str, EmojiSet] = {
    "noto": EmojiSet(
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Google Inc",
    ),
    "noto-v1": EmojiSet(
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Google Inc",
    ),
    "twemoji": EmojiSet(
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter, Inc and other contributors",
    ),
    "fluent-emoji-flat": EmojiSet(
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Microsoft Corporation",
    ),
    "fluent-emoji": EmojiSet(
        "1.2.7",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT",
        "Microsoft Corporation",
    ),
    "emojione": EmojiSet(
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "Emoji One",
    ),
}


class SpriteError(ValueError):
    """Pictures that cannot be had: why, and what to do."""


class Sprites:
    """All pictures of some styles, upright, without their empty margins.

    `picture(style, thing)`: uint8 `[h,w,4]`, RGBA with colours premultiplied by alpha, the longer side EDGE pixels;
    `half(style, thing)`: the same at half size, for drawing it small.
    """

    def __init__(self, folder: str | PathLike, styles: tuple[str, ...] = STYLES):
        """Reads `folder`, which `prepare_sprites` has written. Raises SpriteError for one that is not."""
        self.styles = styles
        self._whole: dict[tuple[str, int], np.ndarray] = {}
        self._half: dict[tuple[str, int], np.ndarray] = {}
        for style in styles:
            for thing, sprite in enumerate(_read_sheet(_sheet_path(Path(folder), style))):
                picture = Image.fromarray(sprite).convert("RGBa")
                picture = picture.crop(picture.getbbox())
                half = picture.resize(((picture.width + 1) // 2, (picture.height + 1) // 2), Image.Resampling.BOX)
                self._whole[style, thing], self._half[style, thing] = _array(picture), _array(half)

    def picture(self, style: str, thing: int) -> UInt8[np.ndarray, "h w 4"]:
        return self._whole[style, thing]

    def half(self, style: str, thing: int) -> UInt8[np.ndarray, "h w 4"]:
        return self._half[style, thing]


def _array(picture: Image.Image) -> np.ndarray:
    # numpy does not know RGBa; the bytes are the same.
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, 4)


def _sheet_path(folder: Path, style: str) -> Path:
    return folder / f"{style}.png"


def _read_sheet(path: Path) -> UInt8[np.ndarray, "N E E 4"]:
    if not path.is_file():
        raise SpriteError(f"{path} is missing: `fcclip prepare emoji_scenes` fetches and renders the pictures")
    try:
        sheet = np.asarray(Image.open(path).convert("RGBA"))
    except OSError as error:
        raise SpriteError(f"{path} is damaged ({error}): delete it and prepare the scenes again") from None
    rows = -(-len(THINGS) // _COLUMNS)
    if sheet.shape != (rows * EDGE, _COLUMNS * EDGE, 4):
        raise SpriteError(f"{path} holds other pictures than this version draws: delete it and prepare them again")
    cells = sheet.reshape(rows, EDGE, _COLUMNS, EDGE, 4).transpose(0, 2, 1, 3, 4).reshape(-1, EDGE, EDGE, 4)
    return cells[: len(THINGS)]


def prepare_sprites(folder: str | PathLike, styles: tuple[str, ...] = STYLES) -> Path:
    """Fetches the emoji sets, renders all things, and writes `folder/STYLE.png` with the licences beside them.

    What is there already stays. Every set is checked against the fingerprint in `SETS` before anything of it is used.

    Raises SpriteError: npm is not installed or fetches nothing, a set is another one, or resvg_py is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for style in styles:
        path = _sheet_path(folder, style)
        if not path.is_file():
            sheet = render_sheet(_icons(fetch_set(style), style))
            aside = path.with_suffix(".partial")
            Image.fromarray(sheet).save(aside, format="PNG")
            aside.replace(path)
    lines = [SETS[style].line(style) for style in styles]
    (folder / "LICENCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def fetch_set(style: str) -> bytes:
    """The package of one style, as npm's client gives it: its registry, mirror and proxy settings hold here too."""
    npm = shutil.which("npm")
    if npm is None:
        raise SpriteError(
            "npm is not installed, and the emoji sets come through it: install Node.js (https://nodejs.org, or "
            "`apt-get install npm`) and try again"
        )
    wanted = SETS[style]
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", f"@iconify-json/{style}@{wanted.version}", "--silent", "--ignore-scripts"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        found = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise SpriteError(f"npm could not fetch @iconify-json/{style}: {lines[0] if lines else 'no reason given'}")
        data = found[0].read_bytes()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if integrity != wanted.integrity:
        raise SpriteError(f"@iconify-json/{style} {wanted.version} is not the file that it was: {integrity}")
    return data


def _icons(package: bytes, style: str) -> dict:
    try:
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            return json.load(archive.extractfile("package/icons.json"))
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise SpriteError(f"@iconify-json/{style} is no emoji set: {error}") from None


def render_sheet(icons: dict) -> UInt8[np.ndarray, "H W 4"]:
    """All things of one set (the content of its icons.json), in rows of 16 squares of EDGE pixels, in RGBA."""
    rows = -(-len(THINGS) // _COLUMNS)
    sheet = Image.new("RGBA", (_COLUMNS * EDGE, rows * EDGE))
    for index, thing in enumerate(THINGS):
        picture = _render(icons, thing.slug)
        picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        row, column = divmod(index, _COLUMNS)
        corner = (column * EDGE + (EDGE - picture.width) // 2, row * EDGE + (EDGE - picture.height) // 2)
        sheet.paste(picture, corner)
    return np.asarray(sheet)


def _render(icons: dict, slug: str) -> Image.Image:
    """The picture of one thing without its empty margins, at least EDGE pixels long."""
    try:
        import resvg_py
    except ImportError:
        raise SpriteError("resvg_py renders the pictures: pip install 'fcclip_jax[world]'") from None
    name = slug
    while name not in icons["icons"]:
        if name not in icons.get("aliases", {}):
            raise SpriteError(f"the emoji set {icons.get('prefix')} has no picture {slug}")
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    data = resvg_py.svg_to_bytes(svg_string=svg, width=_RENDERED, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())


def cache_folder() -> Path:
    """Where sprites are kept when no folder is given: beside the project's other caches."""
    root = os.environ.get("FCCLIP_CACHE") or Path.home() / ".cache" / "fcclip_jax"
    return Path(root) / "emoji"
