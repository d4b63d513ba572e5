"""The pixel decoder of Mask2Former (arXiv 2112.01527): six deformable encoder layers over strides 32, 16, 8, and one
FPN step to stride 4. Always float32, as in the reference."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fcclip_jax.models.layers import c2_xavier, group_norm, layer_norm, shared_trace, sine_positions, xavier_uniform
from fcclip_jax.ops.deformable_attention import deformable_attention, deformable_attention_by_tap
from fcclip_jax.ops.extent import cells_inside, repeat_edges, zero_outside
from fcclip_jax.ops.platform import by_platform
from fcclip_jax.ops.resize import resize_bilinear
from fcclip_jax.ops.row_parts import in_row_parts
from fcclip_jax.structures import Features, PixelDecoderOutput

LEVELS = 3
# Pixels per cell of the levels, in the order of this decoder.
STRIDES = (32, 16, 8)


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """`width` is D, of the maps and of `mask_features`; `points` a head samples on each level."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    points: int = 4
    feedforward: int = 1024


def _ring_offsets(heads: int, points: int) -> np.ndarray:
    """Initial sampling offsets: head m looks along its own direction, point p at p+1 pixels (Deformable DETR)."""
    angle = np.arange(heads) * (2 * math.pi / heads)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    steps = np.arange(1, points + 1)
    grid = direction[:, None, None, :] * steps[None, None, :, None]
    return np.broadcast_to(grid, (heads, LEVELS, points, 2)).reshape(-1).astype(np.float32)


class DeformableSelfAttention(nnx.Module):
    """Offsets and weights from the query, values from the maps. The layer that it belongs to projects its output."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        self.heads, self.points = config.heads, config.points
        width, taps = config.width, config.heads * LEVELS * config.points
        zeros = nnx.initializers.zeros
        self.sampling_offsets = nnx.Linear(width, taps * 2, kernel_init=zeros, rngs=rngs)
        self.sampling_offsets.bias[...] = jnp.asarray(_ring_offsets(config.heads, config.points))
        self.attention_weights = nnx.Linear(width, taps, kernel_init=zeros, rngs=rngs)
        self.value_proj = nnx.Linear(width, width, kernel_init=xavier_uniform, rngs=rngs)
        self.output_proj = nnx.Linear(width, width, kernel_init=xavier_uniform, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "B T D"],
        positions: Float[Array, "*B T D"],
        reference: Float[Array, "*B T 2"],
        shapes: tuple[tuple[int, int], ...],
        sizes: Int[Array, "B L 2"] | None = None,
    ) -> Float[Array, "B T M d"]:
        batch, length, _ = tokens.shape
        query = tokens + positions
        offsets = self.sampling_offsets(query)
        offsets = offsets.reshape(batch, length, self.heads, LEVELS, self.points, 2)
        weights = self.attention_weights(query).reshape(batch, length, self.heads, -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(offsets.shape[:-1])
        # (width, height) of each level, against the axes of offsets: query, head, level, point.
        size = jnp.asarray([(w, h) for h, w in shapes], jnp.float32)[:, None]
        if sizes is not None:
            size = sizes[:, None, None, :, None, ::-1].astype(jnp.float32)
        locations = reference[..., None, None, None, :] + offsets / size
        value = self.value_proj(tokens).reshape(batch, length, self.heads, -1)

        return by_platform(
            value,
            locations,
            weights,
            cpu=lambda *args: deformable_attention_by_tap(*args, shapes, sizes),
            other=lambda *args: deformable_attention(*args, shapes, sizes=sizes),
        )


class EncoderLayer(nnx.Module):
    """Deformable self-attention and a ReLU feed-forward, each residual with LayerNorm after."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.attention = DeformableSelfAttention(config, rngs=rngs)
        self.norm1 = layer_norm(width, rngs=rngs)
        self.linear1 = nnx.Linear(width, config.feedforward, kernel_init=xavier_uniform, rngs=rngs)
        self.linear2 = nnx.Linear(config.feedforward, width, kernel_init=xavier_uniform, rngs=rngs)
        self.norm2 = layer_norm(width, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "B T D"],
        positions: Float[Array, "*B T D"],
        reference: Float[Array, "*B T 2"],
        sizes: Int[Array, "B L 2"] | None,
        *,
        shapes: tuple[tuple[int, int], ...],
    ) -> Float[Array, "B T D"]:
        sampled = self.attention(tokens, positions, reference, shapes, sizes)
        graphdef, state = nnx.split(self)
        rows = (tokens.reshape(-1, tokens.shape[-1]), sampled.reshape(-1, *sampled.shape[2:]))
        out = in_row_parts(lambda rows, state: nnx.merge(graphdef, state).mix_channels(*rows), rows, state)
        return out.reshape(tokens.shape)

    def mix_channels(self, tokens: Float[Array, "R D"], sampled: Float[Array, "R M d"]) -> Float[Array, "R D"]:
        """What follows once the maps are read: a function of each token."""
        tokens = self.norm1(tokens + self.attention.output_proj(sampled.reshape(tokens.shape)))
        return self.norm2(tokens + self.linear2(jax.nn.relu(self.linear1(tokens))))


