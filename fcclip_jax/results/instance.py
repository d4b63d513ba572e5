"""Instances: the best-scored (query, class) pairs that are things (reference `instance_inference`)."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from pycocotools import mask as coco_mask

from fcclip_jax.results.pixels import MaskSampler, instance_run, query_bucket
from fcclip_jax.results.upsample import PixelRun, Upsampling
from fcclip_jax.structures import Instance


def top_pairs(
    scores: Float[np.ndarray, "Q K"], isthing: Bool[np.ndarray, " K"], max_instances: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The things among the `max_instances` best (query, class) pairs; as in the reference, stuff counts too.

    Of equals that compete for the last places the first in row-major order are taken.

    Returns:
        queries and classes, in row-major order.
    """
    flat = scores.reshape(-1)
    count = min(max_instances, flat.size)
    border = np.partition(flat, flat.size - count)[flat.size - count]
    above = np.flatnonzero(flat > border)
    equal = np.flatnonzero(flat == border)[: count - len(above)]
    queries, classes = np.divmod(np.sort(np.concatenate([above, equal])), scores.shape[1])
    return queries[isthing[classes]], classes[isthing[classes]]


class RunLengths:
    """COCO run-length encoding of n masks that arrive run by run, in column-major order.

    Only the places where a mask begins or ends are kept, never a whole mask.
    """

    def __init__(self, masks: int):
        self._last = np.zeros((masks, 1), bool)
        self._masks, self._changes = [], []

    def add(self, first: int, inside: Bool[np.ndarray, "n P"]) -> None:
        """Takes in the pixels from place `first` on."""
        masks, places = np.nonzero(inside != np.concatenate([self._last, inside[:, :-1]], axis=1))
        self._masks.append(masks.astype(np.uint32))
        self._changes.append((places + first).astype(np.uint32))
        self._last = inside[:, -1:]

    def encode(self, size: tuple[int, int]) -> tuple[list[dict], Int[np.ndarray, " n"]]:
        """The masks as COCO dictionaries `{"size": [H, W], "counts": bytes}`, and their areas in pixels."""
        masks, changes = np.concatenate(self._masks), np.concatenate(self._changes)
        changes = changes[np.argsort(masks, kind="stable")]
        ends = np.cumsum(np.bincount(masks, minlength=len(self._last)))
        encoded, areas = [], []
        for mask_changes in np.split(changes.astype(np.int64), ends[:-1]):
            counts = np.diff(mask_changes, prepend=0, append=size[0] * size[1])
            encoded.append(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))
            areas.append(int(counts[1::2].sum()))
        return encoded, np.array(areas, np.int64)


class InstanceTask:
    """Gathers masks and mask scores run by run, then makes the instances."""

    def __init__(
        self,
        masks: Float[Array, "Q h w"],
        class_probs: Float[np.ndarray, "Q K1"],
        upsampling: Upsampling,
        names: Sequence[str],
        isthing: Bool[np.ndarray, " K"],
        max_instances: int,
    ):
        scores = class_probs[:, :-1]
        self._queries, self._classes = top_pairs(scores, isthing, max_instances)
        self._class_scores = scores[self._queries, self._classes]
        self._names, self._image_size = names, upsampling.output_size
        # One query's mask serves all its classes.
        rows, self._row = np.unique(self._queries, return_inverse=True)
        self.width = query_bucket(len(rows), len(masks)) if len(rows) else 0
        if not self.width:
            return
        padded = np.zeros(self.width, np.int32)
        padded[: len(rows)] = rows
        self._sampler = MaskSampler(masks, padded, upsampling)
        self._run_lengths = RunLengths(len(rows))
        self._totals = np.zeros(len(rows))

    def launch(self, run: PixelRun) -> tuple[jax.Array, ...]:
        """Starts the device on a run."""
        return instance_run(self._sampler.logits(run), np.int32(run.count))

    def collect(self, run: PixelRun, inside: jax.Array, totals: jax.Array) -> None:
        """Takes in what `launch` gave."""
        count = len(self._totals)
        self._run_lengths.add(run.first, np.asarray(inside)[:count, : run.count])
        self._totals += np.asarray(totals)[:count]

    def finish(self) -> list[Instance]:
        """The instances, best first. As in the reference, one whose mask is empty stays, with score 0."""
        if not self.width:
            return []
        encoded, areas = self._run_lengths.encode(self._image_size)
        mask_scores = self._totals / (areas + 1e-6)
        scores = self._class_scores * mask_scores[self._row]
        return [
            Instance(
                int(self._classes[i]),
                self._names[self._classes[i]],
                float(scores[i]),
                dict(encoded[self._row[i]]),
            )
            for i in np.argsort(-scores, kind="stable")
        ]
