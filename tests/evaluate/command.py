"""Runs `fcclip evaluate` on the data of own_data.py."""

import json
from pathlib import Path

from fcclip_jax import cli
from tests.evaluate.own_data import OPTIONS

CONFIG = str(Path(__file__).parents[2] / "configs" / "eval_folder.py")


def arguments(data: Path, model: Path, output: Path, *more: str) -> list[str]:
    """The command line, with all three tasks."""
    overrides = {
        "folder.images": data / "images",
        "folder.panoptic": data / "panoptic",
        "folder.annotations": data / "panoptic.json",
        "folder.semantic": data / "semantic",
        "folder.instances": data / "instances.json",
        "workers": 2,
        **OPTIONS,
    }
    head = ["evaluate", "--config", CONFIG, "--checkpoint", model, "--output", output, "--labels", data / "labels.txt"]
    return [str(part) for part in (*head, *(f"--config.{k}={v}" for k, v in overrides.items()), *more)]


def evaluate(data: Path, model: Path, output: Path, *more: str) -> int:
    try:
        return cli.main(arguments(data, model, output, *more))
    except SystemExit as end:
        return end.code


def figures(output: Path) -> dict:
    return json.loads((output / "figures.json").read_text(encoding="utf-8"))


def metrics(output: Path) -> dict:
    """What must not depend on how an evaluation was run."""
    content = figures(output)
    return {key: content[key] for key in ("panoptic", "semantic", "instance", "images", "skipped") if key in content}
