"""Stuff, made by code: each kind has its colours and its pattern, and no two pieces are alike."""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fcclip_jax.world.names import STUFF

LARGEST = 384  # pixels, of what can be drawn
_VARIANTS = 4
_BANK_SEED = 3

Noise = Float[np.ndarray, "E E"]


def smooth_noise(rng: np.random.Generator, edge: int, cell: int) -> Noise:
    """Values about 0, of deviation about 1, that change over about `cell` pixels."""
    coarse = max(2, round(edge / cell) + 1)
    noise = Image.fromarray(rng.standard_normal((coarse, coarse)).astype(np.float32))
    wide = np.asarray(noise.resize((edge, edge), Image.Resampling.BICUBIC))
    return wide / max(float(wide.std()), 1e-6)


def _tint(colour: tuple[int, int, int], light: Noise) -> Float[np.ndarray, "E E 3"]:
    return np.array(colour, np.float32) * light[..., None].astype(np.float32)


def _mix(share: Noise, first: tuple[int, int, int], second: tuple[int, int, int]) -> Float[np.ndarray, "E E 3"]:
    share = np.clip(share, 0, 1)[..., None]
    return (1 - share) * np.array(first, np.float32) + share * np.array(second, np.float32)


def _grid(edge: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:edge, :edge].astype(np.float32)
    return y, x


def _sky(rng: np.random.Generator, edge: int) -> np.ndarray:
    clouds = smooth_noise(rng, edge, 90) + 0.4 * smooth_noise(rng, edge, 30)
    return _mix(0.7 * (clouds - 0.6), (115, 180, 240), (245, 248, 252))


def _grass(rng: np.random.Generator, edge: int) -> np.ndarray:
    blades = np.sin(_grid(edge)[1] * rng.uniform(1.6, 2.4) + 2 * smooth_noise(rng, edge, 12))
    return _tint((95, 165, 60), 0.85 + 0.13 * blades + 0.12 * smooth_noise(rng, edge, 40))


def _water(rng: np.random.Generator, edge: int) -> np.ndarray:
    waves = np.sin(_grid(edge)[0] * rng.uniform(0.4, 0.6) + 2.5 * smooth_noise(rng, edge, 45))
    return _mix(0.3 + 0.3 * waves, (20, 80, 150), (80, 170, 200))


def _sand(rng: np.random.Generator, edge: int) -> np.ndarray:
    y, x = _grid(edge)
    ripples = np.sin(0.18 * y + 0.05 * x + 2 * smooth_noise(rng, edge, 80))
    return _tint((228, 200, 140), 0.93 + 0.05 * ripples + 0.05 * rng.standard_normal((edge, edge)))


