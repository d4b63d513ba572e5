"""The contrastive loss is that of the global batch: on any mesh the same three steps as on one device."""

from pathlib import Path

import numpy as np
import pytest

from tests.own_process import finish, shared_folder, start

PROGRAM = str(Path(__file__).parent / "contrastive_steps.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("contrastive"), shared_folder(tmp_path_factory, "cache")
    found = {}
    for data, fsdp in ((1, 1), (2, 2)):
        path, log = folder / f"{data}x{fsdp}.npz", folder / f"{data}x{fsdp}.log"
        finish(start([PROGRAM, str(path), str(data), str(fsdp)], cache, log, devices=data * fsdp), log)
        found[f"{data}x{fsdp}"] = np.load(path)
    return found


def test_sharded_equals_unsharded(runs):
    one, four = runs["1x1"], runs["2x2"]
    assert one["step"] == four["step"] == 3 and one["split"] == 0 < four["split"]
    # Sums in another order, in float32, over 24 pictures.
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=2e-5)
    np.testing.assert_allclose(four["grad_norm"], one["grad_norm"], rtol=1e-4)
    arrays = [name for name in one.files if "." in name or name == "logit_scale"]
    assert len(arrays) > 100
    for name in arrays:
        # Three steps of 1e-4 each, of which rounding may turn a hundredth.
        np.testing.assert_allclose(four[name], one[name], atol=3e-6, err_msg=name)


def test_something_was_learned(runs):
    losses = runs["1x1"]["losses"]
    assert np.isfinite(losses).all() and runs["1x1"]["grad_norm"] > 0.1
