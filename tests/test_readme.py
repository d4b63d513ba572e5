"""Every command of the README runs, on small stand-ins for the files it names."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import benchmark_layouts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.split("    #")[0].rstrip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tiny_model, tmp_path_factory) -> Path:
    """A working folder that holds what the README's commands read."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copy(tiny_checkpoint, here / "fcclip_cocopan.pth")
    shutil.copytree(tiny_model, here / "models" / "fcclip_large")
    (here / "photos").mkdir()
    with Image.open(ROOT / "tests" / "golden" / "coffee.jpg") as image:
        small = image.resize((96, 64))
    small.save(here / "photo.jpg")
    small.save(here / "photos" / "one.jpg")
    (here / "my_words.txt").write_text("0:cup\n1:table,desk [stuff]\n")
    shutil.copytree(ROOT / "configs", here / "configs")
    benchmark_layouts.write_ade(here / "datasets")
    return here


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "FCCLIP_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def as_run_here(command: str) -> list[str]:
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        return [sys.executable, *words[1:]]
    if words[0] == "fcclip":
        small = {
            "segment": ["--min_size", "64"],
            "export": ["--min_size", "64", "--max_size", "64"],
            "evaluate": ["--config.min_size", "64", "--config.max_size", "96"],
        }
        return [sys.executable, "-m", "fcclip_jax.cli", *words[1:], *small.get(words[1], [])]
    return words


CONVERT_AND_SEGMENT = [
    c for c in commands() if c.startswith(("python -m convert.fcclip", "python -m convert.to", "fcclip segment"))
]

SMALL_WORLD = [c for c in commands() if "emoji" in c]
EVALUATE = [c for c in commands() if c.startswith(("fcclip prepare", "fcclip evaluate")) and c not in SMALL_WORLD]
EXPORT = [c for c in commands() if c.startswith("fcclip export")]


def test_the_list_is_complete():
    others = {c for c in commands() if c not in CONVERT_AND_SEGMENT + EVALUATE + EXPORT + SMALL_WORLD}
    kinds = {re.match(r"(make \w+|python -m convert\.\w+|fcclip \w+|pip install)", c).group() for c in others}
    expected = {"make demo", "make test", "python -m convert.download", "python -m convert.open_clip", "pip install"}
    assert kinds == expected | {"fcclip train"}
    assert (len(CONVERT_AND_SEGMENT), len(EVALUATE), len(EXPORT), len(SMALL_WORLD)) == (5, 2, 1, 2)


@pytest.mark.parametrize("command", CONVERT_AND_SEGMENT)
def test_convert_and_segment(command, folder):
    done = run(as_run_here(command), folder)
    assert done.returncode == 0, done.stderr
    if "--output out" in command:
        stem = "photo" if " photo.jpg " in command else "one"
        ids = np.asarray(Image.open(folder / "out" / f"{stem}.panoptic.png"))
        assert ids.shape == (64, 96, 3)
    else:
        assert (folder / shlex.split(command)[-1]).exists()


def test_prepare_and_evaluate(folder, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    for command in EVALUATE:
        done = run(as_run_here(command), folder)
        assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "results" / "figures.json").read_text())
    assert figures["images"] == 2
    assert "ADE20K" in (folder / "results" / "report.md").read_text()


@pytest.mark.parametrize("command", SMALL_WORLD)
def test_the_small_worlds_commands_are_understood(command, folder):
    """They fetch pictures and train for hours: tests/world runs what is behind them on little."""
    done = run([*as_run_here(command), "--help"], ROOT if "-m" in command else folder)
    assert done.returncode == 0, done.stderr
    for option in (word for word in shlex.split(command) if word.startswith("--")):
        assert option in done.stdout


@pytest.mark.parametrize("command", EXPORT)
def test_export(command, folder):
    done = run(as_run_here(command), folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "exported" / "predict_64x64.jax").is_file()


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_targets(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_download_without_a_network(folder):
    command = next(c for c in commands() if "convert.download" in c)
    done = run(as_run_here(command), folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "convert.open_clip" in done.stderr  # says how to go on by hand


def test_open_clip_names_a_missing_file(folder):
    command = next(c for c in commands() if "convert.open_clip" in c)
    done = run(as_run_here(command), folder)
    assert done.returncode == 2
    assert "open_clip_pytorch_model.bin" in done.stderr


def test_training_configurations_load():
    from fcclip_jax.experiment import load_config

    for command in (c for c in commands() if c.startswith("fcclip train")):
        words = shlex.split(command)
        overrides = [
            (k.removeprefix("--config."), v) for k, v in itertools.pairwise(words) if k.startswith("--config.")
        ]
        config = load_config(ROOT / words[words.index("--config") + 1], overrides)
        assert config.steps > 0


def test_python_example(folder, monkeypatch):
    """The README's Python lines, word for word."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FCCLIP_CACHE", str(folder / "cache"))
    image = np.asarray(Image.open(folder / "photo.jpg"))
    names = {"image": image}
    exec(compile(code.replace('fcclip_large")', 'fcclip_large", min_size=64)'), "README.md", "exec"), names)
    assert names["result"].panoptic.shape == image.shape[:2]
    assert names["result"].draw().shape == image.shape
