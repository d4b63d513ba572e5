"""A checkpoint of the released size, 846 arrays and 1.5 GB, in both directions: the same bits, little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import MANIFESTS

from convert.checkpoint_files import open_checkpoint
from tests.formula_weights import fill, read_manifest, write_checkpoint

pytestmark = pytest.mark.slow

# A process of its own: its peak memory, interpreter and libraries included, and its seconds.
PROGRAM = """
import importlib, json, resource, sys, time
started = time.monotonic()
code = importlib.import_module(sys.argv[1]).main(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"code": code, "peak": peak, "seconds": time.monotonic() - started}))
"""


def measured(module, *arguments):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PROGRAM, module, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0, done.stderr
    print(f"{module}: {result['seconds']:.1f} s, {result['peak'] / 1e6:.0f} MB")
    return result


def test_full_size(tmp_path):
    manifest = read_manifest(MANIFESTS / "fcclip_convnext_large_d_320.json.gz")
    source = tmp_path / "fcclip_cocopan.pth"
    write_checkpoint(manifest, source)
    there = measured("convert.fcclip", "--input", source, "--output", tmp_path / "model")
    size = source.stat().st_size
    source.unlink()
    back = measured("convert.to_fcclip", "--checkpoint", tmp_path / "model", "--output", tmp_path / "back.safetensors")
    # Arrays pass one at a time: the interpreter, jax and the largest array (152 MB, and its transposed copy).
    assert size > 1.4e9 and there["peak"] < size and back["peak"] < size
    with open_checkpoint(tmp_path / "back.safetensors") as checkpoint:
        assert list(checkpoint.arrays) == list(manifest) and len(manifest) == 846
        for name, (shape, dtype) in manifest.items():
            assert (checkpoint.shapes[name], checkpoint.arrays[name].dtype) == (shape, dtype)
            assert checkpoint.read(name).tobytes() == fill(name, shape).tobytes(), name
