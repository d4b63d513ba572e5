"""What transformers' Mask2Former calls a parameter, and what a released FC-CLIP checkpoint calls the same one.

Both descend from one program, so the arrays are the same; two things differ besides the spelling. transformers splits
the decoder's self-attention into three linear layers where the checkpoint packs query, key and value into one
matrix, and it has no class head that reads words.
"""

import re
from collections.abc import Mapping

import numpy as np

PIXEL_DECODER = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."

# (pattern of the name in Mask2FormerPixelDecoder, name in the checkpoint)
PIXEL_DECODER_ROWS = (
    (r"level_embed", r"transformer.level_embed"),
    (r"input_projections\.(\d)\.(\d)\.(weight|bias)", r"input_proj.\1.\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(\w+)\.(weight|bias)", r"transformer.encoder.layers.\1.self_attn.\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", r"transformer.encoder.layers.\1.norm1.\2"),
    (r"encoder\.layers\.(\d+)\.fc([12])\.(weight|bias)", r"transformer.encoder.layers.\1.linear\2.\3"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"transformer.encoder.layers.\1.norm2.\2"),
    (r"mask_projection\.(weight|bias)", r"mask_features.\1"),
    (r"(adapter|layer)_1\.0\.weight", r"\1_1.weight"),
    (r"(adapter|layer)_1\.1\.(weight|bias)", r"\1_1.norm.\2"),
)

# The same for Mask2FormerTransformerModule. `{part}` rows are one third of a packed matrix.
DECODER_ROWS = (
    (r"queries_embedder\.weight", r"query_embed.weight"),
    (r"queries_features\.weight", r"query_feat.weight"),
    (r"level_embed\.weight", r"level_embed.weight"),
    (r"decoder\.layernorm\.(weight|bias)", r"decoder_norm.\1"),
    (r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(weight|bias)", r"mask_embed.layers.\1.\2"),
    (
        r"decoder\.layers\.(\d+)\.self_attn\.(?P<part>[qkv])_proj\.(weight|bias)",
        r"transformer_self_attention_layers.\1.self_attn.in_proj_\3",
    ),
    (
        r"decoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)",
        r"transformer_self_attention_layers.\1.self_attn.out_proj.\2",
    ),
    (r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", r"transformer_self_attention_layers.\1.norm.\2"),
    (
        r"decoder\.layers\.(\d+)\.cross_attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)",
        r"transformer_cross_attention_layers.\1.multihead_attn.\2",
    ),
    (r"decoder\.layers\.(\d+)\.cross_attn_layer_norm\.(\w+)", r"transformer_cross_attention_layers.\1.norm.\2"),
    (r"decoder\.layers\.(\d+)\.fc([12])\.(weight|bias)", r"transformer_ffn_layers.\1.linear\2.\3"),
    (r"decoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"transformer_ffn_layers.\1.norm.\2"),
)


def released_name(name: str, rows: tuple[tuple[str, str], ...], prefix: str) -> tuple[str, int | None]:
    """The checkpoint's name, and which third of that array (query, key, value) `name` is, or None for all of it.

    Raises:
        KeyError: no row, or more than one, knows the name.
    """
    found = []
    for pattern, target in rows:
        match = re.fullmatch(pattern, name)
        if match:
            part = match.groupdict().get("part")
            found.append((prefix + match.expand(target), None if part is None else "qkv".index(part)))
    if len(found) != 1:
        raise KeyError(f"{name}: {len(found)} rows of the name table match, expected exactly one")
    return found[0]


def to_released(
    state: Mapping[str, np.ndarray], rows: tuple[tuple[str, str], ...], prefix: str
) -> dict[str, np.ndarray]:
    """A transformers state dict under the checkpoint's names, the split query, key and value packed again."""
    whole: dict[str, np.ndarray] = {}
    packed: dict[str, dict[int, np.ndarray]] = {}
    for name, array in state.items():
        target, part = released_name(name, rows, prefix)
        if part is None:
            whole[target] = array
        else:
            packed.setdefault(target, {})[part] = array
    return whole | {name: np.concatenate([parts[i] for i in range(3)]) for name, parts in packed.items()}
