"""Where arrays live: a mesh of two axes, and one table of path rules.

`data` splits the batch alone. `fsdp` splits the batch too, and each large parameter, which is gathered where it is
used. So the batch is split over all devices, and parameters and optimizer state over `fsdp`.
"""

import re
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
REPLICATED = PartitionSpec()

# Path pattern -> how to split, the first match counts. "largest" splits the largest axis that `fsdp` divides.
RULES: tuple[tuple[str, str], ...] = (
    (r"(kernel|_embedding|text_projection)$", "largest"),
    (r".*", "replicate"),
)

# Smaller arrays cost more to gather than they save.
SMALLEST_SPLIT = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes), or over `devices`; -1 takes what the other axis leaves.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    count = len(jax.devices()) if devices is None else len(devices)
    if data == -1 and fsdp == -1:
        raise ValueError("only one of mesh.data and mesh.fsdp can be -1")
    if data == -1:
        data = count // fsdp if fsdp > 0 else 0
    elif fsdp == -1:
        fsdp = count // data if data > 0 else 0
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise ValueError(f"mesh.data {data} x mesh.fsdp {fsdp} does not make the {count} devices that are here")
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def partition_spec(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How one parameter is split over `fsdp` parts."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    if rule == "replicate" or fsdp == 1 or int(np.prod(shape)) < SMALLEST_SPLIT:
        return REPLICATED
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not axes:
        return REPLICATED
    # Of equal axes the last: it is contiguous.
    axis = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(["fsdp" if a == axis else None for a in range(axis + 1)]))


def path_name(path: tuple) -> str:
    """A pytree path as dotted names: `pixel_decoder.layers.0.linear1.kernel`."""
    parts = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path]
    return ".".join(str(part) for part in parts if part not in ("value", "raw_value"))


def parameter_specs(mesh: Mesh, tree: Any) -> Any:
    """How parameters, and anything shaped like them (optimizer moments, averages), are split over the mesh.

    Leaves may be arrays or shapes. A leaf that no rule splits is replicated.
    """
    fsdp = mesh.shape["fsdp"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: partition_spec(path_name(path), tuple(leaf.shape), fsdp), tree
    )


def shard_like_parameters(mesh: Mesh, tree: Any) -> Any:
    """The same as shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), parameter_specs(mesh, tree))


def gather_split(tree: Any, specs: Any) -> Any:
    """Inside `shard_map`: whole parameters of a device's parts."""

    def gather(part: jax.Array, spec: PartitionSpec) -> jax.Array:
        return lax.all_gather(part, "fsdp", axis=spec.index("fsdp"), tiled=True) if "fsdp" in spec else part

    return jax.tree.map(gather, tree, specs)


def sum_gradients(tree: Any, specs: Any) -> Any:
    """Inside `shard_map`: of gradients of whole parameters, different on every device, the sum; of a parameter that is
    split, each device gets the sum of its part."""

    def add(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        if "fsdp" not in spec:
            return lax.psum(gradient, AXES)
        part = lax.psum_scatter(gradient, "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True)
        return lax.psum(part, "data")

    return jax.tree.map(add, tree, specs)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, REPLICATED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, BATCH)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ValueError when the batch does not split evenly over devices and accumulation steps."""
    parts = mesh.size * accumulate
    if batch_size < 1 or batch_size % parts:
        near = max(parts, round(batch_size / parts) * parts)
        raise ValueError(
            f"batch_size {batch_size} does not split over {mesh.size} devices"
            + (f" x {accumulate} accumulation steps" if accumulate > 1 else "")
            + f": take a multiple of {parts}, for example {near}"
        )


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's part of a batch to arrays over all devices of all processes."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in every process, to the devices. Each device gets only its own part."""

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(np.shape(array), sharding, lambda index: np.asarray(array)[index])

    return jax.tree.map(put, tree, shardings)


def place_whole(mesh: Mesh, tree: Any) -> Any:
    """Host arrays, the same in every process, whole to every device."""
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def gather(mesh: Mesh, tree: Any) -> Any:
    """Arrays as host arrays, whole. All processes must call this."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), whole)


def agreed(here: bool) -> bool:
    """Whether it is true in every process. All must call this."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array([here])).all())
