"""Classes as people write them: label files, strings on a command line, lists of words.

A class line is `name,synonym,...`, with ` [stuff]` or ` [thing]` behind it where that matters. As in FC-CLIP, `, `
becomes `,` before the split and nothing else is taken from the synonyms; only the ends of the line are trimmed.
Doubled synonyms are kept: they change nothing, and the rows of the text classifier stay those of the reference.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

# FC-CLIP's and OpenSeg's label files hold this name on ids that their dataset does not use.
UNUSED_ID = "invalid_class_id"

_MARK = re.compile(r"(?:^|\s+)\[(stuff|things?)\]$", re.IGNORECASE)
_ID_LINE = re.compile(r"[0-9]+\s*:")


@dataclasses.dataclass(frozen=True)
class ClassName:
    """One class. `names`: its synonyms, the first is the one shown; `isthing`: counted one by one (thing) or not
    (stuff); `id`: its number in a dataset, where it has one.

    Raises TypeError when `names` is no tuple; ValueError for no name, a blank name, a name that is not valid Unicode
    or an id below 0.
    """

    names: tuple[str, ...]
    isthing: bool = True
    id: int | None = None

    def __post_init__(self):
        if not isinstance(self.names, tuple):  # a list would make the record unhashable, a string would be letters
            raise TypeError(f"a class needs a tuple of names, this is {type(self.names).__name__}: {self.names!r:.60}")
        if not self.names:
            raise ValueError("a class needs at least one name")
        for position, name in enumerate(self.names, start=1):
            if _is_blank(name):
                alone = len(self.names) == 1
                raise ValueError("blank class name" if alone else f"word {position} of {self.names!r:.60} is blank")
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"{name!r:.60} is not valid Unicode text (a lone surrogate)")
        if self.id is not None and self.id < 0:
            raise ValueError(f"the id of {self.name!r:.60} must be a whole number from 0, not {self.id}")

    @property
    def name(self) -> str:
        """The name that is shown."""
        return self.names[0]


def read_label_file(path: str | PathLike) -> tuple[ClassName, ...]:
    """The classes of a UTF-8 label file; the lines are those of `parse_label_lines`.

    Raises OSError when the file cannot be read, ValueError (with file and line) for what is wrong in it.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    return parse_label_lines(text, source=str(path))


def parse_label_lines(text: str, source: str = "labels") -> tuple[ClassName, ...]:
    """Classes from lines `id:name,synonym,...`, or `name,synonym,...` when no line has an id.

    A name may hold colons: the first one ends the id. Blank lines, lines that begin with `#`, and the ids marked
    `invalid_class_id` are passed over. `source` names the text in messages.

    Raises ValueError, naming `source` and the line, for a missing or bad id, a blank word, and what `check_classes`
    refuses; and for text without a class.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    with_ids = any(_ID_LINE.match(line) for _, line in lines)
    classes, places = [], []
    for number, line in lines:
        place = f"{source}, line {number}"
        id_ = None
        if with_ids or ":" in line:
            id_, line = _split_id(line, place)
        if line != UNUSED_ID:
            classes.append(_class_line(line, place, id_))
            places.append(place)
    if not classes:
        raise ValueError(f"{source}: holds no class; write one class a line, `id:name,synonym,...`")
    check_classes(classes, places)
    return tuple(classes)


def parse_words(text: str) -> tuple[ClassName, ...]:
    """Classes from a string as typed on a command line.

    `;` or a new line parts classes and `,` parts synonyms: `cat, kitten; dog`. Without `;` and new lines every word
    between commas is a class. A `;` may end a line, so that `cat, kitten;` is one class. Blank lines, and blanks
    around words, are dropped.

    Raises ValueError, naming the place, for blank words and what `check_classes` refuses; and for a blank text.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    parts = [part for line in lines for part in line.removesuffix(";").split(";")]
    one_list = len(lines) == 1 and ";" not in text
    if one_list:
        parts = text.split(",")
    if all(_is_blank(part) for part in parts):
        raise ValueError("the vocabulary is empty: give at least one word")
    places = [f"{'word' if one_list else 'class'} {n} of {text.strip()!r:.80}" for n in range(1, len(parts) + 1)]
    trimmed = (",".join(word.strip() for word in part.split(",")) for part in parts)
    classes = [_class_line(part, place) for part, place in zip(trimmed, places, strict=True)]
    check_classes(classes, places)
    return tuple(classes)


def parse_items(items: Iterable[str | ClassName]) -> tuple[ClassName, ...]:
    """Classes from a list of class lines (`name,synonym,...`), words or ready `ClassName`s.

    Raises TypeError for an item of another type, ValueError as `parse_words` does.
    """
    items = list(items)
    if not items:
        raise ValueError("the vocabulary is empty: give at least one word")
    places = [f"class {n} of the list" for n in range(1, len(items) + 1)]
    classes = []
    for item, place in zip(items, places, strict=True):
        if not isinstance(item, str | ClassName):
            raise TypeError(f"{place} must be a string or a ClassName, this is {type(item).__name__}: {item!r:.60}")
        classes.append(item if isinstance(item, ClassName) else _class_line(item, place))
    check_classes(classes, places)
    return tuple(classes)


def check_classes(classes: Sequence[ClassName], places: Sequence[str]) -> None:
    """Refuses what cannot be told apart: one id on two classes, or one shown name (letter case aside) on two classes,
    unless both ids and synonyms part them: the 847 classes of ADE20K hold two kinds of `pier`.

    A synonym may stand in several classes, as in the published lists.

    Raises ValueError naming both places.
    """
    by_id: dict[int, int] = {}
    by_name: dict[str, list[int]] = {}
    for n, cls in enumerate(classes):
        if cls.id is not None:
            if cls.id in by_id:
                raise ValueError(f"{places[n]}: the id {cls.id} stands already at {places[by_id[cls.id]]}")
            by_id[cls.id] = n
        namesakes = by_name.setdefault(_as_read(cls.name), [])
        for other in namesakes:
            same_words = set(map(_as_read, cls.names)) == set(map(_as_read, classes[other].names))
            parted = not same_words and None not in (cls.id, classes[other].id)
            if not parted:
                raise ValueError(f"{places[n]}: the class {cls.name!r:.60} stands already at {places[other]}")
        namesakes.append(n)


def _as_read(name: str) -> str:
    """As the tokenizer reads it: letter case and the width of blanks are lost."""
    return " ".join(name.lower().split())


def _class_line(line: str, place: str, id_: int | None = None) -> ClassName:
    line = line.strip()
    mark = _MARK.search(line)
    names = line[: mark.start()] if mark else line
    isthing = mark is None or mark[1].lower() != "stuff"
    try:
        return ClassName(tuple(names.replace(", ", ",").split(",")), isthing, id_)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _split_id(line: str, place: str) -> tuple[int, str]:
    """The id before the first colon, and the rest of the line."""
    id_text, colon, rest = line.partition(":")
    id_text = id_text.strip()
    if not colon:
        raise ValueError(f"{place}: no id; other lines have one, so write `id:{line:.60}`")
    # More digits than this are no id, and Python refuses to read thousands of them.
    if not re.fullmatch("[0-9]{1,18}", id_text):
        raise ValueError(f"{place}: {id_text!r:.60} before the colon is no id; ids are whole numbers from 0")
    return int(id_text), rest.strip()


def _is_blank(name: str) -> bool:
    """Nothing to see: separators, control and format characters only (a zero-width space is one)."""
    return all(unicodedata.category(letter) in ("Zs", "Zl", "Zp", "Cc", "Cf") for letter in name)
