"""From a configuration to the figures of a benchmark: `fcclip evaluate`.

Processes share the images, not the work on one of them. Each counts its own images and leaves a record of each in the
output folder, which all must see; at the end the first one adds up what the folder holds. So figures do not depend on
how many processes there were, and a run that was killed goes on with the images that have no record.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from fcclip_jax.configuration import ConfigError
from fcclip_jax.data.benchmarks import BENCHMARKS, Benchmark, fill, open_benchmark
from fcclip_jax.data.evaluation_sources import EvaluationSource
from fcclip_jax.data.own_folder import open_folder
from fcclip_jax.evaluation.evaluator import TASKS, Classes, Evaluator
from fcclip_jax.evaluation.report import Report, write_report
from fcclip_jax.evaluation.result_folder import Known, ResultFolder
from fcclip_jax.evaluation.submission import SubmissionWriter, own_labels
from fcclip_jax.evaluation_configuration import FOLDER, FREE, augmented
from fcclip_jax.image_loop import Counting, evaluate_images
from fcclip_jax.models import weights
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.training import sharding
from fcclip_jax.version import __version__
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.worst_pictures import WorstPictures

log = logging.getLogger(__name__)

_FOLDER_SIZES = (800, 1333)
_MODEL_FILES = (weights.CONFIG_FILE, weights.WEIGHTS_FILE)


class OtherProcessError(RuntimeError):
    """This process is well, another one is not; that one says why."""


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """What all processes know before the first image."""

    config: ConfigDict
    checkpoint: Path
    card: weights.ModelCard
    source: EvaluationSource
    tasks: tuple[str, ...]
    identity: Mapping[str, Any]
    folder: ResultFolder

    @property
    def classes(self) -> Classes:
        vocabulary, benchmark = self.source.vocabulary, BENCHMARKS.get(self.config.benchmark)
        places = range(vocabulary.num_classes)
        ids = [place if cls.id is None else cls.id for place, cls in zip(places, vocabulary.classes, strict=True)]
        return Classes(
            names=vocabulary.names,
            isthing=vocabulary.isthing,
            ids=ids,
            instance_ids={place: ids[place] for place in places if vocabulary.classes[place].isthing},
            ignore_label=self.source.ignore_label,
            cityscapes=benchmark is not None and benchmark.instance_protocol == "cityscapes",
        )

    @property
    def count(self) -> int:
        """Images to evaluate: the first so many of the source."""
        most = self.config.max_images
        return min(most, len(self.source)) if most else len(self.source)


def run_benchmark(config: ConfigDict, checkpoint: str | os.PathLike, output: str | os.PathLike) -> Report | None:
    """Evaluates, or goes on where `output` stands. All processes call; the first one gets the report, others None.

    Raises:
        ValueError: the configuration, the model, the data or the output folder cannot be used; an image cannot be
            used and `skip_bad` is not set.
        OtherProcessError: that, in another process.
    """
    with _together():
        checkpoint = Path(checkpoint)
        card = weights.read_card(checkpoint)
        source = open_source(config)
        tasks = chosen_tasks(config, source)
        identity = describe(config, checkpoint, card, source, tasks)
        folder = ResultFolder(output)
        if jax.process_index() == 0:
            folder.claim(identity)
    evaluation = _Evaluation(config, checkpoint, card, source, tasks, identity, folder)
    try:
        with _together():
            known, start = folder.images(), folder.start_number()
        with _together():
            _evaluate(evaluation, known, start)
        return _finish(evaluation) if jax.process_index() == 0 else None
    finally:
        folder.release()


def _evaluate(evaluation: _Evaluation, known: Mapping[int, Known], start: int) -> None:
    """This process's share of the images that have no record. Images that were passed over are tried again."""
    config, source, folder = evaluation.config, evaluation.source, evaluation.folder
    done = {index for index, entry in known.items() if entry.skipped is None}
    todo = [index for index in range(evaluation.count) if index not in done]
    mine = todo[jax.process_index() :: jax.process_count()]
    log.info("%d images, %d of them done before", evaluation.count, evaluation.count - len(todo))
    if not mine:
        return
    evaluator = Evaluator(evaluation.classes, evaluation.tasks)
    segmenter = load_segmenter(config, evaluation.checkpoint)
    log.info("naming with %d classes (%d names)", source.vocabulary.num_classes, len(source.vocabulary.synonyms))
    segmenter.prepare(source.vocabulary)
    with contextlib.closing(folder.writer(start, jax.process_index())) as records:
        counting = Counting(
            evaluator,
            source.ids(),
            records,
            _submission(evaluation),
            WorstPictures(folder.path / "worst", config.worst, source.vocabulary, _scores(known)),
            skip_bad=config.skip_bad,
        )
        evaluate_images(segmenter, source, mine, counting, config, evaluation.tasks)


