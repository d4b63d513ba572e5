"""How fast a training step is: step time, images/s, MFU, memory, and the assignment's share; as one JSON object.

    python -m tools.bench.train_step                       # configs/tiny.py's step, and ConvNeXt-L at 512 x 512
    python -m tools.bench.train_step --large_only --size 1024 --batch 1 2 4 --dtype float32 bfloat16   # on a GPU

Images and segments are noise: their values do not change the work. The share of the peak is of the products' FLOP that
the program needs, forward and backward (training/flops.py), against the vendor's figure where it is known, and against
the fastest matrix product measured here.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.losses.criterion import CriterionConfig
from fcclip_jax.models.fcclip import FCCLIP, VARIANTS, FCCLIPConfig
from fcclip_jax.ops.linear_assignment import linear_assignment
from fcclip_jax.training import sharding, train_state
from fcclip_jax.training.flops import product_flops
from fcclip_jax.training.metrics import peak_flops
from fcclip_jax.training.optimizer import OptimizerConfig, make_optimizer, split_frozen
from fcclip_jax.training.train_step import make_train_step

CLASSES, SYNONYMS = 133, 254  # of COCO panoptic
SEGMENTS_OF_AN_IMAGE = 17  # valid ones; the rest of the room is empty


@dataclasses.dataclass(frozen=True)
class Case:
    """One step to measure. `room` is for how many segments; `queries` 0 is the variant's own number."""

    name: str
    variant: str
    size: int
    batch: int
    dtype: str = "float32"
    queries: int = 0
    points: int = 12544
    room: int = 100
    remat: bool = False

    def model(self) -> FCCLIPConfig:
        model = VARIANTS[self.variant]
        if self.queries:
            decoder = dataclasses.replace(model.transformer_decoder, queries=self.queries)
            model = dataclasses.replace(model, transformer_decoder=decoder)
        return model


TINY = Case("configs/tiny.py", "convnext_tiny_test", 128, 8, queries=20, points=1024, room=16)


