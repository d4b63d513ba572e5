"""The model that comes with the package: FC-CLIP in the small world (docs/small_world.md), in half precision.

It is what `fcclip demo` shows, and what is used where no checkpoint is given. `config.json` beside its weights says
how it was made: commit, configuration, seed, steps, hours, figures.
"""

from pathlib import Path

# Of the picture in the network, pixels: it was trained on scenes of 192 and knows things of 48 to 128.
SIZES = {"min_size": 256, "max_size": 512}

ABOUT = (
    "No checkpoint is given, so the model that comes with the package is used. It knows pictures of emoji, as in "
    "`fcclip demo`, and not photographs: for those convert the released weights (README, Weights) and give "
    "--checkpoint DIR."
)


def shipped_model() -> Path:
    """Its folder, which `weights.load_model` reads."""
    return Path(__file__).parents[1] / "assets" / "emoji_model"
