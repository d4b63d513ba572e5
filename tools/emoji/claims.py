"""The paper's claims in miniature: panoptic quality in the small world, as a Markdown table.

    python -m tools.emoji.claims --models runs/seed0/model runs/seed1/model runs/seed2/model --scenes emoji_scenes

Each image goes through the network once a size; classifiers and the shares alpha and beta are tried on what it gave.
In-vocabulary alone is alpha = beta = 0, out-vocabulary alone is 1. With several models a figure is the mean over them
and, after the sign, the standard deviation.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.data.targets import panoptic_ids
from fcclip_jax.evaluation.panoptic_quality import PanopticQuality
from fcclip_jax.models.mask_classifier import geometric_ensemble
from fcclip_jax.results.results import compute_results
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.training.validation import new_counts
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.world.prepare import open_split

EDGE = 256  # of a scene, pixels
CLASSIFIERS = {"in-vocabulary": (0.0, 0.0), "out-vocabulary": (1.0, 1.0), "ensemble": (0.4, 0.8)}
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SIZES = (1.0, 1.5, 2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What the network says of one scene at one size: `masks` `[Q,h,w]` logits, the logits of both classifiers
    `[Q,K+1]`, void last; and the truth: `ids` `[H,W]` and its segments."""

    masks: Float[np.ndarray, "Q h w"]
    inside: Float[np.ndarray, "Q K1"]
    outside: Float[np.ndarray, "Q K1"]
    ids: Int[np.ndarray, "H W"]
    segments: list[dict]


def predict(segmenter: Segmenter, records: Iterable[PanopticRecord], words: Vocabulary, edge: int) -> list[Predicted]:
    """Every scene, enlarged to `edge` pixels, through the network."""
    kept = []
    for record in records:
        image, panoptic = record.decode()
        found = segmenter.forward(np.asarray(image.resize((edge, edge), Image.Resampling.BILINEAR)), words)
        segments = [
            {"id": int(i), "category_id": int(c)} for i, c in zip(record.segment_ids, record.classes, strict=True)
        ]
        kept.append(
            Predicted(
                found["masks"][-1][0],
                found["logits"][-1][0],
                found["out_vocabulary_logits"][0],
                panoptic_ids(np.asarray(panoptic)),
                segments,
            )
        )
    return kept


def quality(
    predicted: Sequence[Predicted],
    words: Vocabulary,
    seen: Bool[np.ndarray, " K"],
    alpha: float,
    beta: float,
    edge: int,
) -> dict[str, float]:
    """PQ of `all` classes, of those that are `seen` (stuff among them) and of `unseen` ones, percent."""
    counts = new_counts(words)
    for scene in predicted:
        log_probs = geometric_ensemble(
            jnp.asarray(scene.inside)[None], jnp.asarray(scene.outside)[None], jnp.asarray(seen), alpha=alpha, beta=beta
        )
        found = compute_results(
            scene.masks,
            np.asarray(log_probs[0]),
            network_size=(edge, edge),
            output_size=scene.ids.shape,
            names=words.names,
            isthing=words.isthing,
            tasks=("panoptic",),
        )
        named = [{"id": segment.id, "category_id": segment.category_id} for segment in found.segments]
        counts.update(scene.ids, scene.segments, np.asarray(found.panoptic), named)
    return _by_kind(counts, seen)


def _by_kind(counts: PanopticQuality, seen: np.ndarray) -> dict[str, float]:
    figures = counts.compute()["per_class"]
    groups = {"all": np.ones_like(seen), "seen": seen, "unseen": ~seen}
    return {
        name: statistics.fmean(
            f["PQ"] for f, chosen in zip(figures, group, strict=True) if chosen and f["PQ"] is not None
        )
        for name, group in groups.items()
    }


