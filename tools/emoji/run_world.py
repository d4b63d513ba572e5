"""Everything in the small world by one command: pictures, towers, FC-CLIP, the table of claims, for each seed.

    python -m tools.emoji.run_world --output runs/world --seeds 0 1 2

Told to stop, the same command goes on where it stood. Where the towers name fewer than 60 % of the things under true
masks it stops before the second stage and says so; `--below_gate` goes on all the same. Further arguments, such as
`--config.batch_size=128 --config.data.workers=12` for an accelerator, go to the training of the towers.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fcclip_jax.world.prepare import prepare_emoji_scenes

GATE = 60.0


def fcclip(*arguments: object) -> None:
    """Runs the command line; a failure, or being told to stop, ends this program with the same code."""
    code = subprocess.run([sys.executable, "-m", "fcclip_jax.cli", *map(str, arguments)]).returncode
    if code:
        sys.exit(code)


def train_towers(folder: Path, sprites: Path, config: str, seed: int, overrides: Sequence[str]) -> float:
    """Trains, unless that was finished before; returns the share of things named under true masks, percent."""
    card = folder / "towers" / "config.json"
    if not (folder / "finished").is_file():
        common = ("--workdir", folder, "--config.data.sprites", sprites, "--config.seed", seed)
        fcclip("train", "--config", config, *common, *overrides)
        (folder / "finished").touch()
    return json.loads(card.read_text(encoding="utf-8"))["provenance"]["scores"]["things"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", required=True, metavar="DIR", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--tower", choices=("convnext_emoji", "vit_emoji"), default="convnext_emoji")
    options.add_argument("--below_gate", action="store_true", help="train masks on towers that are not good enough")
    options.add_argument(
        "--mask_config", default="configs/emoji_fcclip.py", help="of the second stage (default: %(default)s)"
    )
    options.add_argument("--mask_steps", type=int, default=3000, help="its length (default: %(default)s)")
    options.add_argument("--images", type=int, default=300, help="to evaluate on (default: %(default)s)")
    given, overrides = options.parse_known_args()
    unknown = [argument for argument in overrides if argument.startswith("--") and "--config." not in argument]
    if unknown:
        options.error(f"unknown: {' '.join(unknown)}")
    scenes = prepare_emoji_scenes(given.output / "scenes", progress=print)
    models = []
    for seed in given.seeds:
        clip = given.output / f"{given.tower}-{seed}"
        variant = f"--config.model.variant={given.tower}"
        named = train_towers(clip, scenes / "sprites", "configs/emoji_clip.py", seed, [variant, *overrides])
        print(f"seed {seed}: the towers name {named:.1f} % of the things under true masks (gate: {GATE:.0f})")
        if named < GATE and not given.below_gate:
            sys.exit("the gate is not reached: train longer (--config.steps), or go on with --below_gate")
        masks = given.output / f"{given.tower}-{seed}-masks"
        common = ("--workdir", masks, "--config.data.sprites", scenes / "sprites", "--config.seed", seed)
        towers = ("--config.model.towers", clip / "towers", variant, f"--config.steps={given.mask_steps}")
        steps = (given.mask_steps * 4 // 5, given.mask_steps * 14 // 15)
        fcclip("train", "--config", given.mask_config, *common, *towers, f"--config.optimizer.milestones={steps}")
        models.append(masks / "model")
    command = [sys.executable, "-m", "tools.emoji.claims", "--scenes", scenes, "--images", given.images]
    claims = given.output / f"{given.tower}.md"
    sys.exit(subprocess.run([*map(str, command), "--output", str(claims), "--models", *map(str, models)]).returncode)


if __name__ == "__main__":
    main()
