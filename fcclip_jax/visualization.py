"""Results as pictures: translucent masks with outlines and names, and COCO's panoptic colours."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from fcclip_jax.structures import Segment

_MAX_ID = 256**3 - 1
_STRIP_PIXELS = 1 << 20
_LAYOUT_CELLS = 320
_GOLDEN_TURN = (3 - math.sqrt(5)) / 2

# Names: with their score or without, at which part of the full size; in this order.
_VARIANTS = ((True, 1.0), (True, 0.8), (False, 1.0), (False, 0.8), (False, 0.65))
_SMALLEST_SIZE = 8
_LONGEST_NAME = 32
_LEAST_SHARE = 0.5
_MOST_PLACES = 1500
# What Linux, macOS and Windows bring for scripts other than Latin.
_WIDE_FONTS = (
    "DejaVuSans.ttf|NotoSansCJK-Regular.ttc|NotoSans-Regular.ttf|wqy-microhei.ttc|Arial Unicode.ttf|"
    "PingFang.ttc|Hiragino Sans GB.ttc|arial.ttf|msyh.ttc|YuGothM.ttc|malgun.ttf|Nirmala.ttf"
)


@dataclasses.dataclass(frozen=True)
class _Region:
    """What is drawn as one: `key` is its value in the map, `kind` chooses its preferred colour."""

    key: int
    kind: int
    name: str
    note: str
    vivid: bool


def draw_panoptic(
    image: UInt8[np.ndarray, "H W 3"],
    panoptic: Int32[np.ndarray, "H W"],
    segments: Sequence[Segment],
    *,
    alpha: float = 0.5,
    labels: bool = True,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image under translucent segments, each with an outline, its name and its score.

    A class has one preferred colour, the same in every picture, vivid for things and muted for stuff; a
    segment leaves it where a neighbour or another segment already has one like it. Pixels of no listed
    segment stay as they are. A name is left out where its segment is too small to carry it. Works in strips:
    beyond the result it takes memory for about a million pixels.

    Args:
        alpha: opacity of the fill, 0 to 1.
        labels: write names and scores.

    Raises:
        ValueError: image and map do not fit together; ids outside 1 to 16777215 or given twice; alpha outside
            0 to 1.
    """
    ids = [segment.id for segment in segments]
    if len(set(ids)) < len(ids) or not all(1 <= i <= _MAX_ID for i in ids):
        raise ValueError(f"segment ids must differ and lie in 1 to {_MAX_ID}: {sorted(ids)}")
    notes = [f"{s.score:.0%}" if math.isfinite(s.score) else "" for s in segments]
    regions = [_Region(s.id, s.category_id, s.name, note, s.isthing) for s, note in zip(segments, notes, strict=True)]
    return _draw(image, panoptic, regions, alpha, labels)


