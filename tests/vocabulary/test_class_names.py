import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcclip_jax.vocabulary.class_names import (
    ClassName,
    parse_items,
    parse_label_lines,
    parse_words,
    read_label_file,
)


def names(classes):
    return [cls.names for cls in classes]


# Label files, in every dialect that is about; the lines are our own.


def test_ids_synonyms_and_marks():
    classes = parse_label_lines("3:sky,clouds [stuff]\n12: lynx, bobcat\n7:kiosk [thing]\n")
    assert classes == (
        ClassName(("sky", "clouds"), isthing=False, id=3),
        ClassName(("lynx", "bobcat"), id=12),
        ClassName(("kiosk",), id=7),
    )


def test_openseg_dialect_skips_unused_ids():
    text = "0:invalid_class_id\n1:otter,otters\n2:invalid_class_id\n3:eel"  # no line end at the end
    assert [(cls.id, cls.names) for cls in parse_label_lines(text)] == [
        (1, ("otter", "otters")),
        (3, ("eel",)),
    ]


def test_id_zero_may_be_a_class():
    assert parse_label_lines("0:background,shrub,rug\n1:lynx")[0].id == 0


def test_lvis_dialect_brackets_apostrophes_slashes_capitals():
    line = "17:galosh (type of shoe),cobbler's shoe,wiper (for window/screen),T-bar,CD case"
    assert names(parse_label_lines(line)) == [tuple(line[3:].split(","))]


def test_only_comma_blank_becomes_comma_and_doubles_stay():
    (cls,) = parse_label_lines("1:wood wall, wall  wood ,rug,rug,  mat")
    assert cls.names == ("wood wall", "wall  wood ", "rug", "rug", " mat")


def test_one_shown_name_with_other_ids_and_other_synonyms_is_two_classes():
    assert len(parse_label_lines("5:pot\n9:pot,flowerpot")) == 2


def test_a_synonym_may_stand_in_two_classes():
    assert len(parse_label_lines("1:lorry,car\n2:car")) == 2


def test_names_may_hold_colons():
    assert names(parse_label_lines("4:Alien: Covenant poster,a:b")) == [("Alien: Covenant poster", "a:b")]


def test_lines_without_ids_comments_blank_lines_and_windows():
    text = "\ufeff# my list\r\nlynx,bobcat\r\n\r\n  sky [stuff]\r\n".removeprefix("\ufeff")
    assert parse_label_lines(text) == (ClassName(("lynx", "bobcat")), ClassName(("sky",), isthing=False))


def test_file_with_byte_order_mark(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("1:čamac\n2:猫,ネコ\n".encode("utf-8-sig"))
    assert names(read_label_file(path)) == [("čamac",), ("猫", "ネコ")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels: holds no class"),
        ("# nothing\n0:invalid_class_id\n", "labels: holds no class"),
        ("1:cat\n2:cat,,dog", "labels, line 2: word 2 of ('cat', '', 'dog') is blank"),
        ("1:cat\n\n2:", "labels, line 3: blank class name"),
        ("1:cat\n2: [stuff]", "labels, line 2: blank class name"),
        ("1:cat\n2:\u200b", "labels, line 2: blank class name"),
        ("1:cat\ndog", "labels, line 2: no id"),
        ("dog\n1:cat", "labels, line 1: no id"),
        ("1:cat\nx2:dog", "labels, line 2: 'x2' before the colon is no id"),
        ("cat:dog", "labels, line 1: 'cat' before the colon is no id"),
        ("1:cat\n-2:dog", "labels, line 2: '-2' before the colon is no id"),
        ("1:cat\n1.5:dog", "labels, line 2: '1.5' before the colon is no id"),
        ("1:cat\n٣:dog", "labels, line 2: '٣' before the colon is no id"),
        ("1:cat\n" + "9" * 5000 + ":dog", "before the colon is no id"),
        ("1:cat\n:dog", "labels, line 2: '' before the colon is no id"),
        ("1:cat\n2:dog\n1:eel", "labels, line 3: the id 1 stands already at labels, line 1"),
        ("1:cat\n2:Cat", "labels, line 2: the class 'Cat' stands already at labels, line 1"),
        ("cat\neel\ncat,kitten", "labels, line 3: the class 'cat' stands already at labels, line 1"),
    ],
)
def test_mistakes_in_a_label_file_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_label_lines(text)


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"1:cat\n2:dog\n3:caf\xe9\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: not UTF-8")):
        read_label_file(path)


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("1:cat\n2:cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.txt, line 2.*mine\.txt, line 1"):
        read_label_file(path)
    with pytest.raises(FileNotFoundError):
        read_label_file(Path(tmp_path / "absent.txt"))


