"""The transformer decoder of Mask2Former (arXiv 2112.01527), with FC-CLIP's mask-pooled class embedding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.layers import (
    MLP,
    MultiHeadAttention,
    layer_norm,
    shared_trace,
    sine_positions,
    torch_linear,
    xavier_uniform,
)
from fcclip_jax.ops.extent import cells_inside
from fcclip_jax.ops.mask_logits import mask_logits
from fcclip_jax.ops.mask_pooling import mask_pooling
from fcclip_jax.ops.resize import shrink
from fcclip_jax.structures import PixelDecoderOutput

LEVELS = 3
# Pixels per cell of the levels, in the order in which the layers take them.
STRIDES = (32, 16, 8)
MASK_STRIDE = 4


@dataclasses.dataclass(frozen=True)
class TransformerDecoderConfig:
    """`queries` proposals of `width` D, refined by `layers` layers."""

    width: int = 256
    queries: int = 250
    layers: int = 9
    heads: int = 8
    feedforward: int = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """One entry before the first layer and one after each: `queries` `[B,Q,D]`, `masks` `[B,Q,h,w]` logits,
    `class_embeds` `[B,Q,E]`; `blocked` `[B,Q,T]`: where the NEXT layer may not look, before rows that are blocked
    everywhere are freed."""

    queries: tuple[jax.Array, ...]
    masks: tuple[jax.Array, ...]
    class_embeds: tuple[jax.Array, ...]
    blocked: tuple[jax.Array, ...]


class DecoderLayer(nnx.Module):
    """Masked cross-attention, self-attention, feed-forward; each residual with LayerNorm after."""

    def __init__(self, config: TransformerDecoderConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        width = config.width
        self.cross_attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.cross_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.self_attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.self_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        linear = {"kernel_init": xavier_uniform, "dtype": dtype, "rngs": rngs}
        self.linear1 = nnx.Linear(width, config.feedforward, **linear)
        self.linear2 = nnx.Linear(config.feedforward, width, **linear)
        self.ffn_norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "B Q D"],
        query_embed: Float[Array, "Q D"],
        memory: Float[Array, "B T D"],
        positions: Float[Array, "*B T D"],
        blocked: Bool[Array, "B Q T"],
        outside: Bool[Array, "B 1 T"] | None = None,
    ) -> Float[Array, "B Q D"]:
        # A query that is blocked everywhere attends everywhere, but never beyond its image.
        if outside is None:
            blocked = blocked & ~blocked.all(axis=-1, keepdims=True)
        else:
            blocked = (blocked & ~(blocked | outside).all(axis=-1, keepdims=True)) | outside
        x = self.cross_attention(queries + query_embed, memory + positions, memory, blocked=blocked)
        queries = self.cross_norm(queries + x)
        placed = queries + query_embed
        queries = self.self_norm(queries + self.self_attention(placed, placed, queries))
        return self.ffn_norm(queries + self.linear2(jax.nn.relu(self.linear1(queries))))


class TransformerDecoder(nnx.Module):
    """Q learned queries against the three scales, by turns, to masks and class embeddings."""

    def __init__(
        self,
        config: TransformerDecoderConfig,
        embed_dim: int,
        *,
        remat: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        width = config.width
        normal = nnx.initializers.normal(1.0)
        self.dtype = dtype
        self.query_feat = nnx.Param(normal(rngs.params(), (config.queries, width)))
        self.query_embed = nnx.Param(normal(rngs.params(), (config.queries, width)))
        self.level_embed = nnx.Param(normal(rngs.params(), (LEVELS, width)))
        self.layers = nnx.List(DecoderLayer(config, dtype=dtype, rngs=rngs) for _ in range(config.layers))
        self.decoder_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mask_embed = MLP(width, width, width, 3, dtype=dtype, rngs=rngs)
        self.pool_norm = layer_norm(width, rngs=rngs)
        self.pool_proj = nnx.Linear(width, width, kernel_init=torch_linear, dtype=dtype, rngs=rngs)
        self.class_embed = MLP(width, width, embed_dim, 3, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def __call__(self, pixels: PixelDecoderOutput, extent: Int[Array, "B 2"] | None = None) -> DecoderOutput:
        """`extent`: `(height, width)` of each image in pixels, see ops/extent.py. Beyond it, masks and `blocked` of the
        output do not matter."""
        maps = pixels.multi_scale
        batch, width = maps[0].shape[0], maps[0].shape[-1]
        shapes = [x.shape[1:3] for x in maps]
        memory = [(x + self.level_embed[i]).reshape(batch, -1, width).astype(self.dtype) for i, x in enumerate(maps)]
        positions, outside, within = [], [None] * LEVELS, None
        for (h, w), stride in zip(shapes, STRIDES, strict=True):
            sine = sine_positions(h, w, width, None if extent is None else extent // stride)
            positions.append(sine.reshape(*sine.shape[:-3], h * w, width).astype(self.dtype))
        if extent is not None:
            inside = [cells_inside(extent, shape, stride) for shape, stride in zip(shapes, STRIDES, strict=True)]
            outside = [~x.reshape(batch, 1, -1) for x in inside]
            within = cells_inside(extent, pixels.mask_features.shape[1:3], 4)
        query_embed = self.query_embed[...].astype(self.dtype)
        queries = jnp.broadcast_to(self.query_feat[...], (batch, *self.query_feat.shape)).astype(self.dtype)
        # Resizing is linear, so masks at the size of a level come from mask features of that size: nobody needs the
        # large masks between the layers but a loss, and without one they are never computed.
        features = lax.stop_gradient(pixels.mask_features)
        small = [shrink(features, stride // MASK_STRIDE) for stride in STRIDES]
        steps = [self._predict(queries, pixels.mask_features, small[0], within)]
        for i, layer in enumerate(self.layers):
            level = i % LEVELS
            call = functools.partial(shared_trace, layer)
            call = jax.checkpoint(call) if self.remat else call
            queries = call(queries, query_embed, memory[level], positions[level], steps[-1][-1], outside[level])
            steps.append(self._predict(queries, pixels.mask_features, small[(i + 1) % LEVELS], within))
        return DecoderOutput(*(tuple(column) for column in zip(*steps, strict=True)))

    def _predict(
        self,
        queries: Float[Array, "B Q D"],
        mask_features: Float[Array, "B h w D"],
        small_features: Float[Array, "B h2 w2 D"],
        within: Bool[Array, "B h w"] | None,
    ) -> tuple[Array, Array, Array, Array]:
        """Queries to masks, class embeddings and the attention mask of the next layer."""
        normed = self.decoder_norm(queries)
        mask_embed = self.mask_embed(normed)
        masks = mask_logits(mask_embed, mask_features.astype(self.dtype))
        pooled, _ = mask_pooling(mask_features, masks, within)
        class_embed = self.class_embed(self.pool_proj(self.pool_norm(pooled)) + normed)
        # The reference blocks where sigmoid < 0.5, which rounds just below 0 differently from `logit < 0`.
        small = mask_logits(lax.stop_gradient(mask_embed), small_features.astype(self.dtype))
        blocked = jax.nn.sigmoid(small).reshape(*small.shape[:2], -1) < 0.5
        return queries, masks, class_embed.astype(jnp.float32), blocked
