import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.vocabulary import ClassName, Vocabulary, builtin_names

ORACLE = Path(__file__).parents[3] / "shared" / "oracle" / "vocabularies.json"


@pytest.fixture
def animals():
    return Vocabulary.parse("cat, kitten; dog; sky, clouds")


def test_rows_and_classes(animals):
    assert animals.names == ("cat", "dog", "sky")
    assert animals.num_classes == 3
    assert animals.synonyms == ("cat", "kitten", "dog", "sky", "clouds")
    assert animals.synonym_to_class.tolist() == [0, 0, 1, 2, 2]
    assert animals.synonym_to_class.dtype == np.int32
    assert animals.isthing.tolist() == [True, True, True]
    assert len(animals.prompts()) == 5 * 14
    assert animals.prompts()[14] == "a photo of a kitten."


def test_every_way_to_give_one(animals, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("cat,kitten\ndog\nsky,clouds\n", encoding="utf-8")
    for spec in (animals, str(path), path, ["cat,kitten", "dog", "sky, clouds"], iter(animals.classes)):
        assert Vocabulary.parse(spec) == animals
    assert Vocabulary.parse("coco_panoptic") == Vocabulary.builtin("coco_panoptic")
    assert hash(Vocabulary.parse(path)) == hash(animals)


def test_a_name_beside_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cat").write_text("5:lynx\n", encoding="utf-8")
    Path("ade20k_150").write_text("5:lynx\n", encoding="utf-8")
    assert Vocabulary.parse("cat").names == ("lynx",)
    assert Vocabulary.parse("ade20k_150").num_classes == 150
    assert Vocabulary.parse("cat;").names == ("cat",)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "the vocabulary is empty"),
        ([], "the vocabulary is empty"),
        ("ade20k-150", "no built-in list 'ade20k-150'; did you mean 'ade20k_150'?"),
        ("Coco_Panoptic", "did you mean 'coco_panoptic'?"),
        ("absent/labels.txt", "no label file 'absent/labels.txt'"),
        ("cat, cat", "stands already at word 1"),
    ],
)
def test_what_cannot_be_a_vocabulary(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Vocabulary.parse(spec)


@pytest.mark.parametrize("spec", [3, None, b"cat", {"cat": 1}])
def test_another_type(spec):
    with pytest.raises(TypeError, match="a vocabulary is words"):
        Vocabulary.parse(spec)


def test_a_slip_can_be_meant():
    assert Vocabulary.parse("cityscapes;").names == ("cityscapes",)


@pytest.mark.parametrize("text", ["x" * 10_000, "cat\0dog", "cat\0, " + "y" * 5000])
def test_words_that_no_path_can_be(text):
    assert Vocabulary.parse(text).num_classes == len(text.split(","))


def test_builtin_by_name():
    assert set(builtin_names()) >= {"ade20k_150", "cityscapes_19", "coco_panoptic"}
    with pytest.raises(ValueError, match="no built-in list 'ade'; there are: ade20k_150"):
        Vocabulary.builtin("ade")


def test_construction_checks_itself():
    with pytest.raises(ValueError, match="empty"):
        Vocabulary(())
    with pytest.raises(TypeError):
        Vocabulary(["cat"])
    with pytest.raises(ValueError, match="class 2: the class 'cat' stands already at class 1"):
        Vocabulary((ClassName(("cat",)), ClassName(("cat", "kitten"))))


def test_seen_needs_one_shared_synonym_letter_by_letter(animals):
    train = Vocabulary.parse(["feline,kitten", "Dog", "cloud"])
    assert animals.seen(train).tolist() == [True, False, False]
    assert animals.seen(animals).all()


def test_stuff(animals):
    assert animals.with_stuff("sky").isthing.tolist() == [True, True, False]
    assert animals.with_stuff("Clouds, dog").isthing.tolist() == [True, False, False]
    assert animals.with_stuff(["cat"]).isthing.tolist() == [False, True, True]
    assert animals.with_stuff("") == animals.with_stuff([]) == animals
    assert Vocabulary.parse("cat, sky", stuff="sky").isthing.tolist() == [True, False]
    assert animals.isthing.all()


def test_stuff_prefers_the_shown_name():
    vocabulary = Vocabulary.parse("car, lorry; lorry; van, lorry")
    assert vocabulary.with_stuff("lorry").isthing.tolist() == [True, False, True]
    assert Vocabulary.parse("car, lorry; van, lorry").with_stuff("lorry").isthing.tolist() == [False, False]


def test_stuff_that_is_no_class(animals):
    with pytest.raises(ValueError, match="cannot mark 'skye' as stuff: did you mean 'sky'"):
        animals.with_stuff("skye")
    with pytest.raises(ValueError, match="cannot mark 'motorway' as stuff: it is not in the vocabulary"):
        animals.with_stuff("sky, motorway")
    with pytest.raises(ValueError, match="blank word"):
        animals.with_stuff("sky,,cat")


def test_fingerprint_is_of_words_in_order_alone(animals):
    # Written down: it must be the same in every process and version, or every cache on disk goes stale.
    assert Vocabulary.parse(["cat"]).fingerprint() == FINGERPRINT_OF_CAT
    assert animals.with_stuff("sky").fingerprint() == animals.fingerprint()
    assert Vocabulary.parse("cat, kitten, dog, sky, clouds").fingerprint() == animals.fingerprint()
    assert Vocabulary.parse("kitten, cat; dog; sky, clouds").fingerprint() != animals.fingerprint()
    assert Vocabulary.parse(["a,b"]).fingerprint() != Vocabulary((ClassName(("a,b",)),)).fingerprint()


FINGERPRINT_OF_CAT = "7dbc75497d60ea634a6a257fb66478d2ff58b2ff27c20d30b74cdcd5dd268963"


def test_overlong():
    # The longest prompts frame the word with 8 tokens, start and end; 67 more fill the 77.
    fits, too_long = "cat " * 66 + "cat", "cat " * 67 + "cat"
    assert Vocabulary.parse([fits, "dog"]).overlong() == []
    assert Vocabulary.parse([f"dog,{too_long}"]).overlong() == [too_long]
    assert Vocabulary.parse(["dog"]).overlong(context_length=10) == ["dog"]


NAMES = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3)


