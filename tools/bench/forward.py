"""Seconds and memory of the forward pass of ConvNeXt-L, by stage, in this process.

    python -m tools.bench.forward --json out.json

The photo is noise of the size of a COCO photo, which goes through the network at 800 x 1216. Weights are drawn by the
formula of the tests: their values do not change the work.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STARTED = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from fcclip_jax.models import weights  # noqa: E402
from fcclip_jax.segmenter import Segmenter  # noqa: E402
from fcclip_jax.training.flops import product_flops  # noqa: E402
from fcclip_jax.vocabulary.vocabulary import Vocabulary  # noqa: E402
from tools.parity import ROOT, formula_model  # noqa: E402

VOCABULARIES = ("ade20k_150", "ade20k_847", "lvis_1203")
MANIFEST = ROOT / "tests" / "golden" / "manifests" / "fcclip_convnext_large_d_320.json.gz"


def peak_bytes() -> int:
    """The most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds(call: Callable, *args) -> float:
    """Of one call, until the device is done."""
    begin = time.perf_counter()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - begin


def matrix_ceiling(side: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a square float32 matrix product."""
    x = jax.random.normal(jax.random.key(0), (side, side))
    product = jax.jit(jnp.dot)
    jax.block_until_ready(product(x, x))
    return 2 * side**3 / statistics.median(seconds(product, x, x) for _ in range(repeats))


def fill_text_cache(segmenter: Segmenter, words: Vocabulary) -> None:
    """The text tower is not part of the pass: its rows come from a cache, and here from a formula."""
    rows = np.random.default_rng(1).standard_normal((len(words.synonyms), 768), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    segmenter._text._memory.update(zip(words.synonyms, rows, strict=True))


def naming(segmenter: Segmenter, image: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of classification and all three results, by vocabulary."""
    encoded, found = segmenter.encode(image), {}
    for name in VOCABULARIES:
        words = Vocabulary.builtin(name)
        fill_text_cache(segmenter, words)
        segmenter.name(encoded, words)
        again = [seconds(lambda: segmenter.name(encoded, words).panoptic) for _ in range(repeats)]  # noqa: B023
        found[f"classification and results, {words.num_classes} classes"] = {"seconds": statistics.median(again)}
    return found


def stages(folder: Path, image: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds, and FLOP of matrix products and convolutions, of the boxes of the figure, each compiled alone."""
    segmenter = Segmenter.from_checkpoint(folder)
    _, graphdef, state = weights.load_model(folder)
    inputs = segmenter._preprocess(image).stored[None]

    def stage(call):
        return jax.jit(lambda state, x: call(nnx.merge(graphdef, state), x))

    tower = stage(lambda model, x: model.clip.visual(x))
    pixels = stage(lambda model, x: model.pixel_decoder(x))
    decoder = stage(lambda model, x: (lambda out: (out.masks[-1], out.class_embeds[-1]))(model.transformer_decoder(x)))
    medians, x = {}, inputs
    for name, call in (("tower", tower), ("pixel decoder", pixels), ("transformer decoder", decoder)):
        out = jax.block_until_ready(call(state, x))
        median = statistics.median(seconds(call, state, x) for _ in range(repeats))
        medians[name] = {"seconds": median, "flops": product_flops(call.trace(state, x).jaxpr)}
        x = out
    return medians | naming(segmenter, image, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--original", default="427x640", help="height x width of the photo")
    parser.add_argument("--model", type=Path, help="a model folder (default: one made of formula weights)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--by_stage", action="store_true", help="also time the stages, each compiled alone")
    options = parser.parse_args()
    height, width = map(int, options.original.split("x"))
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    folder = options.model or formula_model(MANIFEST, Path(tempfile.mkdtemp(prefix="fcclip_bench_")))
    words = Vocabulary.builtin("ade20k_150")
    segmenter = Segmenter.from_checkpoint(folder)
    fill_text_cache(segmenter, words)
    loaded = time.perf_counter() - STARTED
    first = seconds(lambda: segmenter(image, words).panoptic)
    since_start = time.perf_counter() - STARTED
    runs = []
    for _ in range(options.repeats):
        encode = time.perf_counter()
        encoded = jax.block_until_ready(segmenter.encode(image).predictions)
        middle = time.perf_counter()
        del encoded
        whole = seconds(lambda: segmenter(image, words).panoptic)
        runs.append((whole, middle - encode))
    figures = {
        "seconds": statistics.median(r[0] for r in runs),
        "seconds_network": statistics.median(r[1] for r in runs),
        "seconds_naming_and_results": statistics.median(r[0] - r[1] for r in runs),
        "first_call_seconds": first,
        "seconds_from_start_to_first_result": since_start,
        "seconds_to_load": loaded,
        "peak_bytes": peak_bytes(),
        "runs": [r[0] for r in runs],
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    if options.by_stage:
        figures["stages"] = stages(folder, image, options.repeats)
        figures["matrix_flops_per_second"] = matrix_ceiling()
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
