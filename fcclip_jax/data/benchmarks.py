"""The benchmarks of the paper, and data of one's own: where their files lie, and how they are evaluated.

Folders and file names are those under `$DETECTRON2_DATASETS` for FC-CLIP, Mask2Former and detectron2; what is derived
there by scripts, `fcclip prepare` makes.
"""

import dataclasses
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path

from fcclip_jax.data.evaluation_sources import (
    CityscapesInstances,
    CocoInstances,
    EvaluationSource,
    FileSource,
    ImageFile,
    PanopticAnnotations,
    SemanticMaps,
    label_table,
)
from fcclip_jax.data.files import expect_folder, list_files, plain_name, refuse_if_absent
from fcclip_jax.data.records import DataError
from fcclip_jax.data.sources import class_by_id
from fcclip_jax.vocabulary import ClassName, Vocabulary

KINDS = ("panoptic", "semantic", "instance")
SPLITS = {"val": "validation", "train": "training"}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One data set as it is evaluated. Paths are relative to the root; `{stem}` is what the files of an image share,
    `{split}` val or train, `{folder}` validation or training, `{city}` the stem up to the first `_`."""

    name: str
    title: str
    labels: str
    """The built-in list of its classes."""
    images: str
    expected_images: int
    """In the split val."""
    preparation: str
    panoptic_json: str = ""
    panoptic: str = ""
    semantic: str = ""
    semantic_ignore: int = 255
    """In the files; a source hands out its own `ignore_label`."""
    instance: str = ""
    instance_protocol: str = "coco"
    """"coco": mask AP of COCO; "cityscapes": AP by Cityscapes' own definition."""
    min_size: int = 800
    max_size: int = 1333
    numeric_ids: bool = False
    """The image id is the number that the stem is."""

    @property
    def truths(self) -> frozenset[str]:
        return frozenset(kind for kind in KINDS if getattr(self, kind))

    def layout(self, split: str = "val") -> str:
        """The files that are expected, for messages."""
        names = ("images", "panoptic", "panoptic_json", "semantic", "instance")
        paths = [(name, fill(getattr(self, name), split)) for name in names if getattr(self, name)]
        lines = "".join(f"\n    {name}: {path}" for name, path in paths)
        return f"expected under the root folder ($DETECTRON2_DATASETS) is:{lines}\n{self.preparation}"