@given(st.lists(st.tuples(NAMES, st.booleans(), st.none() | st.integers(0, 10**6)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=200)
def test_json_round_trip(entries):
    try:
        vocabulary = Vocabulary(tuple(ClassName(tuple(names), thing, id_) for names, thing, id_ in entries))
    except ValueError:
        return
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again.fingerprint() == vocabulary.fingerprint()


def test_json_of_a_small_one():
    vocabulary = Vocabulary.from_dict({"classes": [{"names": ["cat"], "isthing": False, "id": 3}, {"names": ["dog"]}]})
    assert vocabulary.classes == (ClassName(("cat",), isthing=False, id=3), ClassName(("dog",)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a vocabulary in JSON is"),
        ({"classes": "cat"}, "a vocabulary in JSON is"),
        ({"classes": []}, "empty"),
        ({"classes": ["cat"]}, "class 1: must have `names`"),
        ({"classes": [{"names": ["cat"], "colour": 3}]}, "class 1: must have `names`"),
        ({"classes": [{"names": ["cat"]}, {"names": "dog"}]}, "class 2: `names` must be a list of strings"),
        ({"classes": [{"names": ["cat"], "isthing": 1}]}, "class 1: `isthing` must be true"),
        ({"classes": [{"names": ["cat"], "id": "7"}]}, "class 1: `id` must be a whole number, this is '7'"),
        ({"classes": [{"names": ["cat"], "id": True}]}, "class 1: `id` must be a whole number, this is True"),
        ({"classes": [{"names": ["cat"], "id": -7}]}, "class 1: the id of 'cat' must be a whole number from 0, not -7"),
        ({"classes": [{"names": [3]}]}, "class 1: `names` must be a list of strings"),
        ({"classes": [{"names": []}]}, "class 1: a class needs at least one name"),
        ({"classes": [{"names": ["cat", " "]}]}, "class 1: word 2 of ('cat', ' ') is blank"),
    ],
)
def test_json_that_is_no_vocabulary(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Vocabulary.from_dict(data)


@pytest.mark.skipif(not ORACLE.exists(), reason="the oracle's files are not beside this checkout")
@pytest.mark.parametrize(("name", "synonyms"), [("ade", 403), ("coco", 254)])
def test_the_reference_lists_give_the_reference_rows(name, synonyms):
    lists = json.loads(ORACLE.read_text(encoding="utf-8"))
    vocabulary = Vocabulary.parse(lists[name]["stuff_classes"])
    train = Vocabulary.parse(lists["coco"]["stuff_classes"])
    assert len(vocabulary.synonyms) == synonyms
    assert np.bincount(vocabulary.synonym_to_class).tolist() == lists[name]["num_templates"]
    assert vocabulary.seen(train).tolist() == [bool(flag) for flag in lists[name]["category_overlapping_mask"]]
