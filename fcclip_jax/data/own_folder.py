"""Data of one's own: a folder of images, and panoptic maps with their JSON, label maps, or COCO instances."""

from os import PathLike
from pathlib import Path

from fcclip_jax.data.evaluation_sources import (
    CocoInstances,
    EvaluationSource,
    FileSource,
    ImageFile,
    PanopticAnnotations,
    SemanticMaps,
    label_table,
)
from fcclip_jax.data.files import expect_folder
from fcclip_jax.data.records import DataError
from fcclip_jax.data.sources import class_by_id
from fcclip_jax.vocabulary import Vocabulary

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAP_ENDINGS = (".png", ".tif", ".tiff")
LAYOUT = """expected is one or more of:
    images with panoptic maps (PNG, id = R + 256 G + 65536 B) and a JSON of COCO panoptic
    images with label maps of the same names (one channel, PNG or TIFF, the label file's ids in them)
    images with a JSON of COCO instances"""


def open_folder(
    images: str | PathLike,
    vocabulary: Vocabulary,
    *,
    panoptic: str | PathLike | None = None,
    annotations: str | PathLike | None = None,
    semantic: str | PathLike | None = None,
    instances: str | PathLike | None = None,
    ignored: int | None = None,
) -> EvaluationSource:
    """Images in a folder (or folders inside it) with one or more kinds of truth.

    Args:
        vocabulary: its ids are the category ids of the JSON files, and the values in the label maps; without ids,
            label maps hold the place of the class, from 0.
        panoptic, annotations: a folder of panoptic maps and its JSON.
        semantic: a folder of label maps, under the names of the images.
        instances: a JSON of COCO instances.
        ignored: the value in label maps that is not counted: 255, and 65535 where 255 is a class, if not given.

    Raises:
        DataError: a folder or file is missing, two files would be the same image, categories do not fit the
            vocabulary.
        ValueError: no truth is given, or only one of `panoptic` and `annotations`.
    """
    if (panoptic is None) != (annotations is None):
        raise ValueError("panoptic maps and their JSON (`panoptic` and `annotations`) go together; only one is given")
    if panoptic is None and semantic is None and instances is None:
        raise ValueError(f"no annotations are given; {LAYOUT}")
    folder = expect_folder(Path(images), LAYOUT)
    things = {cls.id: k for k, cls in enumerate(vocabulary.classes) if cls.isthing and cls.id is not None}
    pan = inst = sem = None
    if annotations is not None:
        pan = PanopticAnnotations(Path(annotations), Path(panoptic), class_by_id(vocabulary), LAYOUT)
    if instances is not None:
        class_by_id(vocabulary)  # refuses one without ids
        inst = CocoInstances(Path(instances), things, LAYOUT)
    if pan is not None:
        files = _named(folder, list(zip(pan.image_ids, pan.image_names, strict=True)))
    elif inst is not None:
        nameless = [id_ for id_, image in inst.images.items() if not isinstance(image.get("file_name"), str)]
        if nameless:
            raise DataError(instances, f"image {nameless[0]} has no file_name")
        files = _named(folder, [(id_, image["file_name"]) for id_, image in inst.images.items()])
    else:
        files = _matched(folder, expect_folder(Path(semantic), LAYOUT))
    if semantic is not None:
        maps = _by_key(expect_folder(Path(semantic), LAYOUT), MAP_ENDINGS)
        paths = {f.stem: maps.get(_key(folder, f.path), Path(semantic) / f"{_key(folder, f.path)}.png") for f in files}
        sem = SemanticMaps(paths, _value_table(vocabulary, ignored))
    return FileSource(files, vocabulary, panoptic=pan, semantic=sem, instance=inst, layout=LAYOUT)


def _named(folder: Path, names: list[tuple[int | str, str]]) -> list[ImageFile]:
    """Image files by id and name."""
    keys = [str(Path(name).with_suffix("").as_posix()) for _, name in names]
    return [ImageFile(id_, stem, folder / name) for (id_, name), stem in zip(names, _stems(keys, folder), strict=True)]


def _matched(folder: Path, maps: Path) -> list[ImageFile]:
    """The images that have a label map; one map without an image is told in its turn."""
    images, labels = _by_key(folder, IMAGE_ENDINGS), _by_key(maps, MAP_ENDINGS)
    keys = sorted(labels)
    if not keys:
        raise DataError(maps, f"holds no label map; {LAYOUT}")
    paths = [images.get(key, folder / f"{key}.jpg") for key in keys]
    stems = _stems(keys, maps)
    return [ImageFile(stem, stem, path) for stem, path in zip(stems, paths, strict=True)]


def _stems(keys: list[str], where: Path) -> list[str]:
    """A name for each image's prediction files: the file's own, with its folders where that would not be enough."""
    short = [key.rpartition("/")[2] for key in keys]
    stems = short if len(set(short)) == len(short) else [key.replace("/", "_") for key in keys]
    twice = len(set(stems)) != len(stems)
    if twice:
        first = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(where, f"two images would both be called {first}; rename one")
    return stems


def _by_key(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in endings or path.name.startswith(".") or not path.is_file():
            continue
        key = _key(folder, path)
        if key in found:
            raise DataError(path, f"and {found[key]} are files of the same image")
        found[key] = path
    return found


def _key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _value_table(vocabulary: Vocabulary, ignored: int | None):
    ids = [cls.id for cls in vocabulary.classes]
    values = {k if None in ids else id_: k for k, id_ in enumerate(ids)}
    if max(values) > 65535:
        raise DataError("the vocabulary", f"has the id {max(values)}; label maps hold 65535 at most")
    if ignored is None:
        ignored = 65535 if max(values) >= 255 else 255
    if not 0 <= ignored <= 65535 or ignored in values:
        raise ValueError(f"the value that is not counted must be from 0 to 65535 and no class, not {ignored}")
    return label_table(values, ignored, vocabulary)
