"""The image tower of CLIP as a ResNet (arXiv 2103.00020, section 2.4; "ModifiedResNet" in its code): a stem of three
convolutions, average pooling in place of strides, and attention in place of the last average.

FC-CLIP restricts that attention to a mask (its `visual_prediction_forward_resnet`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.ops.extent import cells_inside, zero_outside
from fcclip_jax.ops.resize import interpolation_matrices, resize_bilinear
from fcclip_jax.structures import Features

# Of a bottleneck's output over its inner width.
EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of the tower. `width` is that of the stem; `image_size` is the side, in pixels, that CLIP was trained on,
    a multiple of 32: the attention has a position for each cell of stride 32."""

    depths: tuple[int, int, int, int]
    width: int
    image_size: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of res2 to res5."""
        return tuple(EXPANSION * self.width * 2**i for i in range(4))

    @property
    def heads(self) -> int:
        """Heads of the attention, 64 channels each."""
        return self.widths[-1] // 64

    @property
    def grid(self) -> int:
        """Positions of the attention along a side."""
        return self.image_size // 32


class FrozenBatchNorm(nnx.Module):
    """BatchNorm with its running statistics as constants: a scale and a shift for each channel, eps 1e-5."""

    def __init__(self, width: int, *, dtype=jnp.float32):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.Param(jnp.zeros(width))
        self.var = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "*A C"]) -> Float[Array, "*A C"]:
        factor = self.scale[...] * lax.rsqrt(self.var[...] + 1e-5)
        shift = self.bias[...] - self.mean[...] * factor
        return x * factor.astype(self.dtype) + shift.astype(self.dtype)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Means of 2 x 2 cells. (An extent is a whole number of those, so none reaches over a border.)"""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _conv3(width_in: int, width_out: int, *, stride: int = 1, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    # Not "SAME", which pads only behind where the stride is 2.
    padding = ((1, 1), (1, 1))
    return nnx.Conv(width_in, width_out, (3, 3), stride, padding=padding, use_bias=False, dtype=dtype, rngs=rngs)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with BatchNorm; ReLU between them and after the residual sum. With `stride` 2
    both ways are averaged over 2 x 2 cells."""

    def __init__(self, width_in: int, width: int, stride: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.stride, width_out = stride, EXPANSION * width
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.conv1 = nnx.Linear(width_in, width, **options)
        self.norm1 = FrozenBatchNorm(width, dtype=dtype)
        self.conv2 = _conv3(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = FrozenBatchNorm(width, dtype=dtype)
        self.conv3 = nnx.Linear(width, width_out, **options)
        self.norm3 = FrozenBatchNorm(width_out, dtype=dtype)
        if stride > 1 or width_in != width_out:
            self.downsample = nnx.Linear(width_in, width_out, **options)
            self.downsample_norm = FrozenBatchNorm(width_out, dtype=dtype)
        else:
            self.downsample = self.downsample_norm = None

    def __call__(self, x: Float[Array, "B H W C"], inside: Bool[Array, "B H W"] | None = None) -> Array:
        """`inside`: which cells of `x` are the images' own."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(zero_outside(y, inside))))
        if self.stride > 1:
            x, y = average_pool(x), average_pool(y)
        y = self.norm3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample_norm(self.downsample(x))
        return jax.nn.relu(x + y)


class Stage(nnx.Module):
    """Bottlenecks of one width, the first with the stage's stride."""

    def __init__(self, width_in: int, width: int, depth: int, stride: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            Bottleneck(EXPANSION * width if i else width_in, width, 1 if i else stride, dtype=dtype, rngs=rngs)
            for i in range(depth)
        )

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        inside_before: Bool[Array, "B H W"] | None = None,
        inside: Bool[Array, "B h w"] | None = None,
    ) -> Float[Array, "B h w D"]:
        """`inside_before` and `inside`: which cells of the input and of the output are the images' own, zeros elsewhere
        in the output."""
        for i, block in enumerate(self.blocks):
            x = block(x, inside if i else inside_before)
        return zero_outside(x, inside)