def batch_of(case: Case) -> dict[str, np.ndarray]:
    """Noise, with square segments."""
    rng = np.random.default_rng(0)
    count = min(SEGMENTS_OF_AN_IMAGE, case.room)
    cells = rng.integers(-1, count, (case.batch, 8, 8), np.int16)
    ids = cells.repeat(case.size // 8, axis=1).repeat(case.size // 8, axis=2)
    return {
        "image": rng.integers(0, 255, (case.batch, case.size, case.size, 3), np.uint8),
        "ids": ids,
        "labels": rng.integers(0, CLASSES, (case.batch, case.room), np.int32),
        "valid": np.broadcast_to(np.arange(case.room) < count, (case.batch, case.room)),
    }


def words(embed_dim: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(1).normal(size=(SYNONYMS, embed_dim)).astype(np.float32)
    return {
        "rows": rows / np.linalg.norm(rows, axis=1, keepdims=True),
        "synonym_to_class": np.sort(np.arange(SYNONYMS, dtype=np.int32) % CLASSES),
        "classes": np.zeros(CLASSES, bool),
    }


def prepare(case: Case, solver: str) -> tuple[Callable, list]:
    """The compiled step and its arguments, and what the step needs in FLOP as the last of them."""
    model, mesh = case.model(), sharding.make_mesh(1, 1, jax.devices()[:1])
    options = train_state.ModelOptions(jnp.dtype(case.dtype), case.remat)
    graphdef, _, _ = train_state.abstract_model(model, options)
    optimizer = make_optimizer(OptimizerConfig())
    state = train_state.init_state(model, options, optimizer, mesh)
    make = lambda key: split_frozen(nnx.state(FCCLIP(model, with_text=False, rngs=nnx.Rngs(key))))[1]  # noqa: E731
    frozen = jax.tree.map(lambda x: x.astype(case.dtype), jax.jit(make)(jax.random.key(1)))
    frozen = train_state.place_frozen(jax.tree.map(np.asarray, frozen), mesh)
    criterion = CriterionConfig(points=case.points)
    step = make_train_step(graphdef, optimizer, mesh, state, frozen, criterion, solver=solver)
    batch = sharding.global_batch(mesh, batch_of(case))
    text = sharding.place_whole(mesh, words(model.embed_dim))
    with jax.set_mesh(mesh):
        traced = step.trace(state, frozen, batch, text, np.int32(0))
        return traced.lower().compile(), [state, frozen, batch, text], product_flops(traced.jaxpr)


def measure(case: Case, solver: str, steps: int) -> dict:
    """Compiles, warms up, and times each of `steps` steps by itself."""
    started = time.perf_counter()
    compiled, (state, frozen, batch, text), flops = prepare(case, solver)
    compile_seconds = time.perf_counter() - started
    seconds = []
    for number in range(steps + 1):
        begin = time.perf_counter()
        state, found = compiled(state, frozen, batch, text, np.int32(number))
        jax.block_until_ready((state, found))
        seconds.append(time.perf_counter() - begin)
    assert bool(found["finite"]), "the loss is not finite"
    median = statistics.median(seconds[1:])
    memory = compiled.memory_analysis()
    return {
        **dataclasses.asdict(case),
        "solver": solver,
        "compile_seconds": compile_seconds,
        "first_step_seconds": seconds[0],
        "seconds_per_step": median,
        "range": [min(seconds[1:]), max(seconds[1:])],
        "images_per_second": case.batch / median,
        "product_flops_per_step": flops,
        "planned_temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "peak_gb_of_this_process_so_far": peak_bytes() / 1e9,
        "assignment_seconds": {name: assignment_seconds(case, name) for name in ("host", "device")},
    }


def peak_bytes() -> int:
    """Of the device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def assignment_seconds(case: Case, solver: str, repeats: int = 5) -> float:
    """Median of matching all images and predictions of one step, alone."""
    decoder = case.model().transformer_decoder
    shape = (case.batch, decoder.layers + 1, decoder.queries, case.room)
    cost = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    valid = jnp.broadcast_to(jnp.arange(case.room) < SEGMENTS_OF_AN_IMAGE, (*shape[:2], case.room))
    solve = jax.jit(lambda cost, valid: linear_assignment(cost, valid, solver=solver))
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(solve(cost, valid))
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def matmul_flops(dtype: str) -> float:
    """The most FLOP/s that a square matrix product reaches here."""
    best = 0.0
    for size in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        a = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul)
        product(a, a).block_until_ready()
        for _ in range(5):
            begin = time.perf_counter()
            product(a, a).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def cases(options: argparse.Namespace) -> list[Case]:
    large = [
        Case(f"{options.variant} {options.size} batch {batch} {dtype}", options.variant, options.size, batch, dtype)
        for dtype in options.dtype
        for batch in options.batch
    ]
    large = [dataclasses.replace(case, remat=options.remat) for case in large]
    return large if options.large_only else [TINY] if options.tiny_only else [TINY, *large]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="convnext_large_d_320", choices=sorted(VARIANTS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--solver", nargs="+", default=["host", "device"], choices=("host", "device"))
    parser.add_argument("--large_only", action="store_true", help="leave out the step of configs/tiny.py")
    parser.add_argument("--tiny_only", action="store_true", help="only the step of configs/tiny.py")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    ceilings = {dtype: matmul_flops(dtype) for dtype in sorted({"float32", *options.dtype})}
    results = []
    for case in cases(options):
        for solver in options.solver:
            found = measure(case, solver, options.steps)
            rate = found["product_flops_per_step"] / found["seconds_per_step"]
            found["share_of_measured_matmul"] = rate / ceilings[case.dtype]
            # The vendor's figure is bfloat16's.
            found["mfu"] = rate / peak_flops(kind) if peak_flops(kind) and case.dtype == "bfloat16" else None
            share = found["assignment_seconds"][solver] / found["seconds_per_step"]
            found["assignment_share"] = share
            print(f"{case.name}, {solver}: {found['seconds_per_step']:.3f} s, share {share:.2%}", file=sys.stderr)
            results.append(found)
    figures = {
        "device": kind,
        "cores": os.cpu_count(),
        "load_average_at_the_end": os.getloadavg()[0],
        "jax": jax.__version__,
        "matmul_flops": ceilings,
        "steps": results,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
