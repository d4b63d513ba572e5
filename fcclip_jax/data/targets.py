"""Panoptic annotations as training targets: one map of rows instead of a stack of masks (DESIGN: ground truth)."""

import numpy as np
from jaxtyping import Bool, Int16, Int32, UInt8

from fcclip_jax.data.records import DataError, PanopticRecord

NO_SEGMENT = -1
"""In a row map: a pixel of no segment, of a crowd, or of the padding."""


def panoptic_ids(panoptic: UInt8[np.ndarray, "H W 3"]) -> Int32[np.ndarray, "H W"]:
    """The id of each pixel's segment, R + 256 G + 65536 B; 0 is no segment."""
    rgb = panoptic.astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def row_map(record: PanopticRecord, panoptic: UInt8[np.ndarray, "H W 3"]) -> Int16[np.ndarray, "H W"]:
    """For each pixel the row of its segment among the segments of `record` that are no crowd; else NO_SEGMENT.

    `panoptic`: the colours of the panoptic map; a segment's id is R + 256 G + 65536 B, and 0 is no segment.
    Raises DataError for an id that only the map has or only the annotation has, and for an id that stands twice.
    """
    # The map is constant along runs, and there are some hundred times fewer runs than pixels: ids are made and looked
    # up for the first pixel of each run alone.
    colours = panoptic.reshape(-1, 3)
    flat = colours.ravel()
    changes = (np.flatnonzero(flat[3:] != flat[:-3]) + 3) // 3
    starts = np.concatenate([[0], changes[:1], changes[1:][changes[1:] != changes[:-1]]])
    values = colours[starts] @ np.array([1, 256, 65536])
    order = np.argsort(record.segment_ids, kind="stable")
    known = record.segment_ids[order]
    _check_ids(record, known, values)
    rows = np.cumsum(~record.crowd) - 1
    rows[record.crowd] = NO_SEGMENT
    if not len(known):
        return np.full(panoptic.shape[:2], NO_SEGMENT, np.int16)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    run_rows = np.where(known[place] == values, rows[order][place], NO_SEGMENT).astype(np.int16)
    return np.repeat(run_rows, np.diff(starts, append=len(colours))).reshape(panoptic.shape[:2])


def _check_ids(record: PanopticRecord, known: np.ndarray, values: np.ndarray) -> None:
    """`known`: the annotation's ids, sorted; `values`: the map's ids, in any number and order."""
    if len(known) > np.iinfo(np.int16).max:
        raise DataError(record.image_name, f"{len(known)} segments; more than {np.iinfo(np.int16).max} are not held")
    twice = known[1:][known[1:] == known[:-1]]
    if len(twice):
        raise DataError(record.panoptic_name, f"its annotation lists segment {twice[0]} twice")
    present = np.unique(values)  # of the runs, not of the pixels
    present = present[present != 0]
    unlisted = np.setdiff1d(present, known)
    if len(unlisted):
        raise DataError(
            record.panoptic_name, f"holds segment id {unlisted[0]}, which its annotation does not list{_more(unlisted)}"
        )
    unseen = np.setdiff1d(known[known != 0], present)
    if len(unseen):
        raise DataError(
            record.panoptic_name, f"its annotation lists segment {unseen[0]}, which has no pixel{_more(unseen)}"
        )


def _more(ids: np.ndarray) -> str:
    return f" (and {len(ids) - 1} more such)" if len(ids) > 1 else ""


def limit_segments(
    rows: Int16[np.ndarray, "H W"], classes: Int32[np.ndarray, " n"], max_segments: int
) -> tuple[Int32[np.ndarray, " N"], Bool[np.ndarray, " N"], int]:
    """`labels` `[N]` (0 where unused), `valid` `[N]` and how many segments were left out, for N = `max_segments`.

    `rows` holds rows of `classes` and is changed in place where there are more than N: kept are the N with the most
    pixels in the map (the earlier of equals), in their old order. A segment without a pixel is a valid target, with
    an empty mask, as long as there is room.
    """
    count = len(classes)
    if count > max_segments:
        area = np.bincount(rows.ravel() + 1, minlength=count + 1)[1:]
        kept = np.sort(np.argsort(-area, kind="stable")[:max_segments])
        renumbered = np.full(count + 1, NO_SEGMENT, np.int16)  # its last entry is what -1 finds
        renumbered[kept] = np.arange(max_segments)
        rows[...] = renumbered[rows]
        classes = classes[kept]
    labels = np.zeros(max_segments, np.int32)
    labels[: len(classes)] = classes
    return labels, np.arange(max_segments) < len(classes), max(count - max_segments, 0)
