"""Draws the scenes that the package ships for its demo into fcclip_jax/assets/emoji.

    python -m tools.emoji.draw_demo --sprites emoji_scenes/sprites

Three of pictures under Apache-2.0 and MIT, each with at least two unseen things, and one in the style that nothing was
trained on (CC-BY-4.0). Prints the lines that NOTICE has to hold.
"""

import argparse
import shutil
from pathlib import Path

from fcclip_jax.world.names import HELD_OUT_STYLE, THINGS
from fcclip_jax.world.prepare import write_scenes
from fcclip_jax.world.scenes import Recipe, Scene, draw_scene
from fcclip_jax.world.sprites import SETS, Sprites

FOLDER = Path(__file__).parents[2] / "fcclip_jax" / "assets" / "emoji"
STYLES = ("noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji")
SEED = (1 << 30) + 3
_SCENES = ((STYLES, 3), ((HELD_OUT_STYLE,), 1))


def chosen(sprites: Sprites) -> list[Scene]:
    """The first scenes of the seed that show four or five things, at least two of them unseen, all different."""
    scenes = []
    for styles, count in _SCENES:
        recipe, number = Recipe(styles=styles, count=(4, 5), size=(56, 112)), 0
        while count:
            scene = draw_scene(sprites, recipe, SEED, number)
            kinds = [piece.kind for piece in scene.pieces if piece.isthing]
            if len(kinds) >= 4 and len(set(kinds)) == len(kinds) and sum(not THINGS[k].seen for k in kinds) >= 2:
                scenes.append(scene)
                count -= 1
            number += 1
    return scenes


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sprites", required=True, type=Path, metavar="DIR")
    scenes = chosen(Sprites(options.parse_args().sprites))
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_scenes(FOLDER, scenes, {"seed": SEED})
    for style in dict.fromkeys(piece.style for scene in scenes for piece in scene.pieces if piece.isthing):
        print(SETS[style].line(style))


if __name__ == "__main__":
    main()