def _prepared(name: str) -> str:
    return f"`fcclip prepare {name}` makes what is derived"


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="coco_panoptic",
            title="COCO panoptic",
            labels="coco_panoptic",
            images="coco/{split}2017/{stem}.jpg",
            panoptic_json="coco/annotations/panoptic_{split}2017.json",
            panoptic="coco/panoptic_{split}2017/{stem}.png",
            semantic="coco/panoptic_semseg_{split}2017/{stem}.png",
            instance="coco/annotations/instances_{split}2017.json",
            expected_images=5000,
            numeric_ids=True,
            preparation=_prepared("coco_panoptic"),
        ),
        Benchmark(
            name="ade20k_150",
            title="ADE20K-150",
            labels="ade20k_150",
            images="ADEChallengeData2016/images/{folder}/{stem}.jpg",
            panoptic_json="ADEChallengeData2016/ade20k_panoptic_{split}.json",
            panoptic="ADEChallengeData2016/ade20k_panoptic_{split}/{stem}.png",
            semantic="ADEChallengeData2016/annotations_detectron2/{folder}/{stem}.png",
            instance="ADEChallengeData2016/ade20k_instance_{split}.json",
            expected_images=2000,
            preparation=_prepared("ade20k_150"),
        ),
        Benchmark(
            name="cityscapes",
            title="Cityscapes",
            labels="cityscapes_19",
            images="cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
            panoptic_json="cityscapes/gtFine/cityscapes_panoptic_{split}.json",
            panoptic="cityscapes/gtFine/cityscapes_panoptic_{split}/{stem}_gtFine_panoptic.png",
            semantic="cityscapes/gtFine/{split}/{city}/{stem}_gtFine_labelTrainIds.png",
            instance="cityscapes/gtFine/{split}/{city}/{stem}_gtFine_instanceIds.png",
            instance_protocol="cityscapes",
            min_size=1024,
            max_size=2560,
            expected_images=500,
            preparation=_prepared("cityscapes"),
        ),
        Benchmark(
            name="mapillary_vistas",
            title="Mapillary Vistas",
            labels="mapillary_vistas_65",
            images="mapillary_vistas/{folder}/images/{stem}.jpg",
            panoptic_json="mapillary_vistas/{folder}/panoptic/panoptic_2018.json",
            panoptic="mapillary_vistas/{folder}/panoptic/{stem}.png",
            semantic="mapillary_vistas/{folder}/labels/{stem}.png",
            semantic_ignore=65,
            min_size=1024,
            max_size=2560,
            expected_images=2000,
            preparation="all of it comes with the data set (v1.2)",
        ),
        Benchmark(
            name="ade20k_847",
            title="ADE20K-847",
            labels="ade20k_847",
            images="ADE20K_2021_17_01/images_detectron2/{folder}/{stem}.jpg",
            semantic="ADE20K_2021_17_01/annotations_detectron2/{folder}/{stem}.tif",
            semantic_ignore=65535,
            expected_images=2000,
            preparation=_prepared("ade20k_847"),
        ),
        Benchmark(
            name="pascal_context_59",
            title="PASCAL Context 59",
            labels="pascal_context_59",
            images="pascal_ctx_d2/images/{folder}/{stem}.jpg",
            semantic="pascal_ctx_d2/annotations_ctx59/{folder}/{stem}.png",
            expected_images=5105,
            preparation=_prepared("pascal_context_59"),
        ),
        Benchmark(
            name="pascal_context_459",
            title="PASCAL Context 459",
            labels="pascal_context_459",
            images="pascal_ctx_d2/images/{folder}/{stem}.jpg",
            semantic="pascal_ctx_d2/annotations_ctx459/{folder}/{stem}.tif",
            semantic_ignore=65535,
            expected_images=5105,
            preparation=_prepared("pascal_context_459"),
        ),
        Benchmark(
            name="pascal_voc_20",
            title="PASCAL VOC 20",
            labels="pascal_voc_20",
            images="pascal_voc_d2/images/{folder}/{stem}.jpg",
            semantic="pascal_voc_d2/annotations_pascal20/{folder}/{stem}.png",
            expected_images=1449,
            preparation=_prepared("pascal_voc_20"),
        ),
        Benchmark(
            name="pascal_voc_21",
            title="PASCAL VOC 21",
            labels="pascal_voc_21",
            images="pascal_voc_d2/images/{folder}/{stem}.jpg",
            semantic="pascal_voc_d2/annotations_pascal21/{folder}/{stem}.png",
            expected_images=1449,
            preparation=_prepared("pascal_voc_21"),
        ),
        Benchmark(
            name="coco_stuff_171",
            title="COCO-Stuff 171",
            labels="coco_stuff_171",
            images="coco/{split}2017/{stem}.jpg",
            semantic="coco/stuffthingmaps_detectron2/{split}2017/{stem}.png",
            expected_images=5000,
            numeric_ids=True,
            preparation=_prepared("coco_stuff_171"),
        ),
    )
}


