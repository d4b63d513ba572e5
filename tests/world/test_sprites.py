"""Fetching and rendering, with an npm of our own: nothing comes from a network."""

import base64
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest

from fcclip_jax.prepare_command import EMOJI_SCENES
from fcclip_jax.world import sprites as module
from fcclip_jax.world.names import STYLES, THINGS
from fcclip_jax.world.sprites import EDGE, EmojiSet, SpriteError, Sprites, fetch_set, prepare_sprites, render_sheet


def icons():
    """Every thing a red bar, 20 wide and 10 high in a square of 40; the last one by another name."""
    body = '<path fill="#f00" d="M10 15h20v10h-20z"/>'
    slugs = [thing.slug for thing in THINGS]
    return {
        "prefix": "own",
        "width": 40,
        "height": 40,
        "icons": {slug: {"body": body} for slug in slugs[:-1]} | {"other": {"body": body}},
        "aliases": {slugs[-1]: {"parent": "other"}},
    }


@pytest.fixture
def package():
    data, content = io.BytesIO(), json.dumps(icons()).encode()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Puts a shell script in npm's place."""

    def install(script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return install


def accept(monkeypatch, package):
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    monkeypatch.setitem(module.SETS, "noto", EmojiSet("1.0.0", integrity, "Apache-2.0", "Nobody"))


def test_without_npm_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpriteError, match=r"npm is not installed.*nodejs.org"):
        prepare_sprites(tmp_path / "sprites")


def test_npm_without_a_network(npm):
    npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(SpriteError, match="could not fetch @iconify-json/noto: npm error code ENOTFOUND"):
        fetch_set("noto")


def test_another_package_is_refused(npm, tmp_path, package):
    (tmp_path / "other.tgz").write_bytes(package)
    npm(f"cp {tmp_path}/other.tgz .")
    with pytest.raises(SpriteError, match="not the file that it was"):
        fetch_set("noto")


def test_a_set_is_fetched_once_and_rendered(npm, tmp_path, package, monkeypatch):
    pytest.importorskip("resvg_py")
    (tmp_path / "set.tgz").write_bytes(package)
    accept(monkeypatch, package)
    npm(f"cp {tmp_path}/set.tgz .")
    folder = prepare_sprites(tmp_path / "sprites", ("noto",))
    assert "noto: Nobody, Apache-2.0" in (folder / "LICENCES.txt").read_text()
    npm("exit 1")
    prepare_sprites(folder, ("noto",))
    picture = Sprites(folder, ("noto",)).picture("noto", len(THINGS) - 1)
    assert picture.shape == (EDGE // 2, EDGE, 4)
    inner = picture[2:-2, 2:-2]
    assert (inner == (255, 0, 0, 255)).all()
    assert list(folder.glob("*.partial")) == []


def test_a_set_without_a_thing_is_refused():
    pytest.importorskip("resvg_py")
    short = icons()
    del short["icons"][THINGS[3].slug]
    with pytest.raises(SpriteError, match=f"no picture {THINGS[3].slug}"):
        render_sheet(short)


def test_sheets_of_another_size_are_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "noto.png")
    with pytest.raises(SpriteError, match="other pictures than this version draws"):
        Sprites(tmp_path, ("noto",))


def test_every_set_says_whose_it_is():
    assert tuple(module.SETS) == STYLES
    for style, emoji_set in module.SETS.items():
        assert emoji_set.integrity.startswith("sha512-") and emoji_set.licence in emoji_set.line(style)
        assert "SA" not in emoji_set.licence  # share-alike would bind the scenes


def test_the_command_says_in_one_line_what_is_missing(tmp_path, monkeypatch, capsys):
    from fcclip_jax.cli import main

    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["prepare", EMOJI_SCENES, "--root", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: npm is not installed") and error.count("\n") == 1
