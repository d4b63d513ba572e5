"""Reading files that others wrote: every complaint names the file, and the layout that was expected where one is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcclip_jax.data.records import DataError

_LOOK_FOR = 100  # files, at the start: one missing is a matter for its turn, all of them mean another folder


def told(layout: str) -> str:
    """The end of a message."""
    return f"; {layout}" if layout else ""


def expect_folder(path: Path, layout: str = "") -> Path:
    """`path`. Raises DataError when it is no folder."""
    if not path.is_dir():
        raise DataError(path, f"no such folder{told(layout)}")
    return path


def plain_name(name: object, where: Path | str) -> str:
    """`name`, for files that are written under it. Raises DataError, naming the file `where` it stands, when it is no
    plain file name: a folder in it could lead anywhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise DataError(where, f"has {name!r:.80} where the plain name of a file is expected")
    return name


def list_files(folder: Path, pattern: str, layout: str = "") -> list[Path]:
    """The files that match, sorted, without hidden ones. Raises DataError when there is no folder or no such file."""
    expect_folder(folder, layout)
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DataError(folder, f"holds no file {pattern}{told(layout)}")
    return found


def refuse_if_absent(paths: Sequence[Path], layout: str = "") -> None:
    """Raises DataError when not one of the first hundred files is there."""
    if paths and not any(path.is_file() for path in paths[:_LOOK_FOR]):
        raise DataError(paths[0], f"no such file{told(layout)}")


def read_file(path: Path) -> bytes:
    """Raises DataError for a file that is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(path, "no such file") from None
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error


def read_json(path: Path, layout: str = "") -> Any:
    """Raises DataError for a file that is missing or no JSON."""
    if not path.is_file():
        raise DataError(path, f"no such file{told(layout)}")
    try:
        return json.loads(read_file(path))
    except UnicodeDecodeError as error:
        raise DataError(path, f"not JSON: {error}") from None
    except json.JSONDecodeError as error:
        raise DataError(path, f"not JSON, or cut short: line {error.lineno}: {error.msg}") from None


def json_entries(path: Path, content: Any, key: str, kind: str = "an annotation file of COCO") -> list[dict]:
    """`content[key]`, a list of objects. Raises DataError, saying that `path` is not `kind`, for anything else."""
    entries = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(path, f"not {kind}: it has no list `{key}`")
    return entries
