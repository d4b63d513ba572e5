"""`fcclip plan`: what a run would need on a mesh that is not here.

Only argparse and standard library at the top. The step is compiled in a process of its own, for simulated devices.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fcclip_jax import run_options

_DESCRIPTION = (
    "Compiles the training step of a configuration for so many simulated devices, and says what each device would "
    "hold, compute and send. Nothing is allocated or run: what a device holds is exact, the rest is an estimate or, "
    "where it says so, a projection. Example: fcclip plan --config configs/fcclip_convnext_large_coco.py --devices "
    "v5e-256 --images_per_device 1 --config.mesh.fsdp=8"
)
# Of a device's memory: the rest is the runtime's own, and lost between arrays.
_USABLE = 0.92
# Compiling for the fastest code would take several times as long and change nothing that is read here.
_FLAGS = "--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"


def add_arguments(commands) -> None:
    """Adds `plan` to the subparsers of the command line."""
    plan = commands.add_parser(
        "plan", help="memory, communication and time of a run elsewhere", description=_DESCRIPTION, allow_abbrev=False
    )
    plan.add_argument("--devices", required=True, metavar="CHIP-N", help="such as v5e-256, v5p-64 or h100-16")
    plan.add_argument(
        "--images_per_device", type=int, metavar="N", help="sets batch_size (default: the configuration's batch_size)"
    )
    plan.add_argument(
        "--utilization",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="of the peak FLOP/s that the products reach, an assumption (%(default)s)",
    )
    plan.add_argument("--json", metavar="FILE", help="writes the figures there, too")
    run_options.add_config_arguments(plan)
    plan.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the plan. Returns the exit code.

    Raises:
        ValueError, OSError: the configuration, the devices or an option cannot be used.
    """
    from fcclip_jax.training.hardware import parse_devices

    chip, count = parse_devices(options.devices)
    if not 0 < options.utilization <= 1:
        raise ValueError(f"--utilization is a share above 0, not {options.utilization}")
    if options.images_per_device is not None and options.images_per_device < 1:
        raise ValueError(f"--images_per_device must be at least 1, not {options.images_per_device}")
    asked = {
        "config": options.config,
        "overrides": options.overrides,
        "images_per_device": options.images_per_device,
        "platform": chip.platform,
    }
    found = _compile_elsewhere(asked, count)
    figures = found | {"devices": options.devices, "projection": project(found, chip, options.utilization)}
    print(report(figures, chip))
    if options.json:
        path = Path(options.json)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    return 0


