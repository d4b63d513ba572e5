import numpy as np
import pytest
from PIL import Image

from fcclip_jax import cli
from tests.cli.command import SMALL


@pytest.fixture
def fcclip(capsys):
    """Runs the command in this process; gives exit code, stdout and stderr."""

    def call(*arguments):
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def photos(tmp_path):
    """Three photos of one padded size, two kinds of file, two of them with one stem."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(18)
    for name, size in (("a.png", (90, 120)), ("b.jpg", (60, 80)), ("b.png", (45, 60))):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture
def segment(fcclip, tiny_model, tmp_path):
    def call(*arguments, output=tmp_path / "out"):
        return fcclip("segment", *arguments, "--checkpoint", tiny_model, "--output", output, *SMALL)

    return call
