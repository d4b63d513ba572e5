"""Shapes and types in signatures are enforced while the tests run (they cost nothing in use)."""

from pathlib import Path

import jaxtyping
import pytest

jaxtyping.install_import_hook("fcclip_jax", "beartype.beartype")

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"


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
