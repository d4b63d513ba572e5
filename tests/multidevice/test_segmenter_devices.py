"""A batch of photos shared by several devices: the same results as on one."""

import pickle

import numpy as np
import pytest

from tests import own_process

SCRIPT = "tests/multidevice/several_devices.py"


@pytest.fixture(scope="module")
def segmented(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")

    def run(devices: int, batch_size: int) -> dict:
        output, log = folder / f"{devices}.pickle", folder / f"{devices}.log"
        arguments = [SCRIPT, str(tiny_model), str(output), str(batch_size)]
        # -m would import the package of tests with its hooks; the script finds both on the path.
        own_process.finish(own_process.start(arguments, folder / "cache", log, devices=devices), log)
        return pickle.loads(output.read_bytes())

    return run(1, 1), run(4, 8)


def test_four_devices_give_the_results_of_one(segmented):
    one, four = segmented
    assert one.keys() == four.keys() and len(one) == 8
    for key, (panoptic, semantic, segments) in one.items():
        # A pixel on the border between two segments may fall to the other one, as in any other batch.
        assert np.mean(four[key][0] != panoptic) <= 0.001
        assert np.mean(four[key][1] != semantic) <= 0.001
        assert [c for c, _ in four[key][2]] == [c for c, _ in segments]
        np.testing.assert_allclose([s for _, s in four[key][2]], [s for _, s in segments], atol=1e-5)
    assert sum(len(segments) for _, _, segments in one.values()) > 8