def draw_semantic(
    image: UInt8[np.ndarray, "H W 3"],
    semantic: Integer[np.ndarray, "H W"],
    names: Sequence[str],
    *,
    alpha: float = 0.5,
    labels: bool = True,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image under translucent classes: `semantic` holds rows of `names`, other values stay unpainted.

    Raises:
        ValueError: image and map do not fit together, or alpha is outside 0 to 1.
    """
    regions = [_Region(k, k, name, "", True) for k, name in enumerate(names)]
    return _draw(image, semantic, regions, alpha, labels)


def panoptic_to_rgb(panoptic: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """COCO's panoptic PNG: id = R + 256 G + 65536 B.

    Raises:
        ValueError: an id outside 0 to 16777215.
    """
    if panoptic.size and not (panoptic.min() >= 0 and panoptic.max() <= _MAX_ID):
        found = f"{panoptic.min()} to {panoptic.max()}"
        raise ValueError(f"panoptic ids must lie in 0 to {_MAX_ID}, these go from {found}")
    height, width = panoptic.shape
    quads = np.ascontiguousarray(panoptic, dtype="<u4").view(np.uint8).reshape(height, width, 4)
    return quads[..., :3].copy()


def rgb_to_panoptic(rgb: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
    """The inverse of `panoptic_to_rgb`."""
    quads = np.zeros((*rgb.shape[:2], 4), np.uint8)
    quads[..., :3] = rgb
    return quads.view("<i4")[..., 0].astype(np.int32, copy=False)


def _draw(
    image: np.ndarray, values: np.ndarray, regions: Sequence[_Region], alpha: float, labels: bool
) -> UInt8[np.ndarray, "H W 3"]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is uint8 [H,W,3], this is {image.dtype} {list(image.shape)}")
    if values.shape != image.shape[:2] or values.dtype.kind not in "iu":
        found = f"{values.dtype} {list(values.shape)}"
        raise ValueError(f"the map must be integers {list(image.shape[:2])} like its image, this is {found}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0 to 1, this is {alpha}")
    table = _index_table([region.key for region in regions])
    step = -(-max(values.shape) // _LAYOUT_CELLS)
    rows, columns = (np.minimum(np.arange(0, size, step) + step // 2, size - 1) for size in values.shape)
    layout = _to_index(values[np.ix_(rows, columns)], table)
    present = np.unique(layout)
    colors = _choose_colors(regions, layout)
    painted = _paint(image, values, table, colors, alpha)
    if labels:
        _write_names(painted, layout, step, {int(i): regions[i - 1] for i in present if i})
    return painted


def _index_table(keys: Sequence[int]) -> np.ndarray:
    """Looks up `value + 1`: entry `key + 1` is the region's index, from 1; all others and both ends are 0."""
    table = np.zeros(max(keys, default=0) + 3, np.min_scalar_type(len(keys)))
    table[np.array(keys, np.int64) + 1] = np.arange(1, len(keys) + 1)
    return table


def _to_index(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table.take(values.astype(np.int64) + 1, mode="clip")


# ------------------------------------------------------------------------------------------- painting


def _paint(
    image: np.ndarray, values: np.ndarray, table: np.ndarray, colors: UInt8[np.ndarray, "n 3"], alpha: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Blends `image * keep + add` in 8.8 fixed point, both from tables: row i for the fill of region i, row
    n + i for its outline."""
    height, width = values.shape
    rows, n = max(1, _STRIP_PIXELS // width), len(colors)
    scale = math.sqrt(height * width)
    # Below a thumbnail's size outlines would cover what they outline.
    reach = max(1, round(scale / 500)) if scale >= 128 else 0
    opacity = np.concatenate([np.full(n, alpha), np.full(n, max(alpha, 0.9))])
    opacity[[0, n]] = 0
    keep = np.round(256 * (1 - opacity)).astype(np.uint16)
    # The half rounds the shift; 255 * 256 + 128 still fits.
    add = (256 - keep[:, None]) * np.concatenate([colors, colors]).astype(np.uint16) + np.uint16(128)
    painted = np.empty_like(image)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above = min(top, reach)
        index = _to_index(values[top - above : bottom + reach], table).astype(np.intp)
        index += n * _edges(index, reach)
        index = index[above : above + bottom - top]
        painted[top:bottom] = (image[top:bottom] * keep.take(index)[..., None] + add.take(index, axis=0)) >> 8
    return painted


def _edges(index: np.ndarray, reach: int) -> Bool[np.ndarray, "H W"]:
    """Pixels within `reach` of another region, along rows and columns."""
    edges = np.zeros(index.shape, bool)
    # The steps between let few thin parts slip through a long one.
    for shift in {1, (reach + 1) // 2, reach} if reach else ():
        for a, b in ((np.s_[shift:], np.s_[:-shift]), (np.s_[:, shift:], np.s_[:, :-shift])):
            differ = index[a] != index[b]
            edges[a] |= differ
            edges[b] |= differ
    return edges


# --------------------------------------------------------------------------------------------- colours


def _oklab_to_rgb(lab: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """OKLab (Ottosson 2020), in which equal distances look equal, to sRGB; what sRGB lacks is clipped."""
    to_lms = np.array(
        [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.291485548]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.707614701],
        ]
    )
    linear = np.clip((lab @ to_lms) ** 3 @ to_linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def _candidates(region: _Region) -> Float[np.ndarray, "36 3"]:
    """OKLab colours for a region, the preferred one first: hues a golden angle apart, lightness in turn."""
    attempt = np.arange(36)
    angle = 2 * math.pi * (0.08 + (region.kind + attempt) * _GOLDEN_TURN)
    chroma, lightnesses = (0.17, (0.72, 0.62, 0.80)) if region.vivid else (0.08, (0.62, 0.52, 0.74))
    lightness = np.array(lightnesses)[(region.kind // 8 + attempt) % 3]
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)


def _least_distance(colors: Float[np.ndarray, "n 3"], others: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, " n"]:
    # Under a translucent fill the photo sets the lightness: a difference in it counts for less.
    distances = np.linalg.norm((colors[:, None] - others[None]) * (0.4, 1, 1), axis=2)
    return distances.min(axis=1, initial=1.0)


def _choose_colors(regions: Sequence[_Region], layout: np.ndarray) -> UInt8[np.ndarray, "n 3"]:
    """Row 0 for no region, row i for region i. In turn, muted ones first, each region takes the first
    candidate that differs clearly from its neighbours and visibly from all others, or the best compromise."""
    neighbours = _neighbours(layout)
    lab = np.array([[0.0, 0.0, 0.0], *(_candidates(region)[0] for region in regions)])
    chosen: list[int] = []
    for i in sorted(neighbours, key=lambda i: (regions[i - 1].vivid, regions[i - 1].kind, i)):
        candidates = _candidates(regions[i - 1])
        clearly, visibly = (0.15, 0.07) if regions[i - 1].vivid else (0.075, 0.045)
        near = _least_distance(candidates, lab[[j for j in chosen if j in neighbours[i]]])
        anywhere = _least_distance(candidates, lab[chosen])
        fits = (near >= clearly) & (anywhere >= visibly)
        compromise = np.minimum(near, clearly) + 0.5 * np.minimum(anywhere, visibly)
        lab[i] = candidates[np.argmax(fits) if fits.any() else np.argmax(compromise)]
        chosen.append(i)
    return _oklab_to_rgb(lab)


def _neighbours(layout: np.ndarray) -> dict[int, set[int]]:
    """For each index on the map, the indices within three cells of it."""
    touching: dict[int, set[int]] = {int(i): set() for i in np.unique(layout) if i}
    for shift in (1, 3):
        for a, b in ((np.s_[shift:], np.s_[:-shift]), (np.s_[:, shift:], np.s_[:, :-shift])):
            first, second = layout[a], layout[b]
            differ = (first != second) & (first > 0) & (second > 0)
            for i, j in np.unique(np.stack([first[differ], second[differ]]), axis=1).T.tolist():
                touching[i].add(j)
                touching[j].add(i)
    return touching


# ----------------------------------------------------------------------------------------------- names


def _write_names(painted: np.ndarray, layout: np.ndarray, step: int, regions: dict[int, _Region]) -> None:
    """Writes each region's name on it, in place. Small regions choose first: they have the fewest places."""
    base = max(9.0, 0.025 * math.sqrt(painted.shape[0] * painted.shape[1]))
    depth = _depth(layout)
    taken = np.zeros(layout.shape, bool)
    peaks = {i: depth[layout == i].max() for i in regions}
    for i in sorted(regions, key=lambda i: (peaks[i], i)):
        mine = layout == i
        rows, columns = np.nonzero(mine & (depth >= 0.3 * peaks[i]))
        thin = slice(None, None, 1 + len(rows) // _MOST_PLACES)
        rows, columns = rows[thin], columns[thin]
        appeal = 0.4 * depth[rows, columns] / peaks[i]
        sums = _integral(mine), _integral(taken)
        for with_note, scale in _VARIANTS:
            size = round(base * scale)
            if size < _SMALLEST_SIZE or (with_note and not regions[i].note):
                continue
            caption = _caption(regions[i], size, with_note)
            place = _find_place(caption, (rows, columns), appeal, sums, step, painted.shape)
            if place is not None:
                _stamp(painted, caption, *place)
                top, bottom = _cells_of(place[0], caption.height, step)
                left, right = _cells_of(place[1], caption.width, step)
                taken[top:bottom, left:right] = True
                break


def _depth(layout: Integer[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance in cells to the next cell of another region or outside, counted half sideways: names are wide.

    Euclidean and exact: along rows first, then the least of (row distance)^2 + k^2 over k rows up and down,
    where the row distance within another region is 0.
    """
    height, width = layout.shape
    column = np.arange(width)
    change = np.ones((height, width + 1), bool)
    change[:, 1:-1] = layout[:, 1:] != layout[:, :-1]
    start = np.maximum.accumulate(np.where(change[:, :-1], column, 0), axis=1)
    end = np.minimum.accumulate(np.where(change[:, 1:], column, width)[:, ::-1], axis=1)[:, ::-1]
    across = ((0.5 * np.minimum(column - start + 1, end - column + 1)) ** 2).astype(np.float32)
    row = np.arange(height, dtype=np.float32)[:, None]
    squared = np.minimum(across, np.minimum(row + 1, height - row) ** 2)
    for k in range(1, height):
        if k * k >= squared.max():
            break
        below, above = slice(k, None), slice(None, -k)
        same = layout[below] == layout[above]
        for here, there in ((below, above), (above, below)):
            np.minimum(squared[here], np.where(same, across[there], 0) + k * k, out=squared[here])
    return np.sqrt(squared)


def _integral(mask: Bool[np.ndarray, "h w"]) -> Int32[np.ndarray, "h+1 w+1"]:
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    mask.cumsum(0, out=sums[1:, 1:]).cumsum(1, out=sums[1:, 1:])
    return sums


@dataclasses.dataclass(frozen=True)
class _Caption:
    """A name and its score, typeset: the box's size in pixels, and its parts `(left, text, font, colour)`."""

    height: int
    width: int
    parts: tuple[tuple[float, str, ImageFont.FreeTypeFont, tuple[int, int, int]], ...]


def _caption(region: _Region, size: int, with_note: bool) -> _Caption:
    font, text = _typeset(region.name, size, f"#{region.key}")
    left = pad = 0.35 * size
    parts = [(left, text, font, (255, 255, 255))]
    right = left + font.getlength(text)
    if with_note:
        left = right + pad
        parts.append((left, region.note, _font(None, size), (190, 196, 204)))
        right = left + _font(None, size).getlength(region.note)
    return _Caption(round(1.35 * size), math.ceil(right + pad), tuple(parts))


def _find_place(
    caption: _Caption,
    cells: tuple[np.ndarray, np.ndarray],
    appeal: np.ndarray,
    sums: tuple[np.ndarray, np.ndarray],
    step: int,
    shape: tuple[int, ...],
) -> tuple[int, int] | None:
    """Top left pixel `(y, x)` of the caption, centred on one of `cells`: where most of it lies on its own
    region, deep inside (`appeal`), and on no other name; None where less than half would."""
    if caption.height > shape[0] or caption.width > shape[1]:
        return None
    y = np.clip(cells[0] * step + (step - caption.height) // 2, 0, shape[0] - caption.height)
    x = np.clip(cells[1] * step + (step - caption.width) // 2, 0, shape[1] - caption.width)
    (top, bottom), (left, right) = _cells_of(y, caption.height, step), _cells_of(x, caption.width, step)
    own, taken = (s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in sums)
    share = own / ((bottom - top) * (right - left))
    score = np.where((taken == 0) & (share >= _LEAST_SHARE), share + appeal, -1.0)
    best = int(np.argmax(score))
    return (int(y[best]), int(x[best])) if score[best] >= 0 else None


def _cells_of(start, length: int, step: int):
    """First and past-the-last cell that pixels `start` to `start + length` touch."""
    return start // step, (start + length - 1) // step + 1


def _stamp(painted: np.ndarray, caption: _Caption, y: int, x: int) -> None:
    """Draws the box and the text into `painted`, in place."""
    target = painted[y : y + caption.height, x : x + caption.width]
    tile = Image.fromarray(target)
    # Pillow does not smooth the corners: drawn four times as large and shrunk they are.
    box = Image.new("L", (4 * caption.width, 4 * caption.height), 0)
    corners = (0, 0, 4 * caption.width - 1, 4 * caption.height - 1)
    ImageDraw.Draw(box).rounded_rectangle(corners, radius=1.1 * caption.height, fill=185)
    tile.paste((18, 20, 24), mask=box.resize(tile.size, Image.Resampling.BOX))
    draw = ImageDraw.Draw(tile)
    for left, text, font, color in caption.parts:
        draw.text((left, round(0.74 * caption.height)), text, fill=color, font=font, anchor="ls")
    target[:] = np.asarray(tile)


# --------------------------------------------------------------------------------------------- letters


@functools.lru_cache(maxsize=64)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font (Aileron, Latin letters) or, by name, one of the system's; `size` in pixels."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Fonts of wide coverage that are installed here, out of those that common systems bring."""
    found = []
    for name in _WIDE_FONTS.split("|"):
        try:
            found.append(ImageFont.truetype(name, 16).path)
        except OSError:
            continue
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _has_glyph(path: str | None, letter: str) -> bool:
    """Whether the font draws `letter` otherwise than its sign for what it lacks (that of a noncharacter)."""
    # Without shaping, which would lend a lone accent a dotted circle.
    font = _font(path, 16).font_variant(layout_engine=ImageFont.Layout.BASIC)
    glyph, lacking = font.getmask(letter), font.getmask("\U0010ffff")
    return glyph.size != lacking.size or bytes(glyph) != bytes(lacking)


def _typeset(name: str, size: int, substitute: str) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font that has most of the name's letters, and the name as that font can show it: with `?` for what
    it lacks, or `substitute` where it lacks more than half."""
    # Control characters and lone surrogates cannot be drawn.
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 1].rstrip() + "…"
    letters = [c for c in dict.fromkeys(text) if not c.isspace()]
    best, missing = None, {c for c in letters if not _has_glyph(None, c)}
    for path in _system_fonts() if missing else ():
        lacking = {c for c in letters if not _has_glyph(path, c)}
        if len(lacking) < len(missing):
            best, missing = path, lacking
    if not letters or len(missing) > len(letters) / 2:
        return _font(None, size), substitute
    return _font(best, size), "".join("?" if c in missing else c for c in text)
