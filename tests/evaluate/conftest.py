import pytest

from tests.evaluate import own_data
from tests.evaluate.command import evaluate


@pytest.fixture(scope="session")
def data(tiny_model, private_cache, tmp_path_factory):
    """The data of own_data.py; not to be changed."""
    return own_data.make(tmp_path_factory.mktemp("own_data") / "data", tiny_model, private_cache)


@pytest.fixture(scope="session")
def evaluated(data, tiny_model, tmp_path_factory):
    """The output folder of a whole evaluation with everything; not to be changed."""
    output = tmp_path_factory.mktemp("evaluated") / "output"
    assert evaluate(data, tiny_model, output, "--predictions", "--worst", "2") == 0
    return output