# Strings from a command line.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [("cat",)]),
        ("cat, dog ,traffic light", [("cat",), ("dog",), ("traffic light",)]),
        ("cat , kitten; dog", [("cat", "kitten"), ("dog",)]),
        ("cat, kitten;", [("cat", "kitten")]),
        ("cat\ndog, puppy\n", [("cat",), ("dog", "puppy")]),
        ("cat;\r\n\r\n\n dog;\n", [("cat",), ("dog",)]),
        ("12:30 train", [("12:30 train",)]),
        ("😀;猫, ねこ", [("😀",), ("猫", "ねこ")]),
    ],
)
def test_words(text, expected):
    assert names(parse_words(text)) == expected


def test_words_with_marks():
    assert [cls.isthing for cls in parse_words("cat, sky [stuff], road [STUFF]")] == [True, False, False]
    assert parse_words("sky, clouds [stuff]; cat")[0] == ClassName(("sky", "clouds"), isthing=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the vocabulary is empty"),
        (" \n ", "the vocabulary is empty"),
        (";", "the vocabulary is empty"),
        (",,", "the vocabulary is empty"),
        ("cat,,dog", "word 2 of 'cat,,dog': blank class name"),
        ("cat,dog,", "word 3 of 'cat,dog,': blank class name"),
        ("a; ;b", "class 2 of 'a; ;b': blank class name"),
        ("a;;", "class 2 of 'a;;': blank class name"),
        ("a,,b;c", "class 1 of 'a,,b;c': word 2 of ('a', '', 'b') is blank"),
        ("cat, dog, CAT", "word 3 of 'cat, dog, CAT': the class 'CAT' stands already at word 1"),
        ("a\udcffb, c", "lone surrogate"),
    ],
)
def test_mistakes_in_words_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_words(text)


@given(st.text(alphabet="ab ,;\n[]stuff\u200b\udc00:", max_size=25))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_classes_or_a_value_error(text):
    for parse in (parse_words, parse_label_lines):
        try:
            classes = parse(text)
        except ValueError as error:
            assert str(error)
        else:
            assert all(name.strip() for cls in classes for name in cls.names)


WORDS = st.lists(
    st.text(alphabet="abcdé猫-' ", min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, max_size=3
)


@given(st.lists(WORDS, min_size=1, max_size=5, unique_by=lambda words: " ".join(words[0].split())))
@settings(deadline=None, max_examples=100)
def test_written_and_read_again(lists):
    expected = [tuple(words) for words in lists]
    assert names(parse_words("; ".join(", ".join(words) for words in lists) + ";")) == expected
    assert names(parse_items([",".join(words) for words in lists])) == expected
    lines = [f"{n}:{','.join(words)}" for n, words in enumerate(lists)]
    assert names(parse_label_lines("\n".join(lines))) == expected


# Python lists.


def test_items():
    ready = ClassName(("eel",), id=4)
    assert parse_items(["cat", "dog, puppy [stuff]", ready]) == (
        ClassName(("cat",)),
        ClassName(("dog", "puppy"), isthing=False),
        ready,
    )


def test_mistakes_in_items_are_named():
    with pytest.raises(ValueError, match="the vocabulary is empty"):
        parse_items([])
    with pytest.raises(ValueError, match="class 2 of the list: blank class name"):
        parse_items(["cat", " "])
    with pytest.raises(TypeError):
        parse_items([3])


def test_a_class_checks_itself():
    with pytest.raises(ValueError, match="at least one name"):
        ClassName(())
    with pytest.raises(ValueError, match="whole number from 0, not -1"):
        ClassName(("cat",), id=-1)
    for names in (["cat"], "cat"):
        with pytest.raises(TypeError):
            ClassName(names)
