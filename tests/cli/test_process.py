"""`fcclip` as a process: how fast it answers, and how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fcclip_jax import cli
from fcclip_jax.version import __version__
from tests.cli.command import SMALL, WORDS, names

ROOT = Path(__file__).parents[2]


def fresh_process(*arguments, **options):
    command = [sys.executable, "-X", "importtime", "-m", "fcclip_jax.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        ((), 2, "usage: fcclip"),
        (("--help",), 0, "segment photos with any words"),
        (("--version",), 0, __version__),
        (("segment", "--help"), 0, "--overlap_threshold"),
        (("segment",), 2, "error: the following arguments are required: IMAGE (see `fcclip segment --help`)"),
        (("paint",), 2, "error: argument COMMAND: invalid choice: 'paint'"),
    ],
)
def test_what_needs_no_model_answers_at_once(arguments, code, said):
    begun = time.perf_counter()
    done = fresh_process(*arguments)
    seconds = time.perf_counter() - begun
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code and said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "argparse" in imported and not imported & {"jax", "flax", "numpy", "PIL", "regex", "ftfy"}
    # A twentieth of a second where this was written; machines under load take their time.
    assert seconds < 5


def test_an_interrupt_leaves_whole_files(photos, tmp_path, tiny_model, private_cache):
    for number in range(2000):  # far more than are done before the interrupt arrives, on any machine
        shutil.copy(photos / "a.png", photos / f"{number:04}.png")
    arguments = ("segment", photos, *WORDS, "--checkpoint", tiny_model, "--output", tmp_path / "out", *SMALL)
    # What a shell starts in the background ignores interrupts, and so would what is started from there.
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{listening}; from fcclip_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    # Nobody reads what it prints of each photo, and a full pipe would hold it up.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "out" / "0000.json").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        # Python drops an interrupt that falls into a callback of its garbage collector: a person would press again.
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.EXIT_INTERRUPTED
    assert "interrupted: the files that are written are complete" in err and "Traceback" not in err
    written = names(tmp_path / "out")
    assert 0 < len(written) < 4 * 203 and not any(name.startswith(".") for name in written)
    for name in written:
        if name.endswith(".json"):
            json.loads((tmp_path / "out" / name).read_text())
        else:
            Image.open(tmp_path / "out" / name).load()


def test_whoever_reads_the_output_may_go(photos, tmp_path, tiny_model, private_cache):
    arguments = ("segment", photos, *WORDS, "--checkpoint", tiny_model, "--output", tmp_path / "out", *SMALL)
    command = [sys.executable, "-m", "fcclip_jax.cli", *map(str, arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    assert not any(name.startswith(".") for name in names(tmp_path / "out"))
