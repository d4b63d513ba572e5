"""Where torch is installed: it reads what we write, and we read what it writes now."""

import importlib.util

import numpy as np
import pytest
from make_torch_files import expected, main

from convert import to_fcclip
from convert.checkpoint_files import open_checkpoint

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed (the extra `parity` holds it)")
    import torch

    return torch


def test_torch_reads_the_way_back(torch, folder, state_dict, tmp_path):
    to_fcclip.convert(folder, tmp_path / "back.pth")
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "back.pth", weights_only=True, **options)
        assert list(loaded) == ["model"] and list(loaded["model"]) == list(state_dict)
        for name, array in state_dict.items():
            np.testing.assert_array_equal(loaded["model"][name].numpy(), array, strict=True)


@pytest.mark.parametrize("file", ["training.pth", "training_legacy.pth", "protocol_4.pth"])
def test_files_of_the_installed_torch(torch, file, tmp_path):
    main(tmp_path)
    with open_checkpoint(tmp_path / file) as checkpoint:
        for name, array in expected().items():
            np.testing.assert_array_equal(checkpoint.read(name), array, strict=True)
