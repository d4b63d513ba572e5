"""Shapes and types in signatures are enforced while the tests run (they cost nothing in use)."""

import os
from pathlib import Path

import jaxtyping
import pytest

from tests import formula_weights

jaxtyping.install_import_hook("fcclip_jax", "beartype.beartype")

from fcclip_jax.models.fcclip import VARIANTS  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Text embeddings and compiled programs are kept for this test run alone, where all of its processes find them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fcclip_cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FCCLIP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def published_variants():
    """A configuration file of the tests may add a variant of its own (training/smallest.py): not to other modules."""
    before = dict(VARIANTS)
    yield
    VARIANTS.clear()
    VARIANTS.update(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small arrays that the original program computed; see golden/README.md."""
    return GOLDEN


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The full set of reference outputs, where it stands beside the checkout."""
    folder = SHARED / "oracle"
    if not folder.is_dir():
        pytest.skip("the full-size reference outputs (../shared/oracle) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(golden, tmp_path_factory) -> Path:
    """The tiny model in FC-CLIP's released format, with weights by formula: what the goldens were computed with."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    formula_weights.write_checkpoint(formula_weights.read_manifest(golden / "manifest_tiny.json"), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint) -> Path:
    """The same as a model folder."""
    from convert.fcclip import convert

    folder = tiny_checkpoint.with_name("fcclip_tiny")
    convert(tiny_checkpoint, folder)
    return folder