def _compile_elsewhere(asked: dict[str, Any], devices: int) -> dict[str, Any]:
    """`compile_step` in a new process, which sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS.format(devices=devices)}".strip()
    # Compiled here and now: what a cache returns has no memory statistics on every platform.
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "fcclip_jax.plan_command"],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(last.removeprefix("error: "))
    return json.loads(lines[-1])


def compile_step(
    config_file: str, overrides: list[tuple[str, str]], images_per_device: int | None, platform: str
) -> dict[str, Any]:
    """Figures of the step on all devices that this process sees. Bytes are of one device.

    Raises:
        ValueError: the configuration cannot be used on so many devices.
    """
    import time

    import jax

    from fcclip_jax import experiment
    from fcclip_jax.training import sharding
    from fcclip_jax.training.collectives import collectives, totals
    from fcclip_jax.training.flops import product_flops

    # Where operations have another formulation on another platform, this asks for that platform's.
    jax.default_backend = lambda: platform
    config = experiment.load_config(config_file, overrides)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if images_per_device is not None:
        with config.unlocked():
            config.batch_size = images_per_device * mesh.size * config.accumulate
    step, arguments = experiment.abstract_step(config, mesh)
    state, frozen, batch, _, _ = arguments
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = step.trace(*arguments)
        compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    found = collectives(compiled.as_text(), mesh.size)
    fsdp = mesh.shape["fsdp"]
    whole = _bytes(state.params) + _bytes(frozen) if fsdp > 1 else 0
    return {
        "config": config_file,
        "variant": config.model.variant,
        "image_size": config.data.image_size,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "images_at_once": config.batch_size // mesh.size // config.accumulate,
        "holds": {
            "parameters": _bytes(state.params, mesh),
            "optimizer": _bytes(state.opt_state, mesh),
            "average": _bytes(state.average, mesh),
            "frozen": _bytes(frozen, mesh),
            "batch": _bytes(batch) // mesh.size,
        },
        "works_with": {
            "whole_parameters": whole,
            "gradients": _bytes(state.params),
            "temporary": memory.temp_size_in_bytes,
        },
        "peak_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "flops": product_flops(traced.jaxpr) / mesh.size,
        "collectives": totals(found),
        "in_loops": sum(one.looped for one in found),
        "compile_seconds": time.perf_counter() - began,
    }


def _bytes(tree: Any, mesh: Any = None) -> int:
    """Of shapes, whole, or of what one device of a mesh holds by the table of path rules."""
    import jax
    import numpy as np

    from fcclip_jax.training.sharding import shard_like_parameters

    if mesh is None:
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
    shardings = jax.tree.leaves(shard_like_parameters(mesh, tree))
    return sum(
        math.prod(sharding.shard_shape(tuple(x.shape))) * np.dtype(x.dtype).itemsize
        for x, sharding in zip(jax.tree.leaves(tree), shardings, strict=True)
    )


def project(found: dict[str, Any], chip: Any, utilization: float) -> dict[str, Any]:
    """Seconds of a step and the largest batch, from stated peaks.

    `shortest`: products at the peak, with all communication behind them. `expected_from` and `expected_to`: products at
    `utilization` of the peak, with communication wholly behind them and wholly after them.
    """
    mesh, size = found["mesh"], found["mesh"]["data"] * found["mesh"]["fsdp"]
    seconds = 0.0
    for kind, row in found["collectives"].items():
        # Parameters are gathered and gradients scattered among the `fsdp` neighbours, sums go over all.
        span = size if kind == "all-reduce" else mesh["fsdp"]
        seconds += row["sent"] / (chip.link if span <= chip.domain else chip.network)
    products = found["flops"] / chip.flops
    fixed = found["peak_bytes"] - found["works_with"]["temporary"] + _constant(found)
    image = (found["works_with"]["temporary"] - _constant(found)) / found["images_at_once"]
    return {
        "products_seconds": products,
        "communication_seconds": seconds,
        "shortest": max(products, seconds),
        "expected_from": max(products / utilization, seconds),
        "expected_to": products / utilization + seconds,
        "utilization": utilization,
        "memory": chip.memory,
        "fits": found["peak_bytes"] <= _USABLE * chip.memory,
        "images_that_fit": max(0, math.floor((_USABLE * chip.memory - fixed) / max(image, 1.0))),
        "bytes_per_image": image,
    }


def _constant(found: dict[str, Any]) -> int | float:
    """Of the temporary bytes those that do not grow with the images."""
    work = found["works_with"]
    return min(work["temporary"] / 2, work["whole_parameters"] + work["gradients"])


def report(found: dict[str, Any], chip: Any) -> str:
    """The figures as a person reads them."""
    mesh, projection = found["mesh"], found["projection"]
    size = mesh["data"] * mesh["fsdp"]
    names = {"parameters": "trainable parameters", "optimizer": "optimizer state", "frozen": "frozen tower"}
    lines = [
        f"{found['variant']} at {found['image_size']} x {found['image_size']} on {found['devices']}: {size} devices of "
        f"{chip.memory / 1e9:.0f} GB, mesh data {mesh['data']} x fsdp {mesh['fsdp']}, batch {found['batch_size']}, "
        f"{found['images_at_once']} images a device at a time",
        "",
        "a device holds (exact)",
        *_rows({names.get(k, k): _size(v) for k, v in found["holds"].items() if v}),
        f"while it works (estimate: compiled for {size} simulated CPU devices in {found['compile_seconds']:.0f} s)",
        *_rows(
            {
                "whole parameters": _size(found["works_with"]["whole_parameters"]),
                "whole gradients": _size(found["works_with"]["gradients"]),
                "all temporary arrays": _size(found["works_with"]["temporary"]),
                "peak": f"{_size(found['peak_bytes'])}, {found['peak_bytes'] / chip.memory:.0%} of the device",
            }
        ),
        "it sends in a step (from the compiled program, as rings)",
        *_rows(
            {
                kind: f"{_size(row['sent'])} in {row['count']:.0f} operations, arrays of {_size(row['bytes'])}"
                for kind, row in found["collectives"].items()
            }
            or {"nothing": ""}
        ),
    ]
    if found["in_loops"]:
        lines.append(f"  ({found['in_loops']} of these stand in loops and count once: the true volume is larger)")
    lines += [
        f"projection (peaks of {chip.name} as stated by {chip.source}; nothing was run)",
        *_rows(
            {
                "products": f"{found['flops'] / 1e9:,.1f} GFLOP a device, "
                f"{_time(projection['products_seconds'])} at peak",
                "communication": _time(projection["communication_seconds"]),
                "step, at best": _time(projection["shortest"]),
                f"step, {projection['utilization']:.0%} of peak": f"{_time(projection['expected_from'])} to "
                f"{_time(projection['expected_to'])}, {found['batch_size'] / projection['expected_to']:.0f} to "
                f"{found['batch_size'] / projection['expected_from']:.0f} images/s",
                "largest batch": f"{projection['images_that_fit']} images a device at a time, "
                f"{projection['images_that_fit'] * size} in all ({_size(projection['bytes_per_image'])} an image)",
            }
        ),
    ]
    return "\n".join(lines)


def _rows(values: dict[str, str]) -> list[str]:
    return [f"  {name:<22}{value}" for name, value in values.items()]


def _size(count: int | float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count:.0f} B"


def _time(seconds: int | float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _main() -> int:
    asked = json.loads(sys.stdin.read())
    try:
        overrides = [tuple(pair) for pair in asked["overrides"]]
        print(json.dumps(compile_step(asked["config"], overrides, asked["images_per_device"], asked["platform"])))
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main())
