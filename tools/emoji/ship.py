"""The checkpoint that the package ships: a model of the small world in half precision, with where it comes from.

    python -m tools.emoji.ship --model runs/world/convnext_emoji-0-masks/model --output shipped

What half precision costs is measured by the claims of both folders (tools/emoji/claims.py).
"""

import argparse
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from fcclip_jax.models import weights

LARGEST = 12_000_000  # bytes that the folder may have


def ship(model: Path, output: Path, provenance: dict[str, object]) -> int:
    """Writes `output` and returns its size in bytes.

    Raises:
        ValueError: a value leaves the range of float16, or the folder is larger than what is shipped.
    """
    card = weights.read_card(model)
    halves = {name: array.astype(np.float16) for name, array in weights.load_parameters(model).items()}
    bad = [name for name, array in halves.items() if not np.isfinite(array).all()]
    if bad:
        raise ValueError(f"{model}: not finite in float16: {', '.join(bad[:5])}")
    card = dataclasses.replace(card, provenance=without_places(card.provenance | provenance))
    save_changed(output, card, halves, dtype=np.float16)
    size = sum(path.stat().st_size for path in output.iterdir())
    if size > LARGEST:
        raise ValueError(f"{output} has {size} bytes, more than the {LARGEST} that are shipped")
    return size


def save_changed(output: Path, card: weights.ModelCard, arrays: dict[str, np.ndarray], *, dtype: type) -> None:
    """Writes a model with other arrays: its text tower is another one now, so that rows cached for it are not taken."""
    shapes = {name: array.shape for name, array in arrays.items()}
    card = dataclasses.replace(card, text_sha256=weights.text_sha256(shapes, arrays.__getitem__))
    weights.save_model(output, card, shapes, arrays.__getitem__, dtype=dtype)


def without_places(value: Any) -> Any:
    """The same, where absolute paths are cut to the last two names: they say nothing on another machine."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith("/"):
        return "/".join(Path(value).parts[-2:])
    return value


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, type=Path, metavar="DIR")
    options.add_argument("--output", required=True, type=Path, metavar="DIR")
    options.add_argument(
        "--hours", type=float, required=True, help="that both stages trained, on what --hardware names"
    )
    options.add_argument("--hardware", required=True)
    options.add_argument("--claims", type=Path, metavar="FILE", help="the table that was measured")
    given = options.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    provenance = {"commit": commit, "hours": given.hours, "hardware": given.hardware}
    if given.claims:
        provenance["claims"] = given.claims.read_text(encoding="utf-8")
    print(f"{given.output}: {ship(given.model, given.output, provenance)} bytes")


if __name__ == "__main__":
    main()