class PixelDecoder(nnx.Module):
    """Features of the frozen tower to `mask_features` and the three scales that the transformer decoder reads."""

    def __init__(self, config: PixelDecoderConfig, widths: tuple[int, ...], *, remat: bool = False, rngs: nnx.Rngs):
        self.remat = remat
        width = config.width
        res2, *upper = widths
        # From low to high resolution, as everywhere in this decoder: res5, res4, res3.
        self.input_proj = nnx.List(nnx.Linear(w, width, kernel_init=xavier_uniform, rngs=rngs) for w in upper[::-1])
        self.input_norm = nnx.List(group_norm(width, rngs=rngs) for _ in upper)
        self.level_embed = nnx.Param(jax.random.normal(rngs.params(), (LEVELS, width)))
        self.layers = nnx.List(EncoderLayer(config, rngs=rngs) for _ in range(config.layers))
        self.lateral = nnx.Linear(res2, width, use_bias=False, kernel_init=c2_xavier, rngs=rngs)
        self.lateral_norm = group_norm(width, rngs=rngs)
        self.output = nnx.Conv(width, width, (3, 3), use_bias=False, kernel_init=c2_xavier, rngs=rngs)
        self.output_norm = group_norm(width, rngs=rngs)
        self.mask_features = nnx.Linear(width, width, kernel_init=c2_xavier, rngs=rngs)

    def __call__(self, features: Features, extent: Int[Array, "B 2"] | None = None) -> PixelDecoderOutput:
        """All maps of the output are float32, and so are the products, also where a device would take fewer bits.

        `extent`: `(height, width)` of each image in pixels, see ops/extent.py; what the output holds beyond it does not
        matter.
        """
        with jax.default_matmul_precision("float32"):
            return self._decode(features, extent)

    def _decode(self, features: Features, extent: Int[Array, "B 2"] | None) -> PixelDecoderOutput:
        def normed(norm: nnx.GroupNorm, x: Array, stride: int) -> Array:
            if extent is None:
                return norm(x)
            inside = cells_inside(extent, x.shape[1:3], stride)
            return norm(x, mask=jnp.broadcast_to(inside[..., None], x.shape))

        inputs = [
            normed(norm, project(x.astype(jnp.float32)), stride)
            for norm, project, x, stride in zip(
                self.input_norm,
                self.input_proj,
                (features.res5, features.res4, features.res3),
                STRIDES,
                strict=True,
            )
        ]
        scales, encoded = self._encode(inputs, extent)
        res2 = features.res2.astype(jnp.float32)
        y = normed(self.lateral_norm, self.lateral(res2), 4)
        finest = repeat_edges(scales[-1], extent, STRIDES[-1])
        y = y + resize_bilinear(finest, *res2.shape[1:3], axes=(1, 2))
        if extent is not None:
            y = zero_outside(y, cells_inside(extent, y.shape[1:3], 4))
        y = jax.nn.relu(normed(self.output_norm, self.output(y), 4))
        return PixelDecoderOutput(
            mask_features=self.mask_features(y),
            multi_scale=tuple(scales),
            encoder_layers=tuple(encoded),
            input_proj=tuple(inputs),
        )

    def _encode(self, inputs: list[Array], extent: Int[Array, "B 2"] | None) -> tuple[list[Array], list[Array]]:
        batch, width = inputs[0].shape[0], inputs[0].shape[-1]
        shapes = tuple(x.shape[1:3] for x in inputs)
        sizes = None if extent is None else extent[:, None] // np.array(STRIDES)[:, None]
        tokens = jnp.concatenate([x.reshape(batch, -1, width) for x in inputs], axis=1)
        positions, reference = [], []
        for i, (h, w) in enumerate(shapes):
            size = None if sizes is None else sizes[:, i]
            sine = sine_positions(h, w, width, size)
            positions.append(sine.reshape(*sine.shape[:-3], h * w, width) + self.level_embed[i])
            reference.append(_pixel_centres(h, w, size))
        positions, reference = jnp.concatenate(positions, axis=-2), jnp.concatenate(reference, axis=-2)
        encoded = []
        for layer in self.layers:
            call = functools.partial(shared_trace, layer, shapes=shapes)
            call = jax.checkpoint(call) if self.remat else call
            tokens = call(tokens, positions, reference, sizes)
            encoded.append(tokens)
        scales, start = [], 0
        for h, w in shapes:
            scales.append(tokens[:, start : start + h * w].reshape(batch, h, w, width))
            start += h * w
        return scales, encoded


def _pixel_centres(height: int, width: int, sizes: Int[Array, "B 2"] | None = None) -> Float[Array, "*B T 2"]:
    """The centre `(x, y)` of every pixel, row by row, in units of the map's size, or of each image's own `sizes`."""
    own_height, own_width = (height, width) if sizes is None else (sizes[:, :1], sizes[:, 1:])
    x = (jnp.arange(width) + 0.5) / own_width
    y = (jnp.arange(height) + 0.5) / own_height
    grid = jnp.stack(jnp.broadcast_arrays(x[..., None, :], y[..., :, None]), axis=-1)
    return grid.reshape(*grid.shape[:-3], height * width, 2).astype(jnp.float32)