def _brick(rng: np.random.Generator, edge: int) -> np.ndarray:
    y, x = _grid(edge)
    height = rng.integers(14, 20)
    row = y // height
    shifted = x + height * (row % 2)
    joint = (y % height < 2) | (shifted % (2 * height) < 2)
    shade = np.sin(12.9 * row + 78.2 * (shifted // (2 * height))) * 0.1
    return np.where(joint[..., None], 205, _tint((170, 75, 55), 0.95 + shade + 0.04 * smooth_noise(rng, edge, 6)))


def _wood(rng: np.random.Generator, edge: int) -> np.ndarray:
    y, x = _grid(edge)
    width = rng.integers(34, 52)
    plank = x // width
    grain = np.sin(0.5 * x + 3 * np.sin(0.02 * y + 9 * plank) + smooth_noise(rng, edge, 60))
    light = 0.9 + 0.08 * grain + 0.1 * np.sin(5.3 * plank)
    return _tint((165, 110, 62), np.where(x % width < 2, 0.5, light))


def _road(rng: np.random.Generator, edge: int) -> np.ndarray:
    y, x = _grid(edge)
    light = 0.9 + 0.06 * rng.standard_normal((edge, edge)) + 0.05 * smooth_noise(rng, edge, 60)
    line = (abs(y % 128 - 64) < 4) & (x % 60 < 34)
    return np.where(line[..., None], 225, _tint((98, 98, 104), light))


def _snow(rng: np.random.Generator, edge: int) -> np.ndarray:
    return _mix(
        0.35 + 0.3 * smooth_noise(rng, edge, 70) + 0.05 * smooth_noise(rng, edge, 4), (250, 252, 255), (205, 220, 240)
    )


def _night_sky(rng: np.random.Generator, edge: int) -> np.ndarray:
    picture = _mix(0.4 + 0.3 * smooth_noise(rng, edge, 120), (10, 12, 40), (40, 38, 90))
    for y, x in rng.integers(0, edge - 2, (edge * edge // 450, 2)):
        picture[y : y + 2, x : x + 2] = rng.uniform(170, 255)
    return picture


def _tiles(rng: np.random.Generator, edge: int) -> np.ndarray:
    y, x = _grid(edge)
    size = rng.integers(24, 34)
    joint = (y % size < 2) | (x % size < 2)
    odd = (y // size + x // size) % 2
    return np.where(
        joint[..., None], 150, _mix(odd + 0.05 * smooth_noise(rng, edge, 9), (235, 232, 222), (120, 170, 175))
    )


def _pebbles(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Each pixel belongs to the nearest of jittered centres; near two of them it is a dark gap."""
    y, x = _grid(edge)
    size = 22
    cells = edge // size + 3
    jitter = rng.uniform(0.2, 0.8, (cells, cells, 2))
    grey = rng.uniform(0.6, 1.05, (cells, cells))
    row, column = (y // size).astype(int) + 1, (x // size).astype(int) + 1
    nearest = np.full((2, edge, edge), 1e9)
    light = np.zeros((edge, edge))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = row + dy, column + dx
            away = np.hypot((r - 1 + jitter[r, c, 0]) * size - y, (c - 1 + jitter[r, c, 1]) * size - x)
            closer = away < nearest[0]
            light = np.where(closer, grey[r, c], light)
            nearest = np.stack(
                [np.minimum(nearest[0], away), np.where(closer, nearest[0], np.minimum(nearest[1], away))]
            )
    return _tint((165, 158, 150), light * np.clip((nearest[1] - nearest[0]) / 5, 0.35, 1))


def _lava(rng: np.random.Generator, edge: int) -> np.ndarray:
    crust = abs(smooth_noise(rng, edge, 40) + 0.3 * smooth_noise(rng, edge, 12))
    return _mix(crust * 1.6, (255, 170, 30), (70, 25, 25))


_PAINTERS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _sky,
    _grass,
    _water,
    _sand,
    _brick,
    _wood,
    _road,
    _snow,
    _night_sky,
    _tiles,
    _pebbles,
    _lava,
)


@functools.cache
def _bank(kind: int) -> UInt8[np.ndarray, "V E E 3"]:
    """A few large pieces of one kind, the same in every process."""
    pieces = [
        _PAINTERS[kind](np.random.default_rng([_BANK_SEED, kind, variant]), LARGEST) for variant in range(_VARIANTS)
    ]
    return np.stack([np.clip(piece, 0, 255).astype(np.uint8) for piece in pieces])


def draw_stuff(rng: np.random.Generator, kind: int, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """A piece of `STUFF[kind]`, cut at random from a bank of large ones, in another light each time.

    Raises ValueError for more pixels than a bank's piece has along an edge.
    """
    if max(height, width) > LARGEST:
        raise ValueError(f"stuff is drawn up to {LARGEST} pixels, not {height} x {width}: draw small and enlarge")
    piece = _bank(kind)[rng.integers(_VARIANTS)]
    y, x = rng.integers(0, LARGEST - height + 1), rng.integers(0, LARGEST - width + 1)
    cut = piece[y : y + height, x : x + width]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    light = rng.uniform(0.75, 1.1) * rng.uniform(0.93, 1.07, 3)
    table = np.clip(np.arange(256)[:, None] * light, 0, 255).astype(np.uint8)
    return np.stack([table[cut[..., channel], channel] for channel in range(3)], axis=-1)


assert len(_PAINTERS) == len(STUFF)
