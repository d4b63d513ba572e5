"""What the vendors state of their accelerators. Peak rates, for projections: no program reaches all of them."""

import dataclasses
import difflib
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax sees it.

    Attributes:
        flops: dense bfloat16 FLOP/s.
        memory: bytes of HBM; memory_bandwidth: bytes/s.
        link: bytes/s that it can send to its neighbours over the fast interconnect (ICI, NVLink), one way.
        domain: most devices that this interconnect joins.
        network: bytes/s that it can send beyond them, its share of the host's network cards.
        cores: by which the cloud's names count it (`v5p-8` has 4 chips of 2 cores).
        platform: as jax calls it.
        source: where the figures stand.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    domain: int
    network: float
    cores: int = 1
    platform: str = "tpu"
    source: str = "cloud.google.com/tpu/docs"


_GB, _GIB = 1e9, 2.0**30
_DATASHEET = "NVIDIA's data sheet; network: one 400 Gb/s card a GPU, 200 for A100"

# TPU: the pages v4, v5e, v5p, v6e. Interconnect is stated as the sum of both ways (v5e 1600 Gb/s in the older pages,
# which is 200 GB/s one way); the network as a host's cards over its chips.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 1228 * _GB, 150 * _GB, 4096, 6.25 * _GB, cores=2),
        Chip("v5e", 197e12, 16 * _GB, 819 * _GB, 200 * _GB, 256, 3.125 * _GB),
        Chip("v5p", 459e12, 95 * _GB, 2765 * _GB, 300 * _GB, 8960, 6.25 * _GB, cores=2),
        Chip("v6e", 918e12, 32 * _GB, 1600 * _GB, 400 * _GB, 256, 12.5 * _GB),
        Chip("a100", 312e12, 80 * _GB, 2039 * _GB, 300 * _GB, 8, 25 * _GB, platform="gpu", source=_DATASHEET),
        Chip("h100", 989e12, 80 * _GB, 3350 * _GB, 450 * _GB, 8, 50 * _GB, platform="gpu", source=_DATASHEET),
        Chip("h200", 989e12, 141 * _GB, 4800 * _GB, 450 * _GB, 8, 50 * _GB, platform="gpu", source=_DATASHEET),
    )
}


def parse_devices(text: str) -> tuple[Chip, int]:
    """`v5e-256`, as the cloud names slices, or `h100-16`: the chip and the number of jax's devices.

    Raises:
        ValueError: no such chip (the nearest is named), or a number that cannot be.
    """
    found = re.fullmatch(r"([a-z]\w*?)(?:litepod)?-(\d+)", text.strip().lower())
    name = {"v5": "v5e"}.get(found[1], found[1]) if found and "litepod" in text else found[1] if found else text
    if found is None or name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}-8? " if near else ""
        raise ValueError(
            f"--devices takes a chip and a number, such as v5e-256, not {text!r}; {hint}{', '.join(CHIPS)}"
        )
    chip, count = CHIPS[name], int(found[2])
    if count < 1 or count % chip.cores:
        raise ValueError(f"--devices {text}: the name counts cores, {chip.cores} a chip")
    return chip, count // chip.cores
