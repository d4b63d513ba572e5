"""Batches for training, endless and in a fixed order, made by grain's threads and processes.

The global batch of step k is a pure function of source, seed and k. How many processes train, and how many workers
and threads load, changes nothing in it, so the step is all the state there is.
"""

import dataclasses
import weakref
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fcclip_jax.data.augment import LargeScaleJitter, epoch_order
from fcclip_jax.data.records import DataError, PanopticRecord
from fcclip_jax.data.sources import PanopticSource
from fcclip_jax.data.targets import limit_segments, row_map

Batch = dict[str, np.ndarray]
"""Of this process: `image` uint8 `[B,H,W,3]`; `ids` int16 `[B,H,W]`, the row of `labels` that a pixel belongs to,
or -1; `labels` int32 `[B,N]`; `valid` bool `[B,N]`, all False for an image without a segment; `image_id` int64 `[B]`;
`dropped_segments` int32 `[B]`, those over the maximum; `skipped_images` int32 `[B]`, bad ones that this replaces."""

_MOST_SKIPPED = 100  # bad records in a row: no accident any more
_ENDLESS = 1 << 40  # steps; grain wants a length


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """This process's share of every global batch: `batches[k]` is that of step k.

    The stream of training images goes through the whole source in a new order each epoch, without a gap; global batch
    k is numbers `k * batch_size` to `(k + 1) * batch_size` of it. A process takes the `process_index`-th of
    `process_count` equal, contiguous parts, as data-parallel sharding lays a batch over processes.
    """

    source: PanopticSource
    view: LargeScaleJitter
    batch_size: int
    max_segments: int
    seed: int
    process_index: int = 0
    process_count: int = 1
    skip_bad: bool = False
    first_step: int = 0

    @property
    def order(self) -> dict[str, int]:
        """What the order of the images depends on."""
        return {"seed": self.seed, "batch_size": self.batch_size, "images": len(self.source)}

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Batch:
        """Raises DataError for a record that cannot be used, unless bad ones are skipped: then for 100 in a row."""
        share = self.batch_size // self.process_count
        start = (self.first_step + step) * self.batch_size + self.process_index * share
        edge = self.view.image_size
        batch = {
            "image": np.empty((share, edge, edge, 3), np.uint8),
            "ids": np.empty((share, edge, edge), np.int16),
            "labels": np.empty((share, self.max_segments), np.int32),
            "valid": np.empty((share, self.max_segments), bool),
            "image_id": np.empty(share, np.int64),
            "dropped_segments": np.empty(share, np.int32),
            "skipped_images": np.empty(share, np.int32),
        }
        for row in range(share):
            self._fill({key: array[row : row + 1] for key, array in batch.items()}, start + row)
        return batch

    def _fill(self, out: Batch, number: int) -> None:
        """`out`: one row of a batch; `number`: that of the image in the stream."""
        epoch, place = divmod(number, len(self.source))
        index = int(epoch_order(self.seed, epoch, len(self.source))[place])
        record, image, rows, skipped = self._read(index)
        self.view.apply(image, rows, self.view.draw(self.seed, number), out["image"][0], out["ids"][0])
        classes = record.classes[~record.crowd]
        out["labels"][0], out["valid"][0], out["dropped_segments"][0] = limit_segments(
            out["ids"][0], classes, self.max_segments
        )
        out["image_id"][0] = record.image_id
        out["skipped_images"][0] = skipped

    def _read(self, index: int) -> tuple[PanopticRecord, Any, np.ndarray, int]:
        """The record at `index`, or the next good one; its image and row map; and how many were passed over."""
        most = min(_MOST_SKIPPED, len(self.source)) if self.skip_bad else 1
        for skipped in range(most):
            try:
                record = self.source[(index + skipped) % len(self.source)]
                image, panoptic = record.decode()
                return record, image, row_map(record, np.asarray(panoptic)), skipped
            except DataError as error:
                last = error
        if self.skip_bad:
            raise DataError(last.name, f"{last.reason}; and the {most - 1} before it were bad too, so this is given up")
        raise last


