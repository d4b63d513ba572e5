"""Which array of open_clip and FC-CLIP is which of ours: a table.

A row is (their name, our name, transform). `{i}` and `{j}` stand for numbers, the same on both sides. `*` in our name
stands for query, key and value, which PyTorch keeps in one array. The rows are in the order in which PyTorch lists
them, so that the way back writes its order too.

Names, shapes and order are the same in open_clip 2.24 over timm 0.9.12 and in open_clip 3.3 over timm 1.0.31 (compared
array by array): what changed with open_clip 2.26 in the text tower is the layout of activations, not of parameters.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Row = tuple[str, str, str]

# In front of the towers' names in an FC-CLIP checkpoint.
FCCLIP_PREFIX = "backbone.clip_model."

# A tower built with its text part as a module of its own (open_clip's `CustomTextCLIP`) says `text.transformer...`.
TEXT_MODULE = "text."


def _under(theirs: str, ours: str, rows: list[Row]) -> list[Row]:
    """The rows of a module, written below its two names."""
    return [(f"{theirs}.{a}", f"{ours}.{b}", transform) for a, b, transform in rows]


_BATCH_NORM: list[Row] = [
    ("weight", "scale", "identity"),
    ("bias", "bias", "identity"),
    ("running_mean", "mean", "identity"),
    ("running_var", "var", "identity"),
]

_BOTTLENECK: list[Row] = [
    ("conv1.weight", "conv1.kernel", "pointwise"),
    *_under("bn1", "norm1", _BATCH_NORM),
    ("conv2.weight", "conv2.kernel", "conv"),
    *_under("bn2", "norm2", _BATCH_NORM),
    ("conv3.weight", "conv3.kernel", "pointwise"),
    *_under("bn3", "norm3", _BATCH_NORM),
    ("downsample.0.weight", "downsample.kernel", "pointwise"),
    *_under("downsample.1", "downsample_norm", _BATCH_NORM),
]

_RESNET: list[Row] = [
    ("conv1.weight", "conv1.kernel", "conv"),
    *_under("bn1", "norm1", _BATCH_NORM),
    ("conv2.weight", "conv2.kernel", "conv"),
    *_under("bn2", "norm2", _BATCH_NORM),
    ("conv3.weight", "conv3.kernel", "conv"),
    *_under("bn3", "norm3", _BATCH_NORM),
    # They count their layers from 1.
    *(row for n in range(4) for row in _under(f"layer{n + 1}.{{i}}", f"stages.{n}.blocks.{{i}}", _BOTTLENECK)),
    ("attnpool.positional_embedding", "attention_pool.positional_embedding", "identity"),
    ("attnpool.k_proj.weight", "attention_pool.key.kernel", "linear"),
    ("attnpool.k_proj.bias", "attention_pool.key.bias", "identity"),
    ("attnpool.q_proj.weight", "attention_pool.query.kernel", "linear"),
    ("attnpool.q_proj.bias", "attention_pool.query.bias", "identity"),
    ("attnpool.v_proj.weight", "attention_pool.value.kernel", "linear"),
    ("attnpool.v_proj.bias", "attention_pool.value.bias", "identity"),
    ("attnpool.c_proj.weight", "attention_pool.out.kernel", "linear"),
    ("attnpool.c_proj.bias", "attention_pool.out.bias", "identity"),
]

# Rows of both kinds of image tower; a model's parameters take those of its own.
_TOWERS: list[Row] = [
    ("positional_embedding", "clip.text.positional_embedding", "identity"),
    ("text_projection", "clip.text.text_projection", "identity"),
    ("logit_scale", "clip.logit_scale", "scalar"),
    ("visual.trunk.stem.0.weight", "clip.visual.stem.kernel", "conv"),
    ("visual.trunk.stem.0.bias", "clip.visual.stem.bias", "identity"),
    ("visual.trunk.stem.1.weight", "clip.visual.stem_norm.scale", "identity"),
    ("visual.trunk.stem.1.bias", "clip.visual.stem_norm.bias", "identity"),
    ("visual.trunk.stages.{i}.downsample.0.weight", "clip.visual.stages.{i}.downsample_norm.scale", "identity"),
    ("visual.trunk.stages.{i}.downsample.0.bias", "clip.visual.stages.{i}.downsample_norm.bias", "identity"),
    ("visual.trunk.stages.{i}.downsample.1.weight", "clip.visual.stages.{i}.downsample.kernel", "conv"),
    ("visual.trunk.stages.{i}.downsample.1.bias", "clip.visual.stages.{i}.downsample.bias", "identity"),
    ("visual.trunk.stages.{i}.blocks.{j}.gamma", "clip.visual.stages.{i}.blocks.{j}.gamma", "identity"),
    (
        "visual.trunk.stages.{i}.blocks.{j}.conv_dw.weight",
        "clip.visual.stages.{i}.blocks.{j}.depthwise.kernel",
        "depthwise",
    ),
    (
        "visual.trunk.stages.{i}.blocks.{j}.conv_dw.bias",
        "clip.visual.stages.{i}.blocks.{j}.depthwise.bias",
        "identity",
    ),
    ("visual.trunk.stages.{i}.blocks.{j}.norm.weight", "clip.visual.stages.{i}.blocks.{j}.norm.scale", "identity"),
    ("visual.trunk.stages.{i}.blocks.{j}.norm.bias", "clip.visual.stages.{i}.blocks.{j}.norm.bias", "identity"),
    ("visual.trunk.stages.{i}.blocks.{j}.mlp.fc1.weight", "clip.visual.stages.{i}.blocks.{j}.fc1.kernel", "linear"),
    ("visual.trunk.stages.{i}.blocks.{j}.mlp.fc1.bias", "clip.visual.stages.{i}.blocks.{j}.fc1.bias", "identity"),
    ("visual.trunk.stages.{i}.blocks.{j}.mlp.fc2.weight", "clip.visual.stages.{i}.blocks.{j}.fc2.kernel", "linear"),
    ("visual.trunk.stages.{i}.blocks.{j}.mlp.fc2.bias", "clip.visual.stages.{i}.blocks.{j}.fc2.bias", "identity"),
    ("visual.trunk.head.norm.weight", "clip.visual.head_norm.scale", "identity"),
    ("visual.trunk.head.norm.bias", "clip.visual.head_norm.bias", "identity"),
    # One projection or the other: `proj` is the linear one, `mlp` the one of the convnext_large_d models.
    ("visual.head.proj.weight", "clip.visual.head_linear.kernel", "linear"),
    ("visual.head.mlp.fc1.weight", "clip.visual.head_fc1.kernel", "linear"),
    ("visual.head.mlp.fc1.bias", "clip.visual.head_fc1.bias", "identity"),
    ("visual.head.mlp.fc2.weight", "clip.visual.head_fc2.kernel", "linear"),
    *_under("visual", "clip.visual", _RESNET),
    ("transformer.resblocks.{i}.ln_1.weight", "clip.text.blocks.{i}.norm1.scale", "identity"),
    ("transformer.resblocks.{i}.ln_1.bias", "clip.text.blocks.{i}.norm1.bias", "identity"),
    ("transformer.resblocks.{i}.attn.in_proj_weight", "clip.text.blocks.{i}.attention.*.kernel", "qkv_weight"),
    ("transformer.resblocks.{i}.attn.in_proj_bias", "clip.text.blocks.{i}.attention.*.bias", "qkv_bias"),
    ("transformer.resblocks.{i}.attn.out_proj.weight", "clip.text.blocks.{i}.attention.out.kernel", "linear"),
    ("transformer.resblocks.{i}.attn.out_proj.bias", "clip.text.blocks.{i}.attention.out.bias", "identity"),
    ("transformer.resblocks.{i}.ln_2.weight", "clip.text.blocks.{i}.norm2.scale", "identity"),
    ("transformer.resblocks.{i}.ln_2.bias", "clip.text.blocks.{i}.norm2.bias", "identity"),
    ("transformer.resblocks.{i}.mlp.c_fc.weight", "clip.text.blocks.{i}.fc1.kernel", "linear"),
    ("transformer.resblocks.{i}.mlp.c_fc.bias", "clip.text.blocks.{i}.fc1.bias", "identity"),
    ("transformer.resblocks.{i}.mlp.c_proj.weight", "clip.text.blocks.{i}.fc2.kernel", "linear"),
    ("transformer.resblocks.{i}.mlp.c_proj.bias", "clip.text.blocks.{i}.fc2.bias", "identity"),
    ("token_embedding.weight", "clip.text.token_embedding", "identity"),
    ("ln_final.weight", "clip.text.norm_final.scale", "identity"),
    ("ln_final.bias", "clip.text.norm_final.bias", "identity"),
]


_ENCODER_LAYER: list[Row] = [
    ("self_attn.sampling_offsets.weight", "attention.sampling_offsets.kernel", "linear"),
    ("self_attn.sampling_offsets.bias", "attention.sampling_offsets.bias", "identity"),
    ("self_attn.attention_weights.weight", "attention.attention_weights.kernel", "linear"),
    ("self_attn.attention_weights.bias", "attention.attention_weights.bias", "identity"),
    ("self_attn.value_proj.weight", "attention.value_proj.kernel", "linear"),
    ("self_attn.value_proj.bias", "attention.value_proj.bias", "identity"),
    ("self_attn.output_proj.weight", "attention.output_proj.kernel", "linear"),
    ("self_attn.output_proj.bias", "attention.output_proj.bias", "identity"),
    ("norm1.weight", "norm1.scale", "identity"),
    ("norm1.bias", "norm1.bias", "identity"),
    ("linear1.weight", "linear1.kernel", "linear"),
    ("linear1.bias", "linear1.bias", "identity"),
    ("linear2.weight", "linear2.kernel", "linear"),
    ("linear2.bias", "linear2.bias", "identity"),
    ("norm2.weight", "norm2.scale", "identity"),
    ("norm2.bias", "norm2.bias", "identity"),
]

_PIXEL_DECODER: list[Row] = [
    ("input_proj.{i}.0.weight", "input_proj.{i}.kernel", "pointwise"),
    ("input_proj.{i}.0.bias", "input_proj.{i}.bias", "identity"),
    ("input_proj.{i}.1.weight", "input_norm.{i}.scale", "identity"),
    ("input_proj.{i}.1.bias", "input_norm.{i}.bias", "identity"),
    ("transformer.level_embed", "level_embed", "identity"),
    *_under("transformer.encoder.layers.{i}", "layers.{i}", _ENCODER_LAYER),
    ("mask_features.weight", "mask_features.kernel", "pointwise"),
    ("mask_features.bias", "mask_features.bias", "identity"),
    ("adapter_1.weight", "lateral.kernel", "pointwise"),
    ("adapter_1.norm.weight", "lateral_norm.scale", "identity"),
    ("adapter_1.norm.bias", "lateral_norm.bias", "identity"),
    ("layer_1.weight", "output.kernel", "conv"),
    ("layer_1.norm.weight", "output_norm.scale", "identity"),
    ("layer_1.norm.bias", "output_norm.bias", "identity"),
]

_ATTENTION: list[Row] = [
    ("in_proj_weight", "*.kernel", "qkv_weight"),
    ("in_proj_bias", "*.bias", "qkv_bias"),
    ("out_proj.weight", "out.kernel", "linear"),
    ("out_proj.bias", "out.bias", "identity"),
]

_PREDICTOR: list[Row] = [
    ("logit_scale", "logit_scale", "scalar"),
    *_under("transformer_self_attention_layers.{i}.self_attn", "layers.{i}.self_attention", _ATTENTION),
    ("transformer_self_attention_layers.{i}.norm.weight", "layers.{i}.self_norm.scale", "identity"),
    ("transformer_self_attention_layers.{i}.norm.bias", "layers.{i}.self_norm.bias", "identity"),
    *_under("transformer_cross_attention_layers.{i}.multihead_attn", "layers.{i}.cross_attention", _ATTENTION),
    ("transformer_cross_attention_layers.{i}.norm.weight", "layers.{i}.cross_norm.scale", "identity"),
    ("transformer_cross_attention_layers.{i}.norm.bias", "layers.{i}.cross_norm.bias", "identity"),
    ("transformer_ffn_layers.{i}.linear1.weight", "layers.{i}.linear1.kernel", "linear"),
    ("transformer_ffn_layers.{i}.linear1.bias", "layers.{i}.linear1.bias", "identity"),
    ("transformer_ffn_layers.{i}.linear2.weight", "layers.{i}.linear2.kernel", "linear"),
    ("transformer_ffn_layers.{i}.linear2.bias", "layers.{i}.linear2.bias", "identity"),
    ("transformer_ffn_layers.{i}.norm.weight", "layers.{i}.ffn_norm.scale", "identity"),
    ("transformer_ffn_layers.{i}.norm.bias", "layers.{i}.ffn_norm.bias", "identity"),
    ("decoder_norm.weight", "decoder_norm.scale", "identity"),
    ("decoder_norm.bias", "decoder_norm.bias", "identity"),
    ("query_feat.weight", "query_feat", "identity"),
    ("query_embed.weight", "query_embed", "identity"),
    ("level_embed.weight", "level_embed", "identity"),
    ("mask_embed.layers.{i}.weight", "mask_embed.layers.{i}.kernel", "linear"),
    ("mask_embed.layers.{i}.bias", "mask_embed.layers.{i}.bias", "identity"),
    ("_mask_pooling_proj.0.weight", "pool_norm.scale", "identity"),
    ("_mask_pooling_proj.0.bias", "pool_norm.bias", "identity"),
    ("_mask_pooling_proj.1.weight", "pool_proj.kernel", "linear"),
    ("_mask_pooling_proj.1.bias", "pool_proj.bias", "identity"),
    ("class_embed.layers.{i}.weight", "class_embed.layers.{i}.kernel", "linear"),
    ("class_embed.layers.{i}.bias", "class_embed.layers.{i}.bias", "identity"),
]

OPEN_CLIP_ROWS: list[Row] = _TOWERS

# Their array of loss weights: one a training class and one for "no object". It is in no row, see `EMPTY_WEIGHT`.
EMPTY_WEIGHT = "criterion.empty_weight"

FCCLIP_ROWS: list[Row] = [
    *((FCCLIP_PREFIX + theirs, ours, transform) for theirs, ours, transform in _TOWERS),
    *_under("sem_seg_head.pixel_decoder", "pixel_decoder", _PIXEL_DECODER),
    *_under("sem_seg_head.predictor", "transformer_decoder", _PREDICTOR),
    ("void_embedding.weight", "void_embedding", "identity"),
]


@dataclasses.dataclass(frozen=True)
class Ignored:
    """An array that is not converted, because it says nothing beyond `meaning`; `holds` checks that. `name` is a
    pattern, as in a row."""

    name: str
    meaning: str
    holds: Callable[[np.ndarray], bool]


def _is_causal_mask(a: np.ndarray) -> bool:
    square = a.ndim == 2 and a.shape[0] == a.shape[1]
    return square and bool(np.array_equal(a, np.triu(np.full(a.shape, -np.inf), 1)))


def _is_zero(a: np.ndarray) -> bool:
    return not a.any()


def _is_whole_number(a: np.ndarray) -> bool:
    return a.size == 1 and a.dtype.kind in "iu"


# In a BatchNorm, behind its last array: how many batches its statistics are made of. Written back as 0, since frozen
# statistics count no further.
LAST_OF_BATCH_NORM, BATCH_COUNTER = ".running_var", ".num_batches_tracked"

# The first two were written by some versions of open_clip and not by others, sizes by OpenAI.
_IGNORED_TOWERS = [
    Ignored("attn_mask", "the causal mask of the text tower", _is_causal_mask),
    Ignored("logit_bias", "an unused bias of CLIP's logits, zero", _is_zero),
    *(
        Ignored(size, "a size, which the shapes show", _is_whole_number)
        for size in ("input_resolution", "context_length", "vocab_size")
    ),
    *(
        Ignored(
            theirs.removesuffix(LAST_OF_BATCH_NORM) + BATCH_COUNTER, "a counter of training batches", _is_whole_number
        )
        for theirs, _, _ in _TOWERS
        if theirs.endswith(LAST_OF_BATCH_NORM)
    ),
]
OPEN_CLIP_IGNORED = _IGNORED_TOWERS
FCCLIP_IGNORED = [dataclasses.replace(row, name=FCCLIP_PREFIX + row.name) for row in _IGNORED_TOWERS]
