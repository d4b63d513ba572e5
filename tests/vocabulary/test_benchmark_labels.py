"""The lists of the semantic benchmarks, Mapillary Vistas and LVIS: against facts of the datasets and each other.

`test_labels.py` checks every list alike: plain words, unique shown names, prompts that fit.
"""

import time
from importlib import resources

import pytest

from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.vocabulary.class_names import parse_label_lines

# Things and stuff of each list. Mapillary's, COCO-Stuff's and LVIS's are the datasets' own.
COUNTS = {
    "mapillary_vistas_65": (37, 28),
    "ade20k_847": (664, 183),
    "pascal_context_59": (31, 28),
    "pascal_context_459": (370, 89),
    "pascal_voc_20": (20, 0),
    "pascal_voc_21": (20, 1),
    "coco_stuff_171": (80, 91),
    "lvis_1203": (1203, 0),
}
# The numbers of the 59 classes among all 459: the mapping of the Detail toolkit.
# fmt: off
CONTEXT_59 = [
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
]
# fmt: on
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def classes(name):
    return Vocabulary.builtin(name).classes


def ids(name):
    return [cls.id for cls in classes(name)]


def by_name(name):
    return {cls.name: cls for cls in classes(name)}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    isthing = Vocabulary.builtin(name).isthing
    assert (isthing.sum(), (~isthing).sum()) == COUNTS[name]
    assert len(isthing) == int(name.rpartition("_")[2])


@pytest.mark.parametrize("name", COUNTS)
def test_no_word_stands_in_two_classes(name):
    # Two classes with one word have one score there, and the first would always win.
    synonyms = [word.lower() for word in Vocabulary.builtin(name).synonyms]
    twice = {word for word in synonyms if synonyms.count(word) > 1}
    assert not twice


def test_ids():
    assert ids("mapillary_vistas_65") == list(range(1, 66))
    assert ids("pascal_voc_20") == list(range(1, 21))
    assert ids("pascal_voc_21") == list(range(21))
    assert ids("pascal_context_59") == CONTEXT_59
    assert ids("pascal_context_459") == list(range(1, 460))
    assert ids("coco_stuff_171") == [n for n in range(1, 183) if n not in COCO_UNUSED]
    assert ids("lvis_1203") == list(range(1, 1204))


@pytest.mark.parametrize(
    ("name", "landmarks"),
    [
        # Place in the list: number, shown name. In ADE20K place and number are unrelated: the benchmark's order goes
        # by frequency, the numbers mostly by the alphabet.
        (
            "ade20k_847",
            {
                0: (2978, "wall"),
                11: (1831, "person"),
                58: (2793, "toilet"),
                199: (303, "bucket"),
                500: (430, "cat"),
                846: (3148, "adding machine"),
            },
        ),
        (
            "mapillary_vistas_65",
            {0: (1, "bird"), 19: (20, "person"), 64: (65, "ego vehicle")},
        ),
        ("pascal_voc_21", {0: (0, "background"), 1: (1, "aeroplane"), 15: (15, "person"), 20: (20, "tv monitor")}),
        ("pascal_context_459", {0: (1, "accordion"), 283: (284, "person"), 430: (431, "unknown"), 458: (459, "wool")}),
        ("coco_stuff_171", {0: (1, "person"), 79: (90, "toothbrush"), 80: (92, "banner"), 170: (182, "wood")}),
        (
            "lvis_1203",
            {0: (1, "aerosol can"), 792: (793, "person"), 1202: (1203, "zucchini")},
        ),
    ],
)
def test_landmarks(name, landmarks):
    found = classes(name)
    assert {n: (found[n].id, found[n].name) for n in landmarks} == landmarks


def test_stuff_of_mapillary_vistas():
    # The classes without the `instances` flag. The marked crosswalk and its lines are things there.
    expected = {*range(3, 9), *range(10, 20), *range(25, 33), 44, 59, 64, 65}
    assert {cls.id for cls in classes("mapillary_vistas_65") if not cls.isthing} == expected


