"""What every parity test needs: skipping without the peers, and one measure of closeness."""

import importlib.util

import numpy as np
import pytest


def need(*packages: str) -> None:
    """Skips the calling module unless every package is there, and torchvision imports."""
    missing = [name for name in ("torch", *packages) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install .[parity])", allow_module_level=True)
    from torchvision_shim import import_torchvision

    try:
        import_torchvision()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)


def assert_close(ours, theirs, *, relative: float, name: str = "") -> float:
    """Largest difference over the largest magnitude; a single scale, because sums of large terms cancel to small ones.

    Returns:
        that quotient.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape} against {theirs.shape}"
    scale = np.abs(theirs).max()
    assert scale > 1e-3, f"{name}: the peer gives nothing to compare with"
    error = np.abs(ours - theirs).max() / scale
    assert error <= relative, f"{name}: {error:.2e} of the largest value, allowed {relative:.0e}"
    return error
