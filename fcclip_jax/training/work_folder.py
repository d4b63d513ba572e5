"""The work folder of a run: on a file system, or in an object store (`gs://`) that every host sees.

What only a file system can hold (a data set drawn on the spot, event files, the model while it is written) lies in
`local_part` of it, and goes up at the end.
"""

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

from etils import epath

Folder = Path | epath.Path


def open_folder(path: str | os.PathLike) -> Folder:
    """A path that reads and writes as pathlib's do.

    Raises:
        ValueError: a kind of address that is not supported, or the package for it is not installed.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    if not text.startswith("gs://") or len(text.split("/")[2]) < 3:
        raise ValueError(f"a work folder is a folder, or gs://BUCKET/FOLDER, not {text!r}")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text} needs gcsfs: pip install 'fcclip_jax[gcs]'")
    return epath.Path(text)


def is_remote(folder: Folder) -> bool:
    """Whether it is in an object store: no renaming of folders, no appending to files."""
    return os.fspath(folder).startswith("gs://")


def write_whole(path: Folder, text: str) -> None:
    """So that nobody ever reads half of it: an object appears whole by itself, a file is written aside and renamed."""
    if is_remote(path):
        path.write_text(text)
        return
    aside = path.with_suffix(".partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def local_part(folder: Folder) -> Path:
    """The folder itself, or for one in an object store its stand-in on this machine, the same for every process."""
    if not is_remote(folder):
        return Path(folder)
    name = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fcclip-{os.getuid()}-{name}"


def upload(folder: Folder, *names: str) -> None:
    """Copies files and folders of `local_part` to an object store; nothing where the folder is local."""
    if not is_remote(folder):
        return
    local = local_part(folder)
    for name in names:
        found = [local / name] if (local / name).is_file() else sorted((local / name).rglob("*"))
        for path in found:
            if path.is_file():
                target = folder / str(path.relative_to(local))
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(target, overwrite=True)
