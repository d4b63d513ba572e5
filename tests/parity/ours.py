"""Our modules with the weights of a PyTorch state dict, through the name maps of `convert`."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from convert.mapping import plan
from convert.name_maps import FCCLIP_PREFIX, FCCLIP_ROWS


def load(make: Callable[[], nnx.Module], where: str, read: Callable[[str, tuple[int, ...]], np.ndarray]) -> nnx.Module:
    """The module that `make` builds, filled.

    Args:
        where: its path in the whole model, as `pixel_decoder`; empty for the whole model.
        read: name in a released FC-CLIP checkpoint, and its usual shape there, to the array.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    prefix = where + "." if where else ""
    paths = {prefix + ".".join(map(str, path)): path for path, _ in nnx.to_flat_state(abstract)}
    shapes = {prefix + ".".join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}
    flat = []
    for step in plan(FCCLIP_ROWS, shapes):
        for target, array in zip(step.targets, step.transform.to_ours(read(step.source, step.shapes[0])), strict=True):
            assert array.shape == shapes[target]
            flat.append((paths[target], nnx.Param(jax.numpy.asarray(array))))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def reader(state: dict[str, np.ndarray]) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """A state dict as `load` reads it."""
    return lambda name, shape: state[name]


def towers_state(open_clip_model) -> dict[str, np.ndarray]:
    """An open_clip model's state dict under the names of an FC-CLIP checkpoint."""
    state = {}
    for name, array in open_clip_model.state_dict().items():
        # timm's smallest ConvNeXts write the MLP as 1x1 convolutions; those of CLIP's sizes as linear layers.
        array = array[:, :, 0, 0] if ".blocks." in name and ".mlp." in name and array.ndim == 4 else array
        state[FCCLIP_PREFIX + name] = array.numpy()
    return state


def run(module: nnx.Module, *arguments, method: str = "__call__"):
    """Calls a method of the module, compiled, as every user of the package does."""
    graphdef, state = nnx.split(module)
    return jax.jit(lambda state, *args: getattr(nnx.merge(graphdef, state), method)(*args))(state, *arguments)
