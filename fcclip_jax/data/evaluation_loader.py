"""Images to evaluate on, made ready for the network ahead of the device by grain's threads.

The steps are the reference's at test time, to the bit: decode, resize the shortest edge with Pillow, normalise, pad.
"""

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from fcclip_jax.data import buckets
from fcclip_jax.data.evaluation_record import EvaluationRecord
from fcclip_jax.data.evaluation_sources import EvaluationSource
from fcclip_jax.data.records import DataError
from fcclip_jax.data.transforms import normalize_into, resize_shortest_edge


@dataclasses.dataclass(frozen=True)
class EvaluationImage:
    """Number `index` of the source. `image`: as it was photographed; `padded`: what the network gets, zeros at the
    bottom and the right of the `size` (`(h, w)`) that the image has there (both None where only decoding was asked
    for). Of a bad image all of these are None, and `error` says why."""

    index: int
    record: EvaluationRecord | None = None
    image: UInt8[np.ndarray, "H W 3"] | None = None
    padded: Float32[np.ndarray, "h w 3"] | None = None
    size: tuple[int, int] | None = None
    error: DataError | None = None


@dataclasses.dataclass(frozen=True)
class _Share:
    """What grain reads: one image of this process at a time."""

    source: EvaluationSource
    indices: Sequence[int]
    min_size: int
    max_size: int
    bucketed: bool
    decode_only: bool

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> EvaluationImage:
        index = int(self.indices[place])
        try:
            record = self.source[index]
            image = record.decode_image()
        except DataError as error:
            return EvaluationImage(index, error=error)
        if self.decode_only:
            return EvaluationImage(index, record, image)
        resized = resize_shortest_edge(image, self.min_size, self.max_size)
        size = resized.shape[:2]
        shape = buckets.bucket(*size, self.min_size, self.max_size) if self.bucketed else buckets.extent(*size)
        return EvaluationImage(index, record, image, normalize_into(resized, shape), size)


class EvaluationLoader:
    """An iterator over this process's images, in order, loaded ahead; `make_evaluation_loader` makes it.

    Close it, or use it in a `with`: its threads end then. Where it stands can be saved and set again.
    """

    def __init__(self, share: _Share, threads: int, buffered: int, skip_bad: bool):
        self._share, self._threads, self._buffered, self._skip_bad = share, threads, buffered, skip_bad
        self._place = 0
        self._running = self._stop = None

    def __len__(self) -> int:
        """Images of this process in all."""
        return len(self._share)

    def __iter__(self) -> "EvaluationLoader":
        return self

    def __next__(self) -> EvaluationImage:
        """Raises DataError for a bad image, unless bad ones are skipped: then it is handed on with its `error`."""
        if self._place >= len(self._share):
            self.close()
            raise StopIteration
        if self._running is None:
            self._running = self._start()
            self._stop = weakref.finalize(self, self._running.close)  # at exit, too: grain's own end is noisy
        try:
            item = next(self._running)
            if item.error is not None and not self._skip_bad:
                raise item.error
        except BaseException:
            self.close()
            raise
        self._place += 1
        return item

    def _start(self) -> Any:
        import grain

        left = dataclasses.replace(self._share, indices=self._share.indices[self._place :])
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(self._buffered, self._threads))
        return iter(grain.MapDataset.source(left).to_iter_dataset(options))

    def get_state(self) -> dict[str, int]:
        """Where it stands, for JSON: the number of images given out, and of how many."""
        return {"place": self._place, "images": len(self._share)}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `state` was taken. Raises ValueError for the state of another share of images."""
        place, images = state.get("place"), state.get("images")
        if images != len(self._share) or type(place) is not int or not 0 <= place <= len(self._share):
            raise ValueError(f"this state of the loader, {state}, is not of a share of {len(self._share)} images")
        self.close()
        self._place = place

    def close(self) -> None:
        """Ends the threads. A later `next` starts them again, where it stands."""
        if self._running is not None:
            self._stop()
            self._running = self._stop = None

    def __enter__(self) -> "EvaluationLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_evaluation_loader(
    source: EvaluationSource,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    indices: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    buffered: int = 4,
    bucketed: bool = False,
    decode_only: bool = False,
    skip_bad: bool = False,
) -> EvaluationLoader:
    """The images of `source`, each once, made ready by `threads` threads; decoding and resizing free Python's lock.

    Args:
        min_size: pixels of the shorter edge in the network; max_size: of the longer at most, which wins.
        indices: only these, in this order (what an interrupted evaluation has left); None for all.
        process_index, process_count: of those, every `process_count`-th from the `process_index`-th on.
        buffered: images that wait at most; one takes up to 25 MB at 800/1333.
        bucketed: padded to one of the few shapes of `buckets`, else to multiples of 32, as the reference pads.
        decode_only: hand on the decoded image alone, for who resizes it in other ways.
        skip_bad: hand a bad image on with its `error` instead of raising it.

    Raises:
        ValueError: numbers that do not fit together.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0 to {process_count - 1}, not {process_index}")
    if threads < 1 or buffered < 1:
        raise ValueError(f"threads {threads}, buffered {buffered}: both must be at least 1")
    if min(min_size, max_size) < 1:
        raise ValueError(f"min_size {min_size}, max_size {max_size}: both must be at least 1")
    chosen = range(len(source)) if indices is None else list(indices)
    outside = [index for index in chosen if not 0 <= index < len(source)]
    if outside:
        raise ValueError(f"there is no image {outside[0]}: the source has {len(source)}")
    share = _Share(source, chosen[process_index::process_count], min_size, max_size, bucketed, decode_only)
    return EvaluationLoader(share, threads, buffered, skip_bad)
