"""The panoptic map: every pixel to at most one segment (reference `panoptic_inference`)."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.results.pixels import MaskSampler, panoptic_run, query_bucket
from fcclip_jax.results.upsample import PixelRun, Upsampling
from fcclip_jax.structures import Segment


@dataclasses.dataclass(frozen=True)
class KeptQueries:
    """The k queries that may become segments, in query order: rows `index`, top class `label`, and its
    probability `score`."""

    index: Int[np.ndarray, " k"]
    label: Int[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]


def keep_queries(class_probs: Float[np.ndarray, "Q K1"], object_threshold: float) -> KeptQueries:
    """Keeps the queries whose top class is not void (the last column) and scores above `object_threshold`."""
    label, score = class_probs.argmax(axis=1), class_probs.max(axis=1)
    index = np.flatnonzero((label != class_probs.shape[1] - 1) & (score > object_threshold))
    return KeptQueries(index, label[index], score[index])


def make_segments(
    kept: KeptQueries,
    won: Int[np.ndarray, " k"],
    size: Int[np.ndarray, " k"],
    area: Int[np.ndarray, " k"],
    names: Sequence[str],
    isthing: Bool[np.ndarray, " K"],
    overlap_threshold: float,
) -> tuple[Int[np.ndarray, " k"], list[Segment]]:
    """The reference's rules, from pixel counts alone.

    In query order: a query without pixels is dropped, one that won less than `overlap_threshold` of its mask
    too; a thing opens a segment, stuff opens one or joins the earlier one of its class.

    Args:
        kept: the queries.
        won: pixels that each query won, whatever its sigmoid there.
        size: pixels where its sigmoid is at least 0.5.
        area: pixels where both hold.
        names: names of the classes.
        isthing: thing or stuff.
        overlap_threshold: least `won / size`.

    Returns:
        the segment id of each query, 0 for none, and the segments, ids from 1. The score of merged stuff is
        its best query's.
    """
    ids = np.zeros(len(kept.index), np.int32)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for k in range(len(ids)):
        if min(won[k], size[k], area[k]) == 0 or int(won[k]) / int(size[k]) < overlap_threshold:
            continue
        label, score, pixels = int(kept.label[k]), float(kept.score[k]), int(area[k])
        if label in stuff:
            ids[k] = stuff[label]
            merged = segments[ids[k] - 1]
            segments[ids[k] - 1] = dataclasses.replace(
                merged, score=max(merged.score, score), area=merged.area + pixels
            )
            continue
        ids[k] = len(segments) + 1
        if not isthing[label]:
            stuff[label] = int(ids[k])
        segments.append(Segment(int(ids[k]), label, names[label], bool(isthing[label]), score, pixels))
    return ids, segments


class PanopticTask:
    """Gathers the winners run by run, then makes the map."""

    def __init__(
        self,
        masks: Float[Array, "Q h w"],
        class_probs: Float[np.ndarray, "Q K1"],
        upsampling: Upsampling,
        names: Sequence[str],
        isthing: Bool[np.ndarray, " K"],
        overlap_threshold: float,
        object_threshold: float,
    ):
        self._kept = keep_queries(class_probs, object_threshold)
        self._names, self._isthing, self._overlap_threshold = names, isthing, overlap_threshold
        self._image_size = upsampling.output_size
        kept = len(self._kept.index)
        self.width = query_bucket(kept, len(masks)) if kept else 0
        if not kept:
            return
        # The bucket is filled up with query 0 at a score that cannot win.
        queries, self._scores = np.zeros(self.width, np.int32), np.full(self.width, -1, np.float32)
        queries[:kept], self._scores[:kept] = self._kept.index, self._kept.score
        self._sampler = MaskSampler(masks, queries, upsampling)
        self._winners = np.empty(upsampling.pixels, np.min_scalar_type(2 * self.width))
        self._sizes = np.zeros(self.width, np.int64)
        self._counts = np.zeros(2 * self.width, np.int64)

    def launch(self, run: PixelRun) -> tuple[jax.Array, ...]:
        """Starts the device on a run."""
        return panoptic_run(self._sampler.probabilities(run), self._scores, np.int32(run.count))

    def collect(self, run: PixelRun, winners: jax.Array, sizes: jax.Array) -> None:
        """Takes in what `launch` gave."""
        codes = np.asarray(winners)[: run.count]
        self._winners[run.places] = codes
        self._counts += np.bincount(codes, minlength=2 * self.width)
        self._sizes += np.asarray(sizes).astype(np.int64)

    def finish(self) -> tuple[Int[np.ndarray, "H W"], list[Segment]]:
        """The map, int32, 0 where there is no segment, and the segments in the order of their ids."""
        height, width = self._image_size
        panoptic = np.zeros((height, width), np.int32)
        if not self.width:
            return panoptic, []
        kept = len(self._kept.index)
        outside, area = self._counts[: self.width], self._counts[self.width :]
        ids, segments = make_segments(
            self._kept,
            (outside + area)[:kept],
            self._sizes[:kept],
            area[:kept],
            self._names,
            self._isthing,
            self._overlap_threshold,
        )
        id_of_code = np.zeros(2 * self.width, np.int32)
        id_of_code[self.width : self.width + kept] = ids
        winners = self._winners.reshape(width, height)
        # By bands of rows: indexing the whole map at once would make an int64 copy of it.
        for row in range(0, height, 64):
            panoptic[row : row + 64] = id_of_code[winners[:, row : row + 64].T]
        return panoptic, segments