def _submission(evaluation: _Evaluation) -> SubmissionWriter | None:
    if not evaluation.config.predictions:
        return None
    labels = own_labels(evaluation.config.benchmark, evaluation.source.vocabulary)
    return SubmissionWriter(evaluation.folder.path / "predictions", evaluation.classes, evaluation.tasks, labels)


def _scores(known: Mapping[int, Known]) -> dict[int, float | None]:
    return {index: entry.score for index, entry in known.items()}


def _finish(evaluation: _Evaluation) -> Report:
    """Adds up the records, and writes what comes out of them."""
    config, source, folder = evaluation.config, evaluation.source, evaluation.folder
    known = {index: entry for index, entry in sorted(folder.images().items()) if index < evaluation.count}
    if len(known) < evaluation.count:
        raise ValueError(
            f"{evaluation.count - len(known)} of {evaluation.count} images have no record in {folder.path}: "
            "all processes must see the same output folder"
        )
    counted = [entry for entry in known.values() if entry.skipped is None]
    skipped = [entry.skipped for entry in known.values() if entry.skipped is not None]
    if not counted:
        raise ValueError(f"none of the {len(known)} images could be used; the first: {skipped[0]}")
    totals = Evaluator(evaluation.classes, evaluation.tasks).total(map(folder.read, counted))
    if submission := _submission(evaluation):
        submission.finish(lambda: map(folder.read, counted))
    worst = WorstPictures(folder.path / "worst", config.worst, source.vocabulary, {}).keep_only(_scores(known))
    ids, benchmark = source.ids(), BENCHMARKS.get(config.benchmark)
    report = Report(
        benchmark=config.benchmark,
        title=benchmark.title if benchmark else str(config.folder.images),
        backbone=evaluation.card.config.name,
        classifier=config.classifier,
        figures={task: total.compute() for task, total in totals.items()},
        images=len(counted),
        expected=benchmark.expected_images if benchmark and config.split == "val" else None,
        skipped=skipped,
        departures=departures(config, benchmark),
        worst=[(score, str(ids[index])) for score, index in worst],
    )
    write_report(folder.path, report, evaluation.identity)
    return report


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """All processes leave it, or all raise: none waits for one that has given up."""
    problem = None
    try:
        yield
    except Exception as error:
        problem = error
    well = sharding.agreed(problem is None)
    if problem is not None:
        raise problem
    if not well:
        raise OtherProcessError("another process has stopped, and says why")


def root_folder(config: ConfigDict) -> Path:
    """Where the benchmarks' folders lie."""
    return Path(config.root or os.environ.get("DETECTRON2_DATASETS") or "datasets")


def open_source(config: ConfigDict) -> EvaluationSource:
    """Images and truth that a configuration names.

    Raises:
        ValueError: a file or folder is missing, the vocabulary does not fit the annotations, or keys do not go
            together.
    """
    labels = Vocabulary.parse(config.labels) if config.labels else None
    wanted = _tasks_of(config) or None
    if config.benchmark != FOLDER:
        return open_benchmark(config.benchmark, root_folder(config), labels, config.split, truths=wanted)
    if labels is None or not config.folder.images:
        raise ConfigError("for data of your own give folder.images, the annotations, and labels (a label file)")
    given = {key: value for key, value in config.folder.items() if isinstance(value, str) and value}
    paths = {key: Path(config.root) / value for key, value in given.items()}
    ignored = None if config.folder.ignored < 0 else config.folder.ignored
    return open_folder(paths.pop("images"), labels, ignored=ignored, **paths)


def _tasks_of(config: ConfigDict) -> list[str]:
    tasks = [part.strip() for part in config.tasks.split(",") if part.strip()]
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"tasks takes {', '.join(TASKS)}, parted by commas, not {unknown[0]!r}")
    if augmented(config):
        if tasks not in ([], ["semantic"]):
            raise ConfigError("augment is for the semantic task alone: give tasks=semantic")
        return ["semantic"]
    return tasks


def chosen_tasks(config: ConfigDict, source: EvaluationSource) -> tuple[str, ...]:
    """Those that the configuration names, else all that there is truth for.

    Raises:
        ConfigError: there is no truth for one.
    """
    wanted = _tasks_of(config) or source.truths
    if missing := sorted(set(wanted) - source.truths):
        raise ConfigError(f"there are no {missing[0]} annotations here; there are: {', '.join(sorted(source.truths))}")
    return tuple(task for task in TASKS if task in wanted)


