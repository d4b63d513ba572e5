"""Sprites for tests, drawn here: no emoji set is fetched."""

import colorsys

import numpy as np
from PIL import Image

from fcclip_jax.world.names import STYLES, THINGS
from fcclip_jax.world.sprites import EDGE

COLUMNS = 16


def write_sprites(folder, styles=STYLES):
    """Sheets like those of `prepare_sprites`: each thing an ellipse of its own hue and shape, each style lighter."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = (np.mgrid[:EDGE, :EDGE] + 0.5) / EDGE * 2 - 1
    for number, style in enumerate(styles):
        sheet = np.zeros((-(-len(THINGS) // COLUMNS) * EDGE, COLUMNS * EDGE, 4), np.uint8)
        for index in range(len(THINGS)):
            colour = colorsys.hsv_to_rgb(index / len(THINGS), 1 - 0.1 * number, 0.9)
            inside = x**2 + (y / (0.4 + 0.6 * (index % 7) / 6)) ** 2 < 1
            row, column = divmod(index, COLUMNS)
            cell = sheet[row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE]
            cell[inside] = (*(round(255 * c) for c in colour), 255)
        Image.fromarray(sheet).save(folder / f"{style}.png", compress_level=1)
    return folder
