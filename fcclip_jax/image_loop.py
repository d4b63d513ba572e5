"""The loop of an evaluation: images are read ahead, segmented, compared with their truth, and recorded."""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from fcclip_jax.data import transforms
from fcclip_jax.data.evaluation_loader import EvaluationImage, EvaluationLoader, make_evaluation_loader
from fcclip_jax.data.evaluation_sources import EvaluationSource
from fcclip_jax.data.records import DataError
from fcclip_jax.evaluation.evaluator import Evaluator, Found
from fcclip_jax.evaluation.image_records import ImageRecord, RecordWriter
from fcclip_jax.evaluation.submission import SubmissionWriter
from fcclip_jax.evaluation_configuration import augmented
from fcclip_jax.ground_truth import with_true_classes, with_true_masks
from fcclip_jax.results.augmented import View, augmented_semantic
from fcclip_jax.results.results import Results
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.worst_pictures import WorstPictures

log = logging.getLogger(__name__)

_LOG_SECONDS = 20.0
_SYNC_SECONDS = 10.0


class Counting:
    """Where results go: into the metrics, the prediction files, the pictures, and last the record that says that the
    image is done. Used by several threads. `ids`: of all images of the source, in its order."""

    def __init__(
        self,
        evaluator: Evaluator,
        ids: Sequence[int | str],
        records: RecordWriter,
        submission: SubmissionWriter | None,
        worst: WorstPictures,
        *,
        skip_bad: bool,
    ):
        self._evaluator, self._records, self._submission, self._worst = evaluator, records, submission, worst
        self._skip_bad, self._lock, self._synced = skip_bad, threading.Lock(), time.monotonic()
        self._ids = ids
        self._rank = np.empty(len(ids), np.int64)
        self._rank[sorted(range(len(ids)), key=lambda i: (isinstance(ids[i], str), ids[i]))] = np.arange(len(ids))

    def count(self, sample: EvaluationImage, found: Found) -> None:
        """Raises DataError where the truth cannot be used, unless bad images are passed over."""
        try:
            counted = self._evaluator.count(sample.index, int(self._rank[sample.index]), sample.record, found)
        except DataError as error:
            self.skip(sample.index, error)
            return
        if self._submission is not None:
            counted = dataclasses.replace(counted, predictions=self._submission.write(sample.record, found))
        with self._lock:
            wanted = self._worst.wants(sample.index, counted.score)
        if wanted:
            self._worst.draw(sample.index, counted.score, sample.image, sample.record, found)
        self._append(counted)

    def skip(self, index: int, error: DataError) -> None:
        """Notes an image that cannot be used; raises `error` unless bad images are passed over."""
        if not self._skip_bad:
            raise error
        log.warning("passed over: %s", error)
        self._append(ImageRecord(index, self._ids[index], skipped=str(error)))

    def _append(self, record: ImageRecord) -> None:
        with self._lock:
            self._records.append(record)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._records.sync()
                self._synced = time.monotonic()


def evaluate_images(
    segmenter: Segmenter,
    source: EvaluationSource,
    indices: Sequence[int],
    counting: Counting,
    config: ConfigDict,
    tasks: Sequence[str],
) -> None:
    """Segments and counts the images at `indices` of a source.

    Raises:
        DataError: an image cannot be used, and `config.skip_bad` is not set.
    """
    loader = make_evaluation_loader(
        source,
        indices=indices,
        min_size=segmenter.min_size,
        max_size=segmenter.max_size,
        threads=config.workers,
        buffered=2 * config.workers,
        bucketed=True,
        decode_only=augmented(config) or bool(config.ground_truth),
        skip_bad=True,
    )
    progress, running = _Progress(len(indices)), collections.deque[Future]()
    with progress, loader, ThreadPoolExecutor(config.workers) as counters:
        try:
            samples = _good(loader, counting, progress)
            for sample, found in predict(segmenter, samples, source.vocabulary, source.truths, config, tasks):
                running.append(counters.submit(counting.count, sample, found))
                while running and (running[0].done() or len(running) > 2 * config.workers):
                    running.popleft().result()
                progress.step()
            for future in running:
                future.result()
        finally:
            counters.shutdown(cancel_futures=True)


