"""A plain vision transformer (arXiv 2010.11929) in the ConvNeXt's place: what FC-CLIP's section 3.1 argues against.

Its maps all come from the last layer, resized. The position embedding was learned for one size and is stretched to
others, which is where it suffers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.layers import MultiHeadAttention, PatchConv, gelu, layer_norm
from fcclip_jax.ops.extent import cells_inside, zero_outside
from fcclip_jax.ops.mask_pooling import mask_pooling
from fcclip_jax.ops.resize import interpolation_matrices
from fcclip_jax.structures import Features

_STRIDES = (4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of the tower; `image_size`, a multiple of `patch`, is what the position embedding is learned for."""

    width: int
    heads: int
    layers: int
    image_size: int
    patch: int = 16

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of res2 to res5."""
        return (self.width,) * 4


class Block(nnx.Module):
    """LayerNorm and self-attention, LayerNorm and a four-fold MLP with exact GELU, both residual."""

    def __init__(self, config: ViTConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = MultiHeadAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], blocked: Bool[Array, "B T T"] | None = None) -> Float[Array, "B T D"]:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, blocked=blocked)
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class ClipViT(nnx.Module):
    """Images to the same record of maps as `ClipVision`; pooled vectors of the last one to the joint space."""

    def __init__(self, config: ViTConfig, embed_dim: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        side = config.image_size // config.patch
        self.patch = config.patch
        self.stem = PatchConv(3, config.width, config.patch, dtype=dtype, rngs=rngs)
        positions = 0.02 * jax.random.normal(rngs.params(), (side, side, config.width))
        self.positional_embedding = nnx.Param(positions)
        self.blocks = nnx.List(Block(config, dtype=dtype, rngs=rngs) for _ in range(config.layers))
        self.head_norm = layer_norm(config.width, dtype=dtype, rngs=rngs)
        self.head_linear = nnx.Linear(config.width, embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None = None) -> Features:
        """Normalised images, H and W multiples of 32, to maps of strides 4 to 32, all of one width. `extent` as for
        `ClipVision`: positions are stretched over each image's own size, and nothing looks beyond it."""
        stem = self.stem(images)
        batch, height, width, channels = stem.shape
        if extent is None:
            inside, blocked = None, None
            extent = jnp.broadcast_to(jnp.array(images.shape[1:3]), (batch, 2))
        else:
            inside = cells_inside(extent, (height, width), self.patch)
            blocked = jnp.broadcast_to(~inside.reshape(batch, 1, -1), (batch, height * width, height * width))
        x = (stem + self._positions(extent, height, width).astype(stem.dtype)).reshape(batch, -1, channels)
        for block in self.blocks:
            x = block(x, blocked)
        x = zero_outside(x.reshape(stem.shape), inside)
        return Features(stem, *(self._at_stride(x, stride) for stride in _STRIDES))

    def _positions(self, extent: Int[Array, "B 2"], height: int, width: int) -> Float[Array, "B h w D"]:
        """The embedding, resized bilinearly to each image's own number of patches."""
        table = self.positional_embedding[...]
        rows, columns = (
            interpolation_matrices(table.shape[0], extent[:, axis] // self.patch, cells)
            for axis, cells in enumerate((height, width))
        )
        return jnp.einsum("bhi,bwj,ijd->bhwd", rows, columns, table, precision=lax.Precision.HIGHEST)

    def _at_stride(self, x: Float[Array, "B h w D"], stride: int) -> Float[Array, "B H W D"]:
        batch, height, width, channels = x.shape
        if stride > self.patch:  # means, so that every token counts
            times = stride // self.patch
            return x.reshape(batch, height // times, times, width // times, times, channels).mean((2, 4))
        # Repeated, not interpolated: no image's cells mix with what lies beyond it.
        times = self.patch // stride
        return x.repeat(times, axis=1).repeat(times, axis=2)

    def pool(
        self, dense: Float[Array, "B h w C"], masks: Float[Array, "B Q h w"], extent: Int[Array, "B 2"] | None = None
    ) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
        """As `ClipVision.pool`."""
        within = None if extent is None else cells_inside(extent, dense.shape[1:3], 32)
        return mask_pooling(dense, masks, within)

    def project(self, pooled: Float[Array, "*A C"]) -> Float[Array, "*A E"]:
        """Pooled vectors of res5 to image embeddings, not normalised."""
        return self.head_linear(self.head_norm(pooled))

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """The embedding of the whole image, the mean over its tokens, not normalised."""
        return self.project(self(images).res5.mean(axis=(1, 2)))
