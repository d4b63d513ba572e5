"""What several boxes of the figure share: attention, MLP, patch convolution, norms, sine positions, one trace for equal
modules."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.ops.attention import attention
from fcclip_jax.ops.platform import for_every_platform

# Initialisers of the reference, needed when its decoder is trained from scratch. `torch_linear` is PyTorch's own
# default for a linear layer; `c2_xavier` is detectron2's name for a uniform fan-in initialiser.
xavier_uniform = nnx.initializers.xavier_uniform()
c2_xavier = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
torch_linear = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def layer_norm(width: int, *, eps: float = 1e-5, dtype=jnp.float32, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass form loses digits where the mean is large."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


def group_norm(width: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm over 32 groups, eps 1e-5, two-pass variance."""
    return nnx.GroupNorm(width, num_groups=32, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def gelu(x: Float[Array, "*A C"]) -> Float[Array, "*A C"]:
    """The exact GELU, through erf as in PyTorch. (jax.nn's goes through erfc, which costs several times as much on CPU
    and is not nearer to PyTorch's.)"""
    wide = x.astype(jnp.float32)  # 1 + erf has few digits left where x is negative
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(math.sqrt(0.5))))).astype(x.dtype)


def quick_gelu(x: Float[Array, "*A C"]) -> Float[Array, "*A C"]:
    """`x * sigmoid(1.702 x)`, the GELU of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def shared_trace(module: nnx.Module, *arrays: Any, **static: Any) -> Any:
    """`module(*arrays, **static)`, traced once for all modules of one structure: the 27 blocks of a stage. Python takes
    milliseconds a block, of each start and of each test; the compiled program is the same."""
    graphdef, state = nnx.split(module)
    return _shared(graphdef, for_every_platform(), tuple(sorted(static.items())), state, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _shared(graphdef: nnx.GraphDef, every: bool, static: tuple, state: nnx.State, *arrays: Any) -> Any:
    return nnx.merge(graphdef, state)(*arrays, **dict(static))


class PatchConv(nnx.Module):
    """A convolution whose stride is its kernel size: every patch is flattened and multiplied once."""

    def __init__(self, width_in: int, width_out: int, size: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.size, self.dtype = size, dtype
        init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, width_in, width_out)))
        self.bias = nnx.Param(jnp.zeros(width_out))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        batch, height, width, channels = x.shape
        s = self.size
        x = x.astype(self.dtype).reshape(batch, height // s, s, width // s, s, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, s * s * channels)
        kernel = self.kernel[...].astype(self.dtype)
        x = x @ kernel.reshape(s * s * channels, -1) + self.bias[...].astype(self.dtype)
        return x.reshape(batch, height // s, width // s, -1)


class MLP(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width_in: int, hidden: int, width_out: int, depth: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        widths = [width_in] + [hidden] * (depth - 1) + [width_out]
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=torch_linear, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )

    def __call__(self, x: Float[Array, "*A I"]) -> Float[Array, "*A O"]:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention with separate query, key and value projections."""

    def __init__(self, width: int, heads: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.heads = heads
        # PyTorch initialises query, key and value as one [3D, D] matrix, so their fan-out is 3D.
        joint = _uniform(math.sqrt(6 / (4 * width)))
        self.query = nnx.Linear(width, width, kernel_init=joint, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, kernel_init=joint, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, kernel_init=joint, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "B Q D"],
        key: Float[Array, "B T D"],
        value: Float[Array, "B T D"],
        *,
        blocked: Bool[Array, "*B Q T"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """`blocked` marks the (query, key) pairs that may not attend; a row may not be blocked everywhere."""
        q, k, v = (self._split(p(x)) for p, x in ((self.query, query), (self.key, key), (self.value, value)))
        mixed = attention(q / math.sqrt(q.shape[-1]), k, v, blocked)
        return self.out(mixed.reshape(*mixed.shape[:2], -1))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


def _uniform(bound: float):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def sine_positions(
    height: int, width: int, channels: int, sizes: Int[Array, "B 2"] | None = None
) -> Float[Array, "H W D"] | Float[Array, "B H W D"]:
    """Sine position encoding over a map (DETR): y in the first half of the channels, x in the second.

    Positions count from 1 and are scaled so that the last is 2 pi; temperature 10000; sine and cosine interleave. With
    `sizes`, the `(height, width)` that each image has of the map, its own last is 2 pi.
    """
    half = channels // 2
    period = np.float32(10000.0) ** (2 * (np.arange(half) // 2).astype(np.float32) / half)

    def axis(length: int, size: Int[Array, "B 1"] | int) -> Array | np.ndarray:
        # Without sizes in numpy, so that the two small tables are constants of the compiled program.
        xp = np if isinstance(size, int) else jnp
        size = xp.asarray(size, np.float32)
        position = np.arange(1, length + 1, dtype=np.float32) / (size + np.float32(1e-6)) * np.float32(2 * math.pi)
        angle = (position[..., None] / period).astype(np.float32)
        return xp.where(np.arange(half) % 2 == 0, xp.sin(angle), xp.cos(angle)).astype(np.float32)

    y = axis(height, height if sizes is None else sizes[:, :1])[..., :, None, :]
    x = axis(width, width if sizes is None else sizes[:, 1:])[..., None, :, :]
    shape = (*y.shape[:-3], height, width, half)
    return jnp.concatenate([jnp.broadcast_to(y, shape), jnp.broadcast_to(x, shape)], axis=-1)