def limits(predicted: Sequence[Predicted], words: Vocabulary, seen: np.ndarray, edge: int) -> dict[str, float]:
    """What bounds PQ, percent of true things, by whether they are seen: `found_*`, some query's mask has IoU above 0.5;
    `named_*`, of these, the out-vocabulary classifier's best name for that mask is right."""
    totals = {"seen": [0, 0, 0], "unseen": [0, 0, 0]}
    for scene in predicted:
        inside = np.stack([_enlarged(mask, scene.ids.shape) for mask in scene.masks]) > 0
        for segment in scene.segments:
            label = segment["category_id"]
            if not words.isthing[label]:
                continue
            true = scene.ids == segment["id"]
            overlap = (inside & true).sum((1, 2)) / np.maximum((inside | true).sum((1, 2)), 1)
            best = int(overlap.argmax())
            total = totals["seen" if seen[label] else "unseen"]
            total[0] += 1
            total[1] += overlap[best] > 0.5
            total[2] += overlap[best] > 0.5 and int(scene.outside[best, :-1].argmax()) == label
    figures = {}
    for kind, (count, found, named) in totals.items():
        figures[f"found_{kind}"] = 100 * found / max(count, 1)
        figures[f"named_{kind}"] = 100 * named / max(found, 1)
    return figures


def _enlarged(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    picture = Image.fromarray(np.asarray(mask, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def measure(model: str, scenes: Path, images: int, *, sweep: bool, sizes: Sequence[float]) -> dict[str, float]:
    """All figures of one model, by the row that they stand in."""
    words = Vocabulary.from_file(scenes / "labels.txt")
    figures: dict[str, float] = {}
    for split in ("test", "test_held_out"):
        source = open_split(scenes / split, words)
        records = [source[n] for n in range(min(images, len(source)))]
        for times in sizes if split == "test" else (1.0,):
            edge = round(EDGE * times / 32) * 32
            segmenter = Segmenter.from_checkpoint(model, min_size=edge, max_size=edge)
            seen = words.seen(segmenter.train_vocabulary)
            predicted = predict(segmenter, records, words, edge)
            name = split if times == 1 else f"{split} at {times}x"
            pairs = dict(CLASSIFIERS)
            if sweep and name == "test":
                pairs |= {f"alpha {a}, beta {b}": (a, b) for a in SHARES for b in SHARES}
            for classifier, (alpha, beta) in pairs.items():
                for kind, value in quality(predicted, words, seen, alpha, beta, edge).items():
                    figures[f"{name} | {classifier} | {kind}"] = value
            figures |= {f"{name} | limits | {k}": v for k, v in limits(predicted, words, seen, edge).items()}
    return figures


def table(models: Sequence[dict[str, float]]) -> str:
    """Markdown: a row a setting and classifier, columns all, seen, unseen; then what bounds them."""

    def cell(key: str) -> str:
        values = [figures[key] for figures in models]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.1f}{spread}"

    rows = list(dict.fromkeys(key.rpartition(" | ")[0] for key in models[0]))
    lines = [f"PQ in percent, {len(models)} model{'s' if len(models) > 1 else ''}", ""]
    lines += ["| scenes | classifier | all | seen | unseen |", "|---|---|---|---|---|"]
    for row in rows:
        if not row.endswith("| limits"):
            lines.append(
                f"| {row} | " + " | ".join(cell(f"{row} | {kind}") for kind in ("all", "seen", "unseen")) + " |"
            )
    lines += [
        "",
        "| scenes | things found, seen | unseen | of these named by CLIP, seen | unseen |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.endswith("| limits"):
            kinds = ("found_seen", "found_unseen", "named_seen", "named_unseen")
            name = row.removesuffix(" | limits")
            lines.append(f"| {name} | " + " | ".join(cell(f"{row} | {kind}") for kind in kinds) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", required=True, metavar="DIR", help="one a seed")
    options.add_argument("--scenes", required=True, metavar="DIR", help="of `fcclip prepare emoji_scenes`")
    options.add_argument("--images", type=int, default=300, help="of each split, the first so many (default: 300)")
    options.add_argument("--no_sweep", action="store_true", help="leave alpha and beta where they are")
    options.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="times 256 pixels; 1 among them")
    options.add_argument("--output", metavar="FILE", help="the table, also printed")
    given = options.parse_args()
    models = [
        measure(model, Path(given.scenes), given.images, sweep=not given.no_sweep, sizes=given.sizes)
        for model in given.models
    ]
    text = table(models)
    print(text)
    if given.output:
        Path(given.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
