"""The image tower of CLIP: a ConvNeXt (arXiv 2201.03545) in timm's layout, and its projection to the joint space."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.layers import PatchConv, gelu, layer_norm, shared_trace
from fcclip_jax.ops.depthwise_conv import depthwise_conv
from fcclip_jax.ops.extent import cells_inside, zero_outside
from fcclip_jax.ops.mask_pooling import mask_pooling
from fcclip_jax.ops.row_parts import in_row_parts
from fcclip_jax.structures import Features


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the tower. `head` is how a pooled vector reaches the joint space: `mlp` (convnext_large_d*) or one
    `linear` map without bias; `image_size` is the side, in pixels, that CLIP was trained on. `layer_scale` is what
    each block's output is multiplied with at first: a small and shallow tower learns faster from 1."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    head: Literal["mlp", "linear"]
    image_size: int
    norm_eps: float = 1e-6
    layer_scale: float = 1e-6


class DepthwiseConv(nnx.Module):
    """7x7 depthwise convolution with bias."""

    def __init__(self, width: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (7, 7, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x + self.bias[...].astype(self.dtype)


class Block(nnx.Module):
    """Depthwise convolution, LayerNorm, four-fold MLP with exact GELU, layer scale, residual."""

    def __init__(self, width: int, *, eps: float, scale: float, dtype=jnp.float32, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.fc1 = nnx.Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(width, scale))

    def __call__(self, x: Float[Array, "B H W C"], inside: Bool[Array, "B H W"] | None = None) -> Array:
        x = zero_outside(x, inside)
        # One row a cell: products of plain matrices have the gradients that CPUs are quickest at.
        rows = tuple(map_.reshape(-1, x.shape[-1]) for map_ in (x, self.depthwise(x)))
        graphdef, state = nnx.split(self)
        mixed = in_row_parts(lambda rows, state: nnx.merge(graphdef, state).mix_channels(*rows), rows, state)
        return mixed.reshape(x.shape)

    def mix_channels(self, x: Float[Array, "R C"], y: Float[Array, "R C"]) -> Float[Array, "R C"]:
        """What follows the convolution, whose output is `y` where the block's input is `x`: a function of each cell."""
        y = self.fc2(gelu(self.fc1(self.norm(y))))
        return x + y * self.gamma[...].astype(y.dtype)


class Stage(nnx.Module):
    """Blocks of one width; all stages but the first begin with LayerNorm and a 2x2 convolution of stride 2."""

    def __init__(self, width_in: int, width: int, depth: int, config: VisionConfig, *, dtype, rngs: nnx.Rngs):
        eps, scale = config.norm_eps, config.layer_scale
        if width_in:
            self.downsample_norm = layer_norm(width_in, eps=eps, dtype=dtype, rngs=rngs)
            self.downsample = PatchConv(width_in, width, 2, dtype=dtype, rngs=rngs)
        else:
            self.downsample_norm = self.downsample = None
        self.blocks = nnx.List(Block(width, eps=eps, scale=scale, dtype=dtype, rngs=rngs) for _ in range(depth))

    def __call__(self, x: Float[Array, "B H W C"], inside: Bool[Array, "B h w"] | None = None) -> Array:
        """To `[B,h,w,D]`; `inside`: which cells of that are the images' own, zeros elsewhere."""
        if self.downsample is not None:
            x = self.downsample(self.downsample_norm(x))
        for block in self.blocks:
            x = shared_trace(block, x, inside)
        return zero_outside(x, inside)


class ClipVision(nnx.Module):
    """Images to four feature maps; pooled vectors of the last map to the joint space."""

    def __init__(self, config: VisionConfig, embed_dim: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        widths, eps = config.widths, config.norm_eps
        self.stem = PatchConv(3, widths[0], 4, dtype=dtype, rngs=rngs)
        self.stem_norm = layer_norm(widths[0], eps=eps, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            Stage(widths[i - 1] if i else 0, widths[i], depth, config, dtype=dtype, rngs=rngs)
            for i, depth in enumerate(config.depths)
        )
        self.head_norm = layer_norm(widths[-1], eps=eps, dtype=dtype, rngs=rngs)
        if config.head == "mlp":
            self.head_fc1 = nnx.Linear(widths[-1], 2 * embed_dim, dtype=dtype, rngs=rngs)
            self.head_fc2 = nnx.Linear(2 * embed_dim, embed_dim, use_bias=False, dtype=dtype, rngs=rngs)
            self.head_linear = None
        else:
            self.head_fc1 = self.head_fc2 = None
            self.head_linear = nnx.Linear(widths[-1], embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None = None) -> Features:
        """Normalised images, H and W multiples of 32, to the outputs of stem and stages.

        `extent`: `(height, width)` of each image, multiples of 32; see ops/extent.py. What is stored beyond it does not
        matter, and the maps are zero there (the stem excepted).
        """
        stem = x = self.stem_norm(self.stem(images))
        maps = []
        for i, stage in enumerate(self.stages):
            stride = 4 * 2**i
            shape = (images.shape[1] // stride, images.shape[2] // stride)
            x = stage(x, None if extent is None else cells_inside(extent, shape, stride))
            maps.append(x)
        return Features(stem, *maps)

    def pool(
        self, dense: Float[Array, "B h w C"], masks: Float[Array, "B Q h w"], extent: Int[Array, "B 2"] | None = None
    ) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
        """The mean of res5 where the mask logit is positive; and whether a mask has such a cell."""
        within = None if extent is None else cells_inside(extent, dense.shape[1:3], 32)
        return mask_pooling(dense, masks, within)

    def project(self, pooled: Float[Array, "*A C"]) -> Float[Array, "*A E"]:
        """Pooled vectors of res5 to image embeddings, not normalised."""
        x = self.head_norm(pooled)
        if self.head_linear is not None:
            return self.head_linear(x)
        return self.head_fc2(gelu(self.head_fc1(x)))

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """CLIP's own image embedding, of the whole image, not normalised."""
        return self.project(self(images).res5.mean(axis=(1, 2)))