def sizes(config: ConfigDict) -> tuple[int, int]:
    """Shorter and longer edge in the network, pixels."""
    benchmark = BENCHMARKS.get(config.benchmark)
    own = (benchmark.min_size, benchmark.max_size) if benchmark else _FOLDER_SIZES
    return config.min_size or own[0], config.max_size or own[1]


def load_segmenter(config: ConfigDict, checkpoint: Path) -> Segmenter:
    """The model of a folder, with the shares of the two classifiers that the configuration asks for."""
    card, graphdef, state = weights.load_model(checkpoint)
    alpha, beta = shares(config, card)
    if (alpha, beta) != (card.config.alpha, card.config.beta):
        model = nnx.merge(graphdef, state)
        model.config = dataclasses.replace(card.config, alpha=alpha, beta=beta)
        card, (graphdef, state) = dataclasses.replace(card, config=model.config), nnx.split(model)
    min_size, max_size = sizes(config)
    # One device needs no mesh, and shares the compiled programs of `fcclip segment`.
    devices = jax.local_devices() if jax.local_device_count() > 1 else None
    return Segmenter(card, graphdef, state, min_size=min_size, max_size=max_size, devices=devices)


def shares(config: ConfigDict, card: weights.ModelCard) -> tuple[float, float]:
    """What the out-vocabulary classifier weighs for seen and for other classes. The ensemble with 0 is the
    in-vocabulary classifier alone and with 1 the other; void is the in-vocabulary classifier's matter in any case."""
    if config.classifier != "ensemble":
        return (0.0, 0.0) if config.classifier == "in_vocabulary" else (1.0, 1.0)
    return (
        card.config.alpha if config.alpha < 0 else config.alpha,
        card.config.beta if config.beta < 0 else config.beta,
    )


def departures(config: ConfigDict, benchmark: Benchmark | None) -> list[str]:
    """What is not done as the paper does it, one line each."""
    found = []
    if config.labels and benchmark:
        found.append(f"names: {Path(config.labels).name}")
    if config.classifier != "ensemble":
        found.append(f"classifier: {config.classifier} alone")
    if max(config.alpha, config.beta) >= 0:
        found.append(f"alpha {config.alpha}, beta {config.beta} (below 0: the model's own)")
    if config.ground_truth:
        found.append(f"true {config.ground_truth} given")
    if augmented(config):
        found.append(
            f"mean of {len(config.augment.min_sizes) or 1} sizes{', each mirrored too' if config.augment.flip else ''}"
        )
    if benchmark and sizes(config) != (benchmark.min_size, benchmark.max_size):
        found.append("sizes in the network: {} and {} pixels".format(*sizes(config)))
    if (config.overlap_threshold, config.object_threshold) != (0.8, 0.0):
        found.append(f"thresholds: overlap {config.overlap_threshold}, object {config.object_threshold}")
    return found


def describe(
    config: ConfigDict,
    checkpoint: Path,
    card: weights.ModelCard,
    source: EvaluationSource,
    tasks: Sequence[str],
) -> dict[str, Any]:
    """All that the result of an image depends on, as plain JSON: records of one description belong together."""
    values = json.loads(config.to_json())
    options = {key: value for key, value in values.items() if key not in FREE}
    options |= {"tasks": list(tasks), "min_size": sizes(config)[0], "max_size": sizes(config)[1]}
    options["ignored"] = config.folder.ignored
    return {
        "model": {"name": card.config.name, "sha256": _sha256_of([checkpoint / name for name in _MODEL_FILES])},
        "options": options,
        "words": _sha256(source.vocabulary.to_dict()),
        "images": {"count": len(source), "sha256": _sha256(source.ids())},
        "annotations": {path.name: _sha256_of([path]) for path in annotation_files(config, tasks)},
        "versions": {"fcclip_jax": __version__, "hotcoco": _version("hotcoco")},
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _sha256_of(paths: Sequence[Path]) -> str:
    """Of files, which may be large."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def annotation_files(config: ConfigDict, tasks: Sequence[str]) -> list[Path]:
    """The JSON files that the truth of the tasks comes from. Maps are too many to be read twice."""
    if config.benchmark == FOLDER:
        root, named = Path(config.root), {"panoptic": config.folder.annotations, "instance": config.folder.instances}
    else:
        root, benchmark = root_folder(config), BENCHMARKS[config.benchmark]
        named = {"panoptic": benchmark.panoptic_json, "instance": benchmark.instance}
    names = [named[task] for task in ("panoptic", "instance") if task in tasks]
    return [root / fill(name, config.split) for name in names if name.endswith(".json")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