def test_voc_21_is_background_and_voc_20():
    background, *others = classes("pascal_voc_21")
    assert tuple(others) == classes("pascal_voc_20")
    named = {word for cls in others for word in cls.names}
    elsewhere = [cls.name for cls in classes("pascal_context_59") if named.isdisjoint(cls.names)]
    assert background.names == ("background", *elsewhere)
    assert len(elsewhere) == 39


def test_voc_20_is_in_context_59():
    context = by_name("pascal_context_59")
    assert all(context[cls.name].isthing for cls in classes("pascal_voc_20"))


def test_context_59_is_in_context_459_under_its_numbers():
    full = {cls.id: cls for cls in classes("pascal_context_459")}
    for cls in classes("pascal_context_59"):
        assert cls.name in full[cls.id].names
        assert cls.isthing == full[cls.id].isthing, cls
    # The 459 call it `table`, as the list of the dataset does.
    assert [cls.name for cls in classes("pascal_context_59") if cls.name != full[cls.id].name] == ["dining table"]


@pytest.mark.parametrize(
    ("name", "exceptions"), [("pascal_context_59", []), ("pascal_context_459", ["light bulb", "table"])]
)
def test_context_marks_things_as_coco_does(name, exceptions):
    coco = {word: cls.isthing for cls in classes("coco_panoptic") for word in cls.names}
    other = [cls.name for cls in classes(name) if coco.get(cls.name, cls.isthing) != cls.isthing]
    assert other == exceptions


def test_coco_stuff_agrees_with_coco_panoptic():
    stuff = {cls.id: cls for cls in classes("coco_stuff_171")}
    panoptic = [cls for cls in classes("coco_panoptic") if cls.id <= 182]  # from 183 on, merged classes
    assert len(panoptic) == 80 + 36
    for cls in panoptic:
        assert (stuff[cls.id].name, stuff[cls.id].isthing) == (cls.name, cls.isthing)


def test_ade20k_150_is_in_ade20k_847():
    full = by_name("ade20k_847")
    assert [cls.name for cls in classes("ade20k_150") if full[cls.name].isthing != cls.isthing] == []


def test_lvis_holds_the_things_of_coco():
    lvis = set(Vocabulary.builtin("lvis_1203").synonyms)
    absent = [cls.name for cls in classes("coco_panoptic")[:80] if lvis.isdisjoint(cls.names)]
    assert absent == ["hot dog", "potted plant"]  # LVIS has sausage and flowerpot in their place


def test_seen_classes():
    coco = Vocabulary.builtin("coco_panoptic")

    def unseen(name):
        vocabulary = Vocabulary.builtin(name)
        return [word for word, seen in zip(vocabulary.names, vocabulary.seen(coco), strict=True) if not seen]

    assert unseen("pascal_voc_20") == unseen("pascal_voc_21") == []
    assert unseen("pascal_context_59") == ["bag", "bedclothes", "computer", "ground", "sign", "wood"]
    assert not set(unseen("coco_stuff_171")) & {cls.name for cls in coco.classes}
    for name in ("ade20k_847", "pascal_context_459", "lvis_1203"):
        assert len(unseen(name)) > 0.75 * Vocabulary.builtin(name).num_classes


@pytest.mark.parametrize("name", COUNTS)
def test_every_file_says_where_it_comes_from(name):
    text = (resources.files("fcclip_jax.vocabulary") / "labels" / f"{name}.txt").read_text(encoding="ascii")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(header)] == header
    for word in ("Source", "rder", "umbers", "Licence"):
        assert word in "\n".join(header)


def test_the_longest_list_is_read_at_once():
    text = (resources.files("fcclip_jax.vocabulary") / "labels" / "lvis_1203.txt").read_text(encoding="ascii")
    before = time.perf_counter()
    assert len(parse_label_lines(text)) == 1203
    # About a hundredth of a second; comparing each line with each other takes seconds.
    assert time.perf_counter() - before < 1