def _good(loader: EvaluationLoader, counting: Counting, progress: "_Progress") -> Iterator[EvaluationImage]:
    """The images of a loader; bad ones are noted and left out."""
    for item in loader:
        if item.error is None:
            yield item
        else:
            counting.skip(item.index, item.error)
            progress.step()


def predict(
    segmenter: Segmenter,
    samples: Iterator[EvaluationImage],
    vocabulary: Vocabulary,
    truths: Collection[str],
    config: ConfigDict,
    tasks: Sequence[str],
) -> Iterator[tuple[EvaluationImage, Found]]:
    """What the model finds in each image, in one of the ways that the configuration knows."""
    options = {
        "tasks": tasks,
        "overlap_threshold": config.overlap_threshold,
        "object_threshold": config.object_threshold,
    }
    if augmented(config):
        for sample in samples:
            yield sample, segment_augmented(segmenter, sample.image, vocabulary, config.augment)
    elif config.ground_truth == "masks":
        nothing = 255 if vocabulary.num_classes <= 255 else 65535
        for sample in samples:
            yield sample, with_true_masks(segmenter, sample.image, sample.record, vocabulary, truths, nothing)
    elif config.ground_truth == "classes":
        for sample in samples:
            yield sample, with_true_classes(segmenter, sample.image, sample.record, vocabulary, truths, **options)
    else:
        yield from _stream(segmenter, samples, vocabulary, config.batch_size or segmenter.device_count, options)


def _stream(segmenter, samples, vocabulary, batch_size: int, options: dict) -> Iterator[tuple[EvaluationImage, Found]]:
    waiting: dict[int, EvaluationImage] = {}

    def prepared() -> Iterator[Any]:
        for place, sample in enumerate(samples):
            waiting[place] = dataclasses.replace(sample, padded=None)
            yield segmenter.prepared(sample.image, sample.padded, sample.size)

    for place, result in segmenter.stream(prepared(), vocabulary, batch_size=batch_size, **options):
        yield waiting.pop(place), result


def segment_augmented(segmenter: Segmenter, image: np.ndarray, vocabulary: Vocabulary, augment: ConfigDict) -> Results:
    """The semantic map from several sizes of one photo, each also mirrored where `augment.flip` is set. As in the
    reference, the sizes are made from the photo as the network usually sees it, not from the photo itself."""
    own = (segmenter.min_size, segmenter.max_size)
    usual = transforms.resize_shortest_edge(image, *own)
    views = []
    for sizes in [(size, augment.max_size) for size in augment.min_sizes] or [own]:
        resized = transforms.resize_shortest_edge(usual, *sizes) if augment.min_sizes else usual
        for mirrored in (False, True) if augment.flip else (False,):
            seen = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
            encoded = segmenter.encode_view(image, seen, *sizes)
            log_probs = np.asarray(segmenter.class_log_probs(encoded, vocabulary))
            masks = encoded.predictions.masks[0]
            views.append(View(masks, log_probs, encoded.network_size, encoded.padded_size, mirrored))
    return Results(semantic=augmented_semantic(views, image.shape[:2]))


class _Progress:
    """A bar in a terminal, and a line of the log now and then: images, images a second, time left."""

    def __init__(self, total: int):
        self._total, self._done, self._started = total, 0, time.monotonic()
        self._told = self._started
        self._bar = tqdm(total=total, desc="images", unit=" image", disable=None)

    def step(self) -> None:
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and (now - self._told > _LOG_SECONDS or self._done == self._total):
            self._told = now
            rate = self._done / max(now - self._started, 1e-9)
            left = time.strftime("%H:%M:%S", time.gmtime((self._total - self._done) / rate))
            log.info("%d of %d images, %.2f images/s, %s left", self._done, self._total, rate, left)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
