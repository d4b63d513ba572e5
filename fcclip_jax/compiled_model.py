"""A model on its devices, as compiled functions: images to mask predictions, predictions and words to classes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fcclip_jax.models.fcclip import FCCLIP, Forward
from fcclip_jax.models.mask_classifier import Classification
from fcclip_jax.ops.platform import frugal
from fcclip_jax.structures import MaskPredictions


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The compiled functions of one architecture; the model's state is their first argument."""

    predict: Callable[..., MaskPredictions]
    forward: Callable[..., Forward]
    classify: Callable[..., Classification]
    layer_logits: Callable[..., list[jax.Array]]
    encode_text: Callable[..., jax.Array]
    describe: Callable[..., MaskPredictions]


@functools.lru_cache(maxsize=8)
def _programs(graphdef: nnx.GraphDef, mesh: Mesh | None) -> _Programs:
    """Models of one architecture share their programs, each compiled on first use for every shape it meets. With `mesh`
    (one axis, `data`) each device predicts its part of a batch, and nothing travels between them."""

    def exact(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(state: nnx.State, *args):
            # float32 means float32: without this, accelerators multiply in tf32 or bfloat16.
            with jax.default_matmul_precision("float32"):
                return function(nnx.merge(graphdef, state), *args)

        return call

    def compiled(function: Callable, **options: Any) -> Callable:
        return jax.jit(exact(function), **options)

    def predict(model: FCCLIP, images: jax.Array, extent: jax.Array) -> MaskPredictions:
        return model(images, extent).predictions

    def layer_logits(model: FCCLIP, class_embeds, rows, synonym_to_class, count: int) -> list[jax.Array]:
        return [model.in_vocabulary_logits(x, rows, synonym_to_class, count) for x in class_embeds]

    def encode_text(model: FCCLIP, tokens: jax.Array) -> jax.Array:
        return model.clip.text(tokens)

    run = exact(predict)
    if mesh is not None:
        whole, parts = PartitionSpec(), PartitionSpec("data")
        run = jax.shard_map(run, mesh=mesh, in_specs=(whole, parts, parts), out_specs=parts, check_vma=False)

    return _Programs(
        predict=jax.jit(run, compiler_options=frugal()),
        forward=compiled(FCCLIP.__call__),
        classify=compiled(FCCLIP.classify),
        layer_logits=compiled(layer_logits, static_argnums=4),
        encode_text=compiled(encode_text),
        describe=compiled(FCCLIP.describe),
    )


@functools.partial(jax.jit, static_argnums=1)
def _apart(batch: MaskPredictions, count: int) -> list[MaskPredictions]:
    return [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(count)]


def _by_image(batch: MaskPredictions) -> list[MaskPredictions]:
    """A batch, which may be spread over devices, as batches of one image, each on the device that it was made on."""
    leaves, structure = jax.tree.flatten(batch)
    shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0) for leaf in leaves]
    found = []
    for parts in zip(*shards, strict=True):
        part = jax.tree.unflatten(structure, [shard.data for shard in parts])
        count = len(part.valid)
        found += [part] if count == 1 else _apart(part, count)
    return found


class CompiledModel:
    """The model's functions, with its weights on each of some devices."""

    def __init__(self, graphdef: nnx.GraphDef, state: nnx.State, devices: Sequence[jax.Device] | None = None):
        """`devices`, of this process, share the images of a batch; jax's first one where None."""
        self._whole, self._first, self._by_device, self._sharding = state, state, {}, None
        mesh = None
        if devices is not None:
            mesh = Mesh(np.array(devices), ("data",))
            self._sharding = NamedSharding(mesh, PartitionSpec("data"))
            self._whole = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
            for device in devices:
                self._by_device[device] = jax.tree.map(functools.partial(_on, device=device), self._whole)
            self._first = self._by_device[devices[0]]
        self._run = _programs(graphdef, mesh)

    @property
    def device_count(self) -> int:
        """Devices that share a batch, which must be a multiple of this."""
        return max(1, len(self._by_device))

    def predict(self, images: Float[np.ndarray, "B H W 3"], extent: Int[np.ndarray, "B 2"]) -> list[MaskPredictions]:
        """Starts the devices on normalised images of one stored shape, of each of which `(height, width)` = `extent` is
        its own (ops/extent.py).

        Returns:
            predictions of one image each, in the order of the batch, each on its device; they are there when they are
            first looked at.
        """
        if self._sharding is not None:
            images, extent = jax.device_put((images, extent), self._sharding)
        return _by_image(self._run.predict(self._whole, images, extent))

    def classify(
        self,
        predictions: MaskPredictions,
        rows: Float[np.ndarray, "S E"],
        synonym_to_class: Int[np.ndarray, " S"],
        seen: Bool[np.ndarray, " K"],
    ) -> Classification:
        """Names predictions with unit text rows, on the device that they are on."""
        device = next(iter(predictions.valid.devices()))
        return self._run.classify(self._by_device.get(device, self._first), predictions, rows, synonym_to_class, seen)

    def describe(
        self,
        images: Float[np.ndarray, "B H W 3"],
        extent: Int[np.ndarray, "B 2"],
        masks: Bool[np.ndarray, "B N h w"],
        dense_masks: Bool[np.ndarray, "B N h2 w2"],
    ) -> MaskPredictions:
        """As `predict`, of given masks, on the first device."""
        return self._run.describe(self._first, images, extent, masks, dense_masks)

    def encode_text(self, tokens: Int[np.ndarray, "T n"]) -> Float[Array, "T E"]:
        """Text embeddings, not normalised; `n` is up to 77, cut behind the longest text."""
        return self._run.encode_text(self._first, tokens)

    def intermediates(
        self,
        images: Float[np.ndarray, "B H W 3"],
        rows: Float[np.ndarray, "S E"],
        synonym_to_class: Int[np.ndarray, " S"],
        seen: Bool[np.ndarray, " K"],
    ) -> dict[str, Any]:
        """All named intermediates of a batch that is image everywhere, as numpy arrays; lists hold one a layer."""
        out = self._run.forward(self._first, images)
        named = self._run.classify(self._first, out.predictions, rows, synonym_to_class, seen)
        logits = self._run.layer_logits(self._first, out.decoder.class_embeds, rows, synonym_to_class, len(seen))
        arrays = {
            **{f.name: getattr(out.features, f.name) for f in dataclasses.fields(out.features)},
            **{f.name: getattr(out.pixels, f.name) for f in dataclasses.fields(out.pixels)},
            "queries": out.decoder.queries,
            "masks": out.decoder.masks,
            "blocked": out.decoder.blocked,
            "logits": logits,
            "pooled": out.pooled,
            "clip_embed": out.predictions.clip_embed,
            "out_vocabulary_logits": named.out_vocabulary,
            "class_log_probs": named.class_log_probs,
        }
        return {
            key: [np.asarray(x) for x in value] if isinstance(value, list | tuple) else np.asarray(value)
            for key, value in arrays.items()
        }


def _on(array: jax.Array, device: jax.Device) -> jax.Array:
    """The copy of a replicated array on one of its devices, without copying."""
    return next(shard.data for shard in array.addressable_shards if shard.device == device)