@runtime_checkable
class StepBatches(Protocol):
    """Batches by their step, a dataclass: `first_step` is added to what is asked for, `order` names what the batches
    depend on."""

    first_step: int
    order: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> Batch: ...


class TrainLoader:
    """An endless iterator over batches that are loaded ahead; `make_loader` makes it.

    Close it, or use it in a `with`: its threads and processes end then. After an error the next `next` tries the same
    step again.
    """

    def __init__(self, batches: StepBatches, workers: int, threads: int, buffered: int):
        self._batches, self._workers, self._threads, self._buffered = batches, workers, threads, buffered
        self._step = 0
        self._running = None
        self._stop = None

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = self._start()
            self._stop = weakref.finalize(self, self._running.close)  # at exit, too: grain's own end is noisy
        try:
            batch = next(self._running)
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch

    def _start(self) -> Any:
        import grain
        from absl import flags

        batches = dataclasses.replace(self._batches, first_step=self._step)
        ahead = self._threads if self._workers else max(self._buffered, self._threads)
        data = grain.MapDataset.source(batches).to_iter_dataset(
            grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        )
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags, which only absl's app.run parses
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._buffered)
            data = data.mp_prefetch(options)
        return iter(data)

    def get_state(self) -> dict[str, int]:
        """Where it stands, for JSON: `step`, the number of batches given out; and what the order depends on. The same
        in every process, and for any number of workers, threads and processes."""
        return {"step": self._step, **self._batches.order}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `state` was taken. Raises ValueError for the state of another order of images."""
        expected = self.get_state() | {"step": state.get("step")}
        differing = [key for key in expected if state.get(key) != expected[key]]
        if differing:
            parts = ", ".join(f"{key} {state.get(key)} (here {expected[key]})" for key in differing)
            raise ValueError(f"this state of the data loader belongs to another run: {parts}")
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError(f"the step in a data loader's state must be a whole number from 0, not {state['step']!r}")
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Ends threads and processes. A later `next` starts them again, where it stands."""
        if self._running is not None:
            self._stop()
            self._running = self._stop = None

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_loader(
    source: PanopticSource,
    *,
    batch_size: int,
    image_size: int = 1024,
    max_segments: int = 100,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 1,
    buffered: int = 2,
    skip_bad: bool = False,
    min_scale: float = 0.1,
    max_scale: float = 2.0,
    flip_probability: float = 0.5,
) -> TrainLoader:
    """Large-scale-jittered batches of `source`, endless; `batch_size` is that of all processes together.

    `workers` processes (0: none) of `threads` threads each make whole batches, of which at most `buffered` wait for
    each worker. Decoding and resizing free Python's lock, so a few threads help; workers go further, and pay some
    milliseconds an image to hand batches over. They import the main module anew, so a script that uses them needs
    `if __name__ == "__main__"`.

    Raises ValueError for numbers that do not fit together, DataError (on `next`) for a bad record; with `skip_bad` the
    next good one of the source stands in, and `skipped_images` counts.
    """
    if len(source) < 1:
        raise ValueError("the training set is empty")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0 to {process_count - 1}, not {process_index}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} cannot be parted evenly among {process_count} processes")
    if not 1 <= max_segments <= np.iinfo(np.int16).max:
        raise ValueError(f"max_segments must be in 1 to {np.iinfo(np.int16).max}, not {max_segments}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in 0 to 2^64 - 1, not {seed}")
    if workers < 0 or threads < 1 or buffered < 1:
        raise ValueError(f"workers {workers}, threads {threads}, buffered {buffered}: must be at least 0, 1 and 1")
    view = LargeScaleJitter(image_size, min_scale, max_scale, flip_probability)
    batches = TrainBatches(source, view, batch_size, max_segments, seed, process_index, process_count, skip_bad)
    return TrainLoader(batches, workers, threads, buffered)
