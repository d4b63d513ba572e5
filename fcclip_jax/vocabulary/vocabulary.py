"""A vocabulary: the classes that an image is searched for, and the rows of text that stand for them."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from fcclip_jax.vocabulary import class_names, tokenizer
from fcclip_jax.vocabulary.class_names import ClassName
from fcclip_jax.vocabulary.prompts import TEMPLATES, fill_templates

# How alike (difflib's ratio) a single word and a built-in list's name must be to be taken for a slip of the pen.
_SLIP = 0.8


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """K classes with S synonyms in all. Row s of the text embeddings belongs to synonym s; a class's logit is the
    largest of its rows', as in the reference, so the order within a class does not matter.

    Immutable, comparable and hashable. Raises TypeError for anything but a tuple of ClassName,
    ValueError for no classes and for what `check_classes` refuses.
    """

    classes: tuple[ClassName, ...]

    def __post_init__(self):
        if not isinstance(self.classes, tuple) or not all(isinstance(cls, ClassName) for cls in self.classes):
            raise TypeError("a Vocabulary holds a tuple of ClassName; Vocabulary.parse takes words, lists and files")
        if not self.classes:
            raise ValueError("the vocabulary is empty: give at least one word")
        class_names.check_classes(self.classes, [f"class {n}" for n in range(1, self.num_classes + 1)])

    @classmethod
    def parse(
        cls,
        spec: "Vocabulary | str | PathLike | Iterable[str | ClassName]",
        stuff: str | Iterable[str] | None = None,
    ) -> "Vocabulary":
        """A vocabulary from whatever a person gives; `stuff` is handed to `with_stuff`.

        `spec`: a Vocabulary; a list of words or `name,synonym` lines; a path; or a string, which is, in this order,
        the exact name of a built-in list, the name of an existing file, or words (`cat, kitten; dog`: see
        `class_names.parse_words`). Where nothing says which classes are things and which stuff, all are things.

        Raises ValueError with the place of the mistake; OSError for a path that cannot be read; TypeError for another
        type of `spec`.
        """
        if isinstance(spec, Vocabulary):
            vocabulary = spec
        elif isinstance(spec, str):
            vocabulary = cls._from_string(spec)
        elif isinstance(spec, PathLike):
            vocabulary = cls.from_file(spec)
        elif isinstance(spec, Iterable) and not isinstance(spec, bytes | Mapping):
            vocabulary = cls(class_names.parse_items(spec))
        else:
            raise TypeError(f"a vocabulary is words, a list, a file or a built-in list's name, not {spec!r:.60}")
        return vocabulary if stuff is None else vocabulary.with_stuff(stuff)

    @classmethod
    def _from_string(cls, text: str) -> "Vocabulary":
        if text in builtin_names():
            return cls.builtin(text)
        if _is_file(text):
            return cls.from_file(text)
        if "\n" not in text and text.endswith(".txt"):
            raise ValueError(f"no label file {text!r:.200} here")
        slip = difflib.get_close_matches(text.strip().lower(), builtin_names(), n=1, cutoff=_SLIP)
        if slip and not set(text) & set(",;\n"):
            raise ValueError(f"no built-in list {text!r}; did you mean {slip[0]!r}? (as a word, write {text + ';'!r})")
        return cls(class_names.parse_words(text))

    @classmethod
    def from_file(cls, path: str | PathLike) -> "Vocabulary":
        """The classes of a label file (`class_names.parse_label_lines` says what a line may be).

        Raises OSError when the file cannot be read, ValueError with file and line for what is wrong in it.
        """
        return cls(class_names.read_label_file(path))

    @classmethod
    def builtin(cls, name: str) -> "Vocabulary":
        """One of the lists that come with the package. Raises ValueError, naming all lists, for another name."""
        if name not in builtin_names():
            raise ValueError(f"no built-in list {name!r:.60}; there are: {', '.join(builtin_names())}")
        text = (_labels() / f"{name}.txt").read_text(encoding="utf-8")
        return cls(class_names.parse_label_lines(text, source=name))

    @property
    def names(self) -> tuple[str, ...]:
        """The K names that are shown."""
        return tuple(cls.name for cls in self.classes)

    @property
    def num_classes(self) -> int:
        """K, without void."""
        return len(self.classes)

    @property
    def synonyms(self) -> tuple[str, ...]:
        """All S synonyms, class after class."""
        return tuple(name for cls in self.classes for name in cls.names)

    @property
    def synonym_to_class(self) -> Int32[np.ndarray, " S"]:
        """The class of each synonym row, rising from 0 to K-1."""
        counts = [len(cls.names) for cls in self.classes]
        return np.repeat(np.arange(self.num_classes, dtype=np.int32), counts)

    @property
    def isthing(self) -> Bool[np.ndarray, " K"]:
        """True for things, False for stuff."""
        return np.array([cls.isthing for cls in self.classes], dtype=bool)

    def prompts(self) -> list[str]:
        """The S*14 sentences for the text tower: the 14 of the first synonym, then of the second, and so on."""
        return fill_templates(self.synonyms)

    def overlong(self, context_length: int = tokenizer.CONTEXT_LENGTH) -> list[str]:
        """The synonyms of which at least one prompt does not fit into `context_length` tokens and would be cut."""
        return [
            word
            for word in dict.fromkeys(self.synonyms)
            if any(tokenizer.token_count(prompt) > context_length for prompt in fill_templates([word]))
        ]

    def seen(self, train: "Vocabulary") -> Bool[np.ndarray, " K"]:
        """Which classes share at least one synonym with any class of `train`, letter by letter, as in
        the reference: those lean on the in-vocabulary classifier, the others on the out-vocabulary one."""
        known = set(train.synonyms)
        return np.array([not known.isdisjoint(cls.names) for cls in self.classes], dtype=bool)

    def with_stuff(self, stuff: str | Iterable[str]) -> "Vocabulary":
        """The same classes, those named in `stuff` (`sky, road`, or a list of words) marked as stuff.

        A word means the class of that shown name, else every class that has it as a synonym; letter case does not
        matter. Raises ValueError, with the nearest names, for a word that is neither.
        """
        words = stuff.replace(";", ",").replace("\n", ",").split(",") if isinstance(stuff, str) else list(stuff)
        if isinstance(stuff, str) and not stuff.strip():
            return self
        marked: set[int] = set()
        for word in words:
            found = self._find(word.strip().lower())
            if not found:
                raise ValueError(self._unknown(word.strip()))
            marked.update(found)
        return Vocabulary(
            tuple(dataclasses.replace(cls, isthing=False) if n in marked else cls for n, cls in enumerate(self.classes))
        )

    def _find(self, word: str) -> list[int]:
        shown = [n for n, cls in enumerate(self.classes) if cls.name.strip().lower() == word]
        return shown or [
            n for n, cls in enumerate(self.classes) if any(name.strip().lower() == word for name in cls.names)
        ]

    def _unknown(self, word: str) -> str:
        near = difflib.get_close_matches(word.lower(), {name.lower(): None for name in self.synonyms})
        if not word:
            return "blank word among the stuff classes"
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else "it is not in the vocabulary"
        return f"cannot mark {word!r:.60} as stuff: {hint}"

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the templates and the synonyms in order: all that the text embeddings depend on
        besides the weights. Grouping into classes, things and stuff, and ids leave it unchanged."""
        return hashlib.sha256(json.dumps([TEMPLATES, self.synonyms]).encode("ascii")).hexdigest()

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        return {
            "classes": [
                {"names": list(cls.names), "isthing": cls.isthing} | ({} if cls.id is None else {"id": cls.id})
                for cls in self.classes
            ]
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Vocabulary":
        """The inverse of `to_dict`, for what was read from JSON. Raises ValueError, naming the entry, for anything
        else."""
        entries = data.get("classes") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise ValueError('a vocabulary in JSON is {"classes": [{"names": [...], "isthing": true}, ...]}')
        classes = []
        for n, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict) or not {"names"} <= entry.keys() <= {"names", "isthing", "id"}:
                raise ValueError(f"class {n}: must have `names`, may have `isthing` and `id`, this is {entry!r:.80}")
            names, isthing, id_ = entry["names"], entry.get("isthing", True), entry.get("id")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"class {n}: `names` must be a list of strings, this is {names!r:.60}")
            if not isinstance(isthing, bool):
                raise ValueError(f"class {n}: `isthing` must be true or false, this is {isthing!r:.60}")
            if id_ is not None and type(id_) is not int:
                raise ValueError(f"class {n}: `id` must be a whole number, this is {id_!r:.60}")
            try:
                classes.append(ClassName(tuple(names), isthing, id_))
            except ValueError as error:
                raise ValueError(f"class {n}: {error}") from None
        return cls(tuple(classes))


def builtin_names() -> tuple[str, ...]:
    """Names of the lists that come with the package, in alphabetical order."""
    return tuple(
        sorted(entry.name.removesuffix(".txt") for entry in _labels().iterdir() if entry.name.endswith(".txt"))
    )


def _labels():
    return resources.files("fcclip_jax.vocabulary") / "labels"


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character: words then
        return False
