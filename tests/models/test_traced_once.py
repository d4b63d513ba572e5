"""Blocks of one shape share one trace: seconds of every start at ConvNeXt-L."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.models import clip_vision, pixel_decoder
from fcclip_jax.models.layers import shared_trace
from fcclip_jax.ops import deformable_attention as deformable
from fcclip_jax.ops.platform import by_platform, every_platform
from fcclip_jax.structures import Features


def calls_while_traced(monkeypatch, module, name, function, *args):
    """How often `module.name` is called while `function(*args)` is traced."""
    original, calls = getattr(module, name), []

    def counted(*args, **options):
        calls.append(name)
        return original(*args, **options)

    monkeypatch.setattr(module, name, counted)
    jax.jit(function).trace(*args)
    return len(calls)


def test_blocks_of_one_shape_trace_the_convolution_once(monkeypatch):
    config = clip_vision.VisionConfig((4, 1, 1, 1), (12, 12, 12, 12), "linear", 64)
    stage = clip_vision.Stage(0, 12, 4, config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    image = jnp.ones((1, 11, 13, 12))
    assert calls_while_traced(monkeypatch, clip_vision, "depthwise_conv", stage, image) == 1


def test_layers_of_one_shape_trace_the_attention_once(monkeypatch):
    config = pixel_decoder.PixelDecoderConfig(width=32, layers=5, heads=4, points=2, feedforward=24)
    decoder = pixel_decoder.PixelDecoder(config, (8, 8, 8, 8), rngs=nnx.Rngs(0))
    maps = [jnp.ones((1, 64 // stride, 96 // stride, 8)) for stride in (4, 4, 8, 16, 32)]
    # One call a level: three levels, one layer.
    assert calls_while_traced(monkeypatch, deformable, "corners", decoder, Features(*maps)) == pixel_decoder.LEVELS


class Layer(nnx.Module):
    """Says how often it is traced, and holds two formulations."""

    traced: ClassVar[list[int]] = []

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, x, *, power):
        self.traced.append(power)
        scaled = self.factor[...] * x**power
        return by_platform(scaled, cpu=lambda x: x + 1, other=lambda x: 1 + x)


def test_modules_of_one_structure_share_a_trace():
    layers = [Layer(factor) for factor in (2, 3, 5)]
    x = jnp.arange(4.0)
    Layer.traced.clear()

    def tower(x):
        for layer in layers:
            x = shared_trace(layer, x, power=1)
        return shared_trace(layers[0], x, power=2)

    np.testing.assert_array_equal(jax.jit(tower)(x), 2 * ((x * 2 + 1) * 3 * 5 + 5 + 1) ** 2 + 1)
    assert Layer.traced == [1, 2]
    # What holds one formulation alone is not taken where both are asked for.
    with every_platform():
        both = str(jax.make_jaxpr(lambda x: shared_trace(layers[0], x, power=1))(x))
    one = str(jax.make_jaxpr(lambda x: shared_trace(layers[0], x, power=1))(x))
    assert Layer.traced == [1, 2, 1] and "platform_index" in both and "platform_index" not in one


def test_each_module_has_its_own_gradient():
    layers = [Layer(factor) for factor in (2, 3)]
    graphdef, _ = nnx.split(layers[0])
    states = [nnx.split(layer)[1] for layer in layers]

    def loss(states, x):
        for state in states:
            x = shared_trace(nnx.merge(graphdef, state), x, power=1)
        return x.sum()

    gradients = jax.grad(loss)(states, jnp.ones(4))
    # (f0 x + 1) f1 + 1 at x = 1, four times: f1 to the first, f0 + 1 to the second.
    assert [float(jax.tree.leaves(gradient)[0]) for gradient in gradients] == [12, 12]
