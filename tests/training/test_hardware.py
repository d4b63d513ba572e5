"""Names of devices, and the vendors' figures."""

import pytest

from fcclip_jax.training.hardware import CHIPS, parse_devices
from fcclip_jax.training.metrics import PEAK_FLOPS


@pytest.mark.parametrize(
    ("text", "chip", "count"),
    [
        ("v5e-256", "v5e", 256),
        ("v5litepod-16", "v5e", 16),
        ("V5P-8", "v5p", 4),  # the cloud counts its cores
        ("v4-1024", "v4", 512),
        ("v6e-1", "v6e", 1),
        ("h100-64", "h100", 64),
    ],
)
def test_names(text, chip, count):
    found, devices = parse_devices(text)
    assert (found.name, devices) == (chip, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5e", "such as v5e-256, not 'v5e'"),
        ("h10-8", "did you mean h100-8"),
        ("v5e-0", "counts cores"),
        ("v5p-7", "2 a chip"),
        ("-8", "not '-8'"),
        ("v5e-8; x", "not 'v5e-8; x'"),
    ],
)
def test_other_names_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_devices(text)


def test_figures_agree_with_those_of_the_metrics():
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "a100": "NVIDIA A100", "h100": "NVIDIA H100"}
    for name, kind in kinds.items():
        assert CHIPS[name].flops == PEAK_FLOPS[kind]
    for chip in CHIPS.values():
        assert chip.memory > 1e10 and chip.memory_bandwidth > chip.link > chip.network and chip.domain >= 8