class AttentionPool(nnx.Module):
    """One query, the mean of the map, attends to the map's cells; learned positions for query and cells."""

    def __init__(self, config: ResNetConfig, embed_dim: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        width = config.widths[-1]
        self.heads, self.grid, self.dtype = config.heads, config.grid, dtype
        normal = nnx.initializers.normal(width**-0.5)
        self.positional_embedding = nnx.Param(normal(rngs.params(), (config.grid**2 + 1, width)))
        self.key = nnx.Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, embed_dim, kernel_init=normal, dtype=dtype, rngs=rngs)

    def __call__(
        self, dense: Float[Array, "B h w C"], inside: Bool[Array, "B Q h w"], extent: Int[Array, "B 2"] | None = None
    ) -> Float[Array, "B Q C"]:
        """What the query finds in each mask, before the output projection; zeros where a mask is empty.

        (There the reference has NaN or zeros, as the version of PyTorch decides, and does not use them: section 5 of
        the ensemble, `valid`.)
        """
        query = self._query(dense, extent)
        keys = dense + self._positions(dense.shape[1:3], extent)
        return self._attend(
            query, keys.reshape(*keys.shape[:1], -1, keys.shape[-1]), inside.reshape(*inside.shape[:2], -1)
        )

    def of_image(self, dense: Float[Array, "B h w C"]) -> Float[Array, "B C"]:
        """CLIP's own pooling of the whole map: here the query itself is among the keys."""
        query = self._query(dense, None)
        cells = dense + self._positions(dense.shape[1:3], None)
        keys = jnp.concatenate([query[:, None], cells.reshape(cells.shape[0], -1, cells.shape[-1])], axis=1)
        return self._attend(query, keys, jnp.ones((keys.shape[0], 1, keys.shape[1]), bool))[:, 0]

    def _query(self, dense: Array, extent: Array | None) -> Float[Array, "B C"]:
        """The mean over all cells of each image, without their positions, plus its own position."""
        if extent is None:
            mean = dense.mean((1, 2))
        else:
            cells = cells_inside(extent, dense.shape[1:3], 32)
            area = cells.sum((1, 2), dtype=jnp.float32)[:, None]
            mean = (zero_outside(dense, cells).sum((1, 2), dtype=jnp.float32) / area).astype(dense.dtype)
        return mean + self.positional_embedding[...][0].astype(self.dtype)

    def _positions(self, shape: tuple[int, int], extent: Array | None) -> Float[Array, "#B h w C"]:
        """The square grid of learned positions resized, bilinearly, to the map, or to what each image has of it."""
        grid = self.positional_embedding[...][1:].reshape(1, self.grid, self.grid, -1)
        if extent is None:
            resized = resize_bilinear(grid, *shape, axes=(1, 2))
        else:
            y, x = (interpolation_matrices(self.grid, extent[:, i] // 32, shape[i]) for i in (0, 1))
            resized = jnp.einsum("byk,bxl,klc->byxc", y, x, grid[0], precision=lax.Precision.HIGHEST)
        return resized.astype(self.dtype)

    def _attend(
        self, query: Float[Array, "B C"], keys: Float[Array, "B T C"], inside: Bool[Array, "B Q T"]
    ) -> Float[Array, "B Q C"]:
        # All masks of an image share one query, so that its products with the keys are made once.
        q, k, v = (
            x.reshape(*x.shape[:-1], self.heads, -1) for x in (self.query(query), self.key(keys), self.value(keys))
        )
        scaled = q / math.sqrt(q.shape[-1])
        logits = jnp.einsum("bmd,btmd->bmt", scaled, k, preferred_element_type=jnp.float32)[:, :, None]
        inside = inside[:, None]
        weights = jax.nn.softmax(jnp.where(inside, logits, jnp.finfo(jnp.float32).min), axis=-1)
        weights = jnp.where(inside, weights, 0).astype(v.dtype)
        mixed = jnp.einsum("bmqt,btmd->bqmd", weights, v)
        return mixed.reshape(*mixed.shape[:2], -1)


class ClipResNet(nnx.Module):
    """Images to four feature maps; the last map and masks to the joint space."""

    def __init__(self, config: ResNetConfig, embed_dim: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        width, half = config.width, config.width // 2
        self.conv1 = _conv3(3, half, stride=2, dtype=dtype, rngs=rngs)
        self.norm1 = FrozenBatchNorm(half, dtype=dtype)
        self.conv2 = _conv3(half, half, dtype=dtype, rngs=rngs)
        self.norm2 = FrozenBatchNorm(half, dtype=dtype)
        self.conv3 = _conv3(half, width, dtype=dtype, rngs=rngs)
        self.norm3 = FrozenBatchNorm(width, dtype=dtype)
        self.stages = nnx.List(
            Stage(config.widths[i - 1] if i else width, width * 2**i, depth, 2 if i else 1, dtype=dtype, rngs=rngs)
            for i, depth in enumerate(config.depths)
        )
        self.attention_pool = AttentionPool(config, embed_dim, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"], extent: Int[Array, "B 2"] | None = None) -> Features:
        """Normalised images, H and W multiples of 32, to the outputs of stem and stages.

        `extent`: `(height, width)` of each image, multiples of 32; see ops/extent.py. What is stored beyond it does not
        matter, and the maps are zero there (the stem excepted). The stem has stride 2; a ConvNeXt's has 4.
        """

        def inside(stride: int) -> Array | None:
            shape = (images.shape[1] // stride, images.shape[2] // stride)
            return None if extent is None else cells_inside(extent, shape, stride)

        x = jax.nn.relu(self.norm1(self.conv1(zero_outside(images, inside(1)))))
        x = jax.nn.relu(self.norm2(self.conv2(zero_outside(x, inside(2)))))
        stem = jax.nn.relu(self.norm3(self.conv3(zero_outside(x, inside(2)))))
        x, maps = average_pool(stem), []
        for i, stage in enumerate(self.stages):
            stride = 4 * 2**i
            x = stage(x, inside(stride // 2 if i else 4), inside(stride))
            maps.append(x)
        return Features(stem, *maps)

    def pool(
        self, dense: Float[Array, "B h w C"], masks: Float[Array, "B Q h w"], extent: Int[Array, "B 2"] | None = None
    ) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
        """Attention over the cells of res5 where the mask logit is positive; and whether a mask has any."""
        inside = masks > 0
        if extent is not None:
            inside &= cells_inside(extent, dense.shape[1:3], 32)[:, None]
        return self.attention_pool(dense, inside, extent), inside.any((2, 3))

    def project(self, pooled: Float[Array, "*A C"]) -> Float[Array, "*A E"]:
        """Pooled vectors to image embeddings, not normalised."""
        return self.attention_pool.out(pooled)

    def embed(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """CLIP's own image embedding, of the whole image, not normalised."""
        return self.project(self.attention_pool.of_image(self(images).res5))
