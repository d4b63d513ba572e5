"""The tiny model as a released checkpoint, and what the commands make of it, once for all tests here."""

import pytest
from checkpoints import GOLDEN

from convert import fcclip
from tests.formula_weights import fill, read_manifest, write_checkpoint


@pytest.fixture(scope="session")
def manifest():
    """Name -> (shape, dtype) of the tiny FC-CLIP, in PyTorch's order."""
    return read_manifest(GOLDEN / "manifest_tiny.json")


@pytest.fixture(scope="session")
def state_dict(manifest):
    """Name -> float32 array. Not to be written to."""
    return {name: fill(name, shape) for name, (shape, _) in manifest.items()}


@pytest.fixture(scope="session")
def released(manifest, tmp_path_factory):
    """`{"model": state dict}` as a .pth."""
    path = tmp_path_factory.mktemp("released") / "fcclip_tiny.pth"
    write_checkpoint(manifest, path)
    return path


@pytest.fixture(scope="session")
def folder(released, tmp_path_factory):
    """The model folder converted from it. Not to be written to."""
    output = tmp_path_factory.mktemp("converted") / "fcclip_tiny"
    assert fcclip.main(["--input", str(released), "--output", str(output)]) == 0
    return output
