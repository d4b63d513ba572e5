"""Memory that a training step of ConvNeXt-L needs, as the compiler plans it, and what it would need if gradients went
through the frozen tower too; as one JSON object. Nothing is allocated or run.

    python -m tools.bench.train_memory [--size 1024] [--batch 1] [--dtype float32] [--remat] [--json FILE]

The plan is that of the platform it runs on (a GPU's or TPU's compiler plans a little differently). Depthwise
convolutions are compiled as on GPU and TPU, because the sums that stand for them on CPU have a costly gradient that
would flatter us.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.losses.criterion import CriterionConfig, random_draw
from fcclip_jax.models import clip_vision
from fcclip_jax.models.fcclip import VARIANTS
from fcclip_jax.ops.depthwise_conv import depthwise_conv_grouped
from fcclip_jax.training import sharding, train_state
from fcclip_jax.training.optimizer import OptimizerConfig, make_optimizer
from fcclip_jax.training.train_step import make_loss, make_train_step

# COCO panoptic: classes, names of them, and the most segments of an image.
CLASSES, SYNONYMS, SEGMENTS = 133, 254, 100

Shape = jax.ShapeDtypeStruct


def batch_shapes(batch: int, size: int) -> dict[str, Shape]:
    """A batch as the loader makes it."""
    return {
        "image": Shape((batch, size, size, 3), np.uint8),
        "ids": Shape((batch, size, size), np.int16),
        "labels": Shape((batch, SEGMENTS), np.int32),
        "valid": Shape((batch, SEGMENTS), bool),
    }


def text_shapes(embed_dim: int) -> dict[str, Shape]:
    """The words of COCO panoptic."""
    return {
        "rows": Shape((SYNONYMS, embed_dim), np.float32),
        "synonym_to_class": Shape((SYNONYMS,), np.int32),
        "classes": Shape((CLASSES,), bool),
    }


def planned(call: Callable, *shapes) -> dict[str, float]:
    """GB of the compiled program: its arguments, what it hands back, and what it needs besides."""
    started = time.perf_counter()
    lowered = (call if hasattr(call, "lower") else jax.jit(call)).lower(*shapes)
    # Buffers are planned before machine code is made, so how well that is made changes nothing but the time.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    compiled = lowered.compile(compiler_options=quick)
    analysis = compiled.memory_analysis()
    return {
        "arguments_gb": analysis.argument_size_in_bytes / 1e9,
        "outputs_gb": analysis.output_size_in_bytes / 1e9,
        "temporaries_gb": analysis.temp_size_in_bytes / 1e9,
        "compile_seconds": time.perf_counter() - started,
    }


def whole_step(model, options, frozen_dtype, batch, text) -> dict[str, float]:
    """The step of a training run on one device."""
    graphdef, params, frozen = train_state.abstract_model(model, options)
    frozen = jax.tree.map(lambda leaf: Shape(leaf.shape, frozen_dtype), frozen)
    optimizer = make_optimizer(OptimizerConfig())
    state = train_state.TrainState(
        Shape((), np.int32), params, jax.eval_shape(optimizer.init, params), None, Shape((2,), np.uint32)
    )
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    step = make_train_step(graphdef, optimizer, mesh, state, frozen, CriterionConfig(), solver="device")
    with jax.set_mesh(mesh):
        return planned(step, state, frozen, batch, text, Shape((), np.int32))


def gradients_alone(model, options, frozen_dtype, batch, text, through_tower: bool) -> dict[str, float]:
    """Loss and gradients of the trainable part; and of the image tower too, as if it were trained."""
    graphdef, params, frozen = train_state.abstract_model(model, options)
    frozen = jax.tree.map(lambda leaf: Shape(leaf.shape, frozen_dtype), frozen)
    loss = make_loss(graphdef, CriterionConfig(), solver="device")

    def gradients(params: nnx.State, frozen: nnx.State, batch, text, key):
        draw = random_draw(jax.random.wrap_key_data(key), jnp.arange(batch["labels"].shape[0]))
        parts = (0, 1) if through_tower else 0
        return jax.value_and_grad(loss, argnums=parts, has_aux=True)(params, frozen, batch, text, draw)

    return planned(gradients, params, frozen, batch, text, Shape((2,), np.uint32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--variant", default="convnext_large_d_320", choices=sorted(VARIANTS))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the computation")
    parser.add_argument(
        "--frozen_dtype", default="float32", choices=("float32", "bfloat16"), help="of the stored tower"
    )
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clip_vision.depthwise_conv = depthwise_conv_grouped
    model = VARIANTS[options.variant]
    how = train_state.ModelOptions(jnp.dtype(options.dtype), options.remat)
    common = (model, how, jnp.dtype(options.frozen_dtype))
    shapes = batch_shapes(options.batch, options.size), text_shapes(model.embed_dim)
    figures = {
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "step": whole_step(*common, *shapes),
        "gradients": gradients_alone(*common, *shapes, through_tower=False),
        "gradients_through_tower": gradients_alone(*common, *shapes, through_tower=True),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