def open_benchmark(
    name: str,
    root: str | PathLike,
    labels: Vocabulary | None = None,
    split: str = "val",
    truths: Collection[str] | None = None,
) -> EvaluationSource:
    """The images of a benchmark with their truth.

    Args:
        root: the folder that holds `coco`, `ADEChallengeData2016`, ...
        labels: names to put for the benchmark's own; see `relabelled`.
        split: val or train.
        truths: some of the benchmark's; None for all of them. What is not asked for need not be there.

    Raises:
        DataError: a missing folder or file (the expected layout is told), an annotation file of another kind, a
            vocabulary that does not fit.
        ValueError: an unknown name, split or truth.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
    benchmark, root = BENCHMARKS[name], Path(root)
    wanted = benchmark.truths if truths is None else frozenset(truths)
    if not wanted or not wanted <= benchmark.truths:
        raise ValueError(f"{name} has the truths {', '.join(sorted(benchmark.truths))}, not {sorted(wanted)}")
    own = Vocabulary.builtin(benchmark.labels)
    vocabulary = own if labels is None else relabelled(own, labels, benchmark.labels)
    return _Opening(benchmark, root, split, vocabulary).source(wanted)


def relabelled(own: Vocabulary, labels: Vocabulary, name: str = "the data set") -> Vocabulary:
    """The classes of `own`, their order, ids, and things or stuff, with the names of `labels`.

    Classes are matched by id where both have the same ids, else one by one in their order: published label files
    (FC-CLIP, OpenSeg) have the order of the data set but often other ids.

    Raises DataError when the numbers of classes differ.
    """
    if labels.num_classes != own.num_classes:
        raise DataError(
            "the vocabulary", f"has {labels.num_classes} classes, but {name} is annotated with {own.num_classes}"
        )
    by_id = {cls.id: cls for cls in labels.classes}
    matched = labels.classes
    if set(by_id) == {cls.id for cls in own.classes}:
        matched = tuple(by_id[cls.id] for cls in own.classes)
    return Vocabulary(
        tuple(ClassName(new.names, old.isthing, old.id) for new, old in zip(matched, own.classes, strict=True))
    )


class _Opening:
    """Opens one benchmark."""

    def __init__(self, benchmark: Benchmark, root: Path, split: str, vocabulary: Vocabulary):
        self.benchmark, self.root, self.split, self.vocabulary = benchmark, root, split, vocabulary
        self.layout = benchmark.layout(split)
        self.class_of = class_by_id(vocabulary)
        things = {index for index, cls in enumerate(vocabulary.classes) if cls.isthing}
        self.thing_of = {id_: index for id_, index in self.class_of.items() if index in things}

    def source(self, wanted: frozenset[str]) -> EvaluationSource:
        expect_folder(self.root)
        panoptic = self._panoptic() if "panoptic" in wanted else None
        coco = self.benchmark.instance_protocol != "cityscapes"
        instance = None
        if "instance" in wanted and coco:
            instance = CocoInstances(self._path(self.benchmark.instance), self.thing_of, self.layout)
        images = self._images(panoptic, instance, wanted)
        stems = [image.stem for image in images]
        semantic = None
        if "semantic" in wanted:
            semantic = SemanticMaps(self._existing(self.benchmark.semantic, stems), self._semantic_table())
        if "instance" in wanted and not coco:
            instance = CityscapesInstances(self._existing(self.benchmark.instance, stems), self.thing_of)
        return FileSource(
            images, self.vocabulary, panoptic=panoptic, semantic=semantic, instance=instance, layout=self.layout
        )

    def _panoptic(self) -> PanopticAnnotations:
        maps = self._path(self.benchmark.panoptic, "x").parent
        return PanopticAnnotations(self._path(self.benchmark.panoptic_json), maps, self.class_of, self.layout)

    def _images(self, panoptic, instance, wanted: frozenset[str]) -> list[ImageFile]:
        """Those of the panoptic annotation, else those of the instances, else those that have a label map."""
        if panoptic is not None:
            ending = _ending(self.benchmark.panoptic)
            where = str(self._path(self.benchmark.panoptic_json))
            stems = [_without(name, ending, where) for name in panoptic.map_names]
            ids = panoptic.image_ids
        elif instance is not None:
            ids = list(instance.images)
            where = self._path(self.benchmark.instance)
            stems = [Path(plain_name(image.get("file_name"), where)).stem for image in instance.images.values()]
        else:
            stems = self._stems(self.benchmark.semantic if "semantic" in wanted else self.benchmark.instance)
            ids = [int(stem) if self.benchmark.numeric_ids and stem.isdecimal() else stem for stem in stems]
        return [
            ImageFile(id_, stem, self._path(self.benchmark.images, stem)) for id_, stem in zip(ids, stems, strict=True)
        ]

    def _stems(self, pattern: str) -> list[str]:
        """Of the files that `pattern` stands for, sorted."""
        folder = self._path(pattern.partition("/{city}")[0]) if "{city}" in pattern else self._path(pattern, "x").parent
        ending = _ending(pattern)
        paths = list_files(folder, f"*/*{ending}" if "{city}" in pattern else f"*{ending}", self.layout)
        return sorted(path.name.removesuffix(ending) for path in paths)

    def _existing(self, pattern: str, stems: list[str]) -> Mapping[str, Path]:
        paths = {stem: self._path(pattern, stem) for stem in stems}
        refuse_if_absent(list(paths.values()), self.layout)
        return paths

    def _semantic_table(self):
        ignored = self.benchmark.semantic_ignore
        return label_table({k: k for k in range(self.vocabulary.num_classes)}, ignored, self.vocabulary)

    def _path(self, pattern: str, stem: str = "") -> Path:
        return self.root / fill(pattern, self.split, stem)


def fill(pattern: str, split: str, stem: str | None = None) -> str:
    """A path of a Benchmark with its blanks filled; without a `stem`, `*` for what depends on the image."""
    filled = pattern.replace("{split}", split).replace("{folder}", SPLITS[split])
    if stem is None:
        return filled.replace("{stem}", "*").replace("{city}", "*")
    return filled.replace("{city}", stem.partition("_")[0]).replace("{stem}", stem)


def _ending(pattern: str) -> str:
    return pattern.rpartition("{stem}")[2]


def _without(name: str, ending: str, where: str) -> str:
    if not name.endswith(ending):
        raise DataError(where, f"the map {name!r} does not end with {ending!r}")
    return plain_name(name.removesuffix(ending), where)
