"""What an evaluation is configured by: the keys, with the paper's protocol as values."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fcclip_jax.configuration import ConfigError, load_config

CLASSIFIERS = ("ensemble", "in_vocabulary", "out_vocabulary")
GROUND_TRUTH = ("", "masks", "classes")
FOLDER = "folder"


def evaluation_config(benchmark: str = FOLDER) -> ConfigDict:
    """All keys. `benchmark`: one of `data.benchmarks.BENCHMARKS`, or "folder" for data of one's own."""
    config = ConfigDict()
    config.benchmark = benchmark
    config.root = ""  # "": $DETECTRON2_DATASETS, else ./datasets
    config.split = "val"
    config.labels = ""  # a label file or a built-in list; "": the benchmark's own list
    config.tasks = ""  # such as "panoptic,semantic"; "": all that the benchmark defines
    config.max_images = 0  # the first so many; 0: all

    config.folder = ConfigDict()  # for benchmark "folder"; relative to root where that is given
    config.folder.images = ""
    config.folder.panoptic = ""  # PNGs of COCO panoptic
    config.folder.annotations = ""  # and their JSON
    config.folder.semantic = ""  # label maps
    config.folder.instances = ""  # JSON of COCO instances
    config.folder.ignored = -1  # label that is not counted; below 0: 255, or 65535 where 255 is a class

    config.min_size = 0  # pixels of the shorter edge in the network; 0: the benchmark's
    config.max_size = 0  # of the longer edge at most
    config.overlap_threshold = 0.8
    config.object_threshold = 0.0

    config.classifier = "ensemble"  # or in_vocabulary, out_vocabulary alone: the paper's ablation
    config.alpha = -1.0  # share of the out-vocabulary classifier for seen classes; below 0: the model's own
    config.beta = -1.0  # and for other classes
    config.ground_truth = ""  # "masks": name the true masks; "classes": give found masks their true class

    config.augment = ConfigDict()  # at test time, for the semantic task
    config.augment.min_sizes = ()  # such as (400, 600, 800, 1000, 1200); (): one size
    config.augment.max_size = 4000
    config.augment.flip = False

    config.batch_size = 0  # images at a time in each process; 0: one for each device
    config.workers = 4  # threads that read images, and as many that count
    config.skip_bad = False  # go on after an image that cannot be used
    config.predictions = False  # write them in the official formats
    config.worst = 0  # pictures of so many images with the lowest figures
    return config


def load_evaluation_config(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """As `configuration.load_config`, for the keys of `evaluation_config`. Raises ConfigError."""
    return load_config(path, overrides, base=evaluation_config, check=_check)


# What does not change the result of any image, and so may change when an evaluation goes on. `root` and `folder` are
# places; the images' ids and the label list stand for their content.
FREE = ("root", "folder", "max_images", "batch_size", "workers", "skip_bad", "labels")


def _check(config: ConfigDict) -> None:
    for key in ("max_images", "min_size", "max_size", "batch_size", "worst"):
        if config[key] < 0:
            raise ConfigError(f"{key} must be at least 0, not {config[key]}")
    if config.workers < 1:
        raise ConfigError(f"workers must be at least 1, not {config.workers}")
    for key in ("overlap_threshold", "object_threshold"):
        if not 0 <= config[key] <= 1:
            raise ConfigError(f"{key} must be in 0 to 1, not {config[key]}")
    for key in ("alpha", "beta"):
        if config[key] > 1:
            raise ConfigError(f"{key} must be at most 1, not {config[key]}; below 0 means the model's own")
    for key, choices in (("classifier", CLASSIFIERS), ("ground_truth", GROUND_TRUTH)):
        if config[key] not in choices:
            raise ConfigError(f"{key} is one of {', '.join(map(repr, choices))}, not {config[key]!r}")
    if config.classifier != "ensemble" and max(config.alpha, config.beta) >= 0:
        raise ConfigError(f"alpha and beta belong to the ensemble, and classifier is {config.classifier!r}")
    if any(size < 1 for size in (*config.augment.min_sizes, config.augment.max_size)):
        raise ConfigError("augment.min_sizes and augment.max_size must be at least 1")
    if augmented(config) and config.ground_truth:
        raise ConfigError("augment and ground_truth exclude each other")


def augmented(config: ConfigDict) -> bool:
    """Whether images are looked at more than once."""
    return bool(config.augment.min_sizes) or config.augment.flip
