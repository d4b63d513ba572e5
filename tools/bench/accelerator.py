"""Images per second of inference on a GPU or TPU, by precision and batch size, against a matrix product's speed.

    python -m tools.bench.accelerator --json gpu.json     # ConvNeXt-L at 1024 x 1024
    python -m tools.bench.accelerator --variant convnext_tiny_test --size 64 --batch 1 2 --repeats 1 --matmul 256

Weights are drawn by their initialisers: values do not change the work. Counted are the FLOP of matrix products and
convolutions (training/flops.py). Each figure is the median of `--repeats` calls after one to warm up, each waited for.
The torch peer on the same card: tools/bench/torch_accelerator.py. With JAX_COMPILATION_CACHE_DIR set, `--compile_only`
fills that cache, so that minutes on a borrowed card are not spent on compiling.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.models.fcclip import FCCLIP, VARIANTS, FCCLIPConfig
from fcclip_jax.training.flops import product_flops

# Name -> (dtype of towers, transformer decoder and stored weights, precision of float32 products). The pixel decoder is
# float32 in all of them, as in the reference.
PRECISIONS = {
    "float32": (jnp.float32, "highest"),
    "tf32": (jnp.float32, "tensorfloat32"),
    "bfloat16": (jnp.bfloat16, "tensorfloat32"),
}


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of one call, until the device is done, after one to warm up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matmul_ceiling(side: int, precision: str, repeats: int) -> float:
    """FLOP/s of a square matrix product."""
    dtype, products = PRECISIONS[precision]
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)  # ones are multiplied faster than figures
    product = jax.jit(lambda x: jnp.dot(x, x, precision=None if dtype == jnp.bfloat16 else products))
    return 2 * side**3 / median_seconds(lambda: product(x), repeats)


def measure(config: FCCLIPConfig, precision: str, batch: int, size: int, repeats: int) -> dict[str, Any] | None:
    """Seconds and FLOP of the tower alone and of the whole pass, masks and embeddings included; None for no repeats,
    which only compiles."""
    dtype, products = PRECISIONS[precision]

    def make(key):
        state = nnx.state(FCCLIP(config, with_text=False, dtype=dtype, rngs=nnx.Rngs(key)))
        return jax.tree.map(lambda x: x.astype(dtype), state)

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: FCCLIP(config, with_text=False, dtype=dtype, rngs=nnx.Rngs(0))))
    state = jax.jit(make)(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((batch, size, size, 3), dtype=np.float32))
    extent = jnp.full((batch, 2), size, jnp.int32)
    parts = {
        "tower": lambda model, images, extent: model.clip.visual(images, extent).res5,
        "whole": lambda model, images, extent: model(images, extent).predictions,
    }
    found: dict[str, Any] = {"precision": precision, "batch": batch}
    for name, part in parts.items():
        program = jax.jit(lambda state, *args, part=part: part(nnx.merge(graphdef, state), *args))
        with jax.default_matmul_precision(products):
            traced = program.trace(state, images, extent)
            compiled = traced.lower().compile()
        if not repeats:
            continue
        seconds = median_seconds(lambda: compiled(state, images, extent), repeats)  # noqa: B023
        flops = product_flops(traced.jaxpr)
        found[name] = {"seconds": seconds, "images_per_second": batch / seconds, "flops": flops}
        found[name]["flops_per_second"] = flops / seconds
        found[name]["temporary_bytes"] = compiled.memory_analysis().temp_size_in_bytes
    return found if repeats else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="convnext_large_d_320", choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=1024, help="pixels of both edges (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile_only", action="store_true", help="run nothing")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the product measured (%(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = jax.devices()[0]
    results: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "ceilings": {}, "runs": []}
    results |= {"variant": options.variant, "size": options.size}
    if options.compile_only:
        for precision, batch in itertools.product(options.precision, options.batch):
            measure(VARIANTS[options.variant], precision, batch, options.size, 0)
        return
    for precision in options.precision:
        ceiling = results["ceilings"][precision] = matmul_ceiling(options.matmul, precision, options.repeats)
        print(f"{precision}: a matrix product of {options.matmul} runs at {ceiling / 1e12:.1f} TFLOP/s", flush=True)
        for batch in options.batch:
            try:
                run = measure(VARIANTS[options.variant], precision, batch, options.size, options.repeats)
            except jax.errors.JaxRuntimeError as error:  # out of memory: the smaller batches are still worth having
                print(f"  batch {batch}: {str(error).splitlines()[0]}", flush=True)
                continue
            results["runs"].append(run)
            shares = {name: run[name]["flops_per_second"] / ceiling for name in ("tower", "whole")}
            print(
                f"  batch {batch}: {run['whole']['images_per_second']:.1f} images/s, {shares['whole']:.0%} of that; "
                f"tower {run['tower']['images_per_second']:.1f} images/s, {shares['tower']:.0%}; "
                f"temporaries {run['whole']['temporary_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
