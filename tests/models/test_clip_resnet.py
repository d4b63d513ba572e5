"""The ResNet tower, block by block, against slow and obvious references in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcclip_jax.models.clip_resnet import AttentionPool, Bottleneck, ClipResNet, FrozenBatchNorm, average_pool
from fcclip_jax.models.fcclip import VARIANTS
from tests.models.modules import filled
from tests.models.tiny_resnet import TINY_RESNET

CONFIG, EMBED = TINY_RESNET.vision, TINY_RESNET.embed_dim
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def close(ours, expected):
    """float32 rounds at 6e-8; sums over up to 256 terms of unit scale, a few layers of them."""
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def double(parameter):
    return np.asarray(parameter[...], np.float64)


def slow_norm(norm, x):
    spread = np.sqrt(double(norm.var) + 1e-5)
    return (x - double(norm.mean)) / spread * double(norm.scale) + double(norm.bias)


def slow_conv3(conv, x, stride=1):
    """One output cell at a time; cells beyond the border are zero."""
    kernel, (_, height, width, _) = double(conv.kernel), x.shape
    out = np.zeros((len(x), height // stride, width // stride, kernel.shape[-1]))
    for row, column in np.ndindex(out.shape[1:3]):
        for i, j in np.ndindex(3, 3):
            y, z = stride * row + i - 1, stride * column + j - 1
            if 0 <= y < height and 0 <= z < width:
                out[:, row, column] += x[:, y, z] @ kernel[i, j]
    return out


def slow_pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def relu(x):
    return np.maximum(x, 0)


def slow_bottleneck(block, x):
    y = relu(slow_norm(block.norm1, x @ double(block.conv1.kernel)))
    y = relu(slow_norm(block.norm2, slow_conv3(block.conv2, y)))
    if block.stride == 2:
        x, y = slow_pool(x), slow_pool(y)
    y = slow_norm(block.norm3, y @ double(block.conv3.kernel))
    if block.downsample is not None:
        x = slow_norm(block.downsample_norm, x @ double(block.downsample.kernel))
    return relu(x + y)


def test_batch_norm_by_hand():
    norm = FrozenBatchNorm(2)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 0.0]), jnp.array([4.0, 1.0])
    norm.scale[...], norm.bias[...] = jnp.array([2.0, 3.0]), jnp.array([10.0, 0.0])
    # (5 - 1) / 2 * 2 + 10, and 1e-5 beside a variance of 4 changes the sixth digit.
    np.testing.assert_allclose(norm(jnp.array([[5.0, -1.0]])), [[14.0, -3.0]], rtol=1e-5)


def test_batch_norm_of_no_variance():
    """Where the variance is nothing the epsilon is all."""
    norm = FrozenBatchNorm(1)
    norm.var[...] = jnp.zeros(1)
    np.testing.assert_allclose(norm(jnp.ones((1, 1))), [[1e-5**-0.5]], rtol=1e-6)


def test_average_pool_by_hand():
    x = jnp.arange(8.0).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], [[2.5, 4.5]])


@pytest.mark.parametrize("width_in, stride", [(12, 1), (32, 1), (32, 2)])
def test_bottleneck(width_in, stride):
    block = filled(lambda rngs: Bottleneck(width_in, 8, stride, rngs=rngs))
    assert (block.downsample is None) == ((width_in, stride) == (32, 1))
    x = normal(2, 4, 6, width_in)
    close(jax.jit(block)(x), slow_bottleneck(block, x.astype(np.float64)))


@pytest.fixture(scope="module")
def tower():
    return filled(lambda rngs: ClipResNet(CONFIG, EMBED, rngs=rngs), scale=0.2)


def test_every_map_of_the_tower(tower):
    images = normal(1, 64, 32, 3)
    found = jax.jit(tower)(images)
    x = images.astype(np.float64)
    for i, stride in enumerate((2, 1, 1), 1):
        x = relu(slow_norm(getattr(tower, f"norm{i}"), slow_conv3(getattr(tower, f"conv{i}"), x, stride)))
    close(found.stem, x)
    assert found.stem.shape == (1, 32, 16, CONFIG.width)
    x = slow_pool(x)
    for name, stage in zip(("res2", "res3", "res4", "res5"), tower.stages, strict=True):
        for block in stage.blocks:
            x = slow_bottleneck(block, x)
        close(getattr(found, name), x)
    assert found.res5.shape == (1, 2, 1, CONFIG.widths[-1])


# ---------------------------------------------------------------------------------------- attention pooling


def slow_position(grid, row, column, shape):
    """Bilinear at the centre of a cell of a map of `shape`, corners of the grid clamped."""
    side = len(grid)
    weights = np.zeros((2, side))
    for axis, (index, size) in enumerate(zip((row, column), shape, strict=True)):
        place = max((index + 0.5) * side / size - 0.5, 0)
        low = int(place)
        weights[axis, low] += 1 - (place - low)
        weights[axis, min(low + 1, side - 1)] += place - low
    return np.einsum("y,x,yxc->c", *weights, grid)


def slow_attention_pool(pool, dense, inside):
    """One mask, one head at a time: `[N,C]` of one map `[h,w,C]` and masks `[N,h,w]`."""
    dense = dense.astype(np.float64)
    positions = double(pool.positional_embedding)
    grid = positions[1:].reshape(pool.grid, pool.grid, -1)

    def project(linear, x):
        return x @ double(linear.kernel) + double(linear.bias)

    query = project(pool.query, dense.mean((0, 1)) + positions[0])
    out = np.zeros((len(inside), dense.shape[-1]))
    for n, mask in enumerate(inside):
        cells = [dense[y, x] + slow_position(grid, y, x, mask.shape) for y, x in np.argwhere(mask)]
        if not cells:
            continue
        keys, values = project(pool.key, np.stack(cells)), project(pool.value, np.stack(cells))
        for head in np.split(np.arange(dense.shape[-1]), pool.heads):
            weights = np.exp(keys[:, head] @ query[head] / np.sqrt(len(head)))
            out[n, head] = weights @ values[:, head] / weights.sum()
    return out


@pytest.fixture(scope="module")
def pool():
    # With a scale of one over the root of the width the attention is neither flat nor all on one cell.
    return filled(lambda rngs: AttentionPool(CONFIG, EMBED, rngs=rngs), scale=0.06)


def masks_over(height, width):
    """All cells, one cell, none, some."""
    inside = np.zeros((4, height, width), bool)
    inside[0], inside[1, -1, 0] = True, True
    inside[3] = RNG.random((height, width)) < 0.5
    inside[3, 0, 0] = True
    return inside


# Against a grid of 3 x 3: smaller, equal, larger, and one of each.
@pytest.mark.parametrize("shape", [(2, 1), (3, 3), (5, 7), (2, 5)])
def test_attention_in_masks(pool, shape):
    dense, inside = 3 * normal(2, *shape, CONFIG.widths[-1]), np.stack([masks_over(*shape) for _ in range(2)])
    found = jax.jit(pool)(dense, inside)
    for one, cells, masks in zip(found, dense, inside, strict=True):
        close(one, slow_attention_pool(pool, cells, masks))


def test_the_query_looks_beyond_the_mask(pool):
    dense, inside = 3 * normal(1, 3, 4, CONFIG.widths[-1]), masks_over(3, 4)[None]
    inside[:, 3, 2, 3] = False
    other = dense.copy()
    other[:, 2, 3] += 3
    before, after = (np.asarray(jax.jit(pool)(x, inside))[0] for x in (dense, other))
    # One cell takes all attention whatever the query is; several are weighted by it.
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)
    assert np.abs(after[3] - before[3]).max() > 1e-3


def test_masks_by_their_sign_and_empty_ones(tower):
    dense = 3 * normal(1, 2, 3, CONFIG.widths[-1])
    masks = np.where(masks_over(2, 3), 0.1, 0.0)[None].astype(np.float32)
    pooled, valid = jax.jit(lambda dense, masks: tower.pool(dense, masks))(dense, masks)
    np.testing.assert_array_equal(valid, [[True, True, False, True]])
    np.testing.assert_array_equal(pooled[0, 2], np.zeros(CONFIG.widths[-1]))
    np.testing.assert_allclose(tower.project(pooled)[0, 2], tower.attention_pool.out.bias[...], rtol=1e-6)
    close(pooled[0], slow_attention_pool(tower.attention_pool, dense[0], masks[0] > 0))


def test_half_precision_keeps_its_type():
    def make():
        return ClipResNet(CONFIG, EMBED, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    def run(images, masks):
        tower = make()
        features = tower(images)
        pooled, _ = tower.pool(features.res5, masks, jnp.array([[64, 32]]))
        return vars(features) | {"embedded": tower.project(pooled)}

    shapes = jax.eval_shape(run, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 5, 2, 2)))
    assert {x.dtype for x in shapes.values()} == {jnp.dtype(jnp.bfloat16)}


def test_resnets_trust_clip_on_valid_masks_only_and_use_quick_gelu():
    names = {name for name, config in VARIANTS.items() if config.ensemble_on_valid_mask}
    assert names == {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}
    assert names == {name for name, config in VARIANTS.items() if config.text.activation == "quick_gelu"}
