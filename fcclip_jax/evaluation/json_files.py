"""Reading JSON files that others wrote: every complaint names the file and the layout that was expected. And writing
our own."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike, layout: str, fields: Mapping[str, type] | None = None) -> Any:
    """Parses a file.

    Args:
        layout: what was expected, for the message.
        fields: what the top object must have; None: the top is a list.

    Raises:
        ValueError: no such file, no JSON, or another layout.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. Expected {layout}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Expected {layout}") from None
    if fields is None:
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{path} is not a list of objects. Expected {layout}")
        return content
    for name, kind in fields.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise ValueError(f"{path} has no {kind.__name__} {name!r}. Expected {layout}")
        if kind is list and not all(isinstance(entry, dict) for entry in content[name]):
            raise ValueError(f"{name!r} in {path} is not a list of objects. Expected {layout}")
    return content


def expect_folder(path: str | os.PathLike, content: str) -> Path:
    """The folder as a Path. ValueError: there is none; the message says what was expected in it."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no such folder: {path}. Expected {content} in it")
    return path


def index_by(entries: Sequence[Mapping], key: str, path: str | os.PathLike, layout: str) -> dict[Any, Mapping]:
    """`entry[key] -> entry`. ValueError: an entry has no such key, or two have the same."""
    index = {}
    for entry in entries:
        if not isinstance(entry.get(key), int | str):
            raise ValueError(f"an entry of {path} has no {key!r} that is a number or a string. Expected {layout}")
        if entry[key] in index:
            raise ValueError(f"{path} has two entries with {key} {entry[key]!r}")
        index[entry[key]] = entry
    return index


def write_json(path: Path, content: Mapping) -> None:
    """Writes a file aside and renames it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
