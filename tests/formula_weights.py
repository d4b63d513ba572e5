"""Deterministic weights from (name in FC-CLIP's state dict, shape) alone, in place of trained ones.

The goldens of this suite were computed by the reference program with these weights. Run as a script, it writes a whole
checkpoint in the released format, `{"model": state dict}`, of any size:

    python tests/formula_weights.py --manifest tests/golden/manifest_tiny.json --output /tmp/tiny.pth
"""

import argparse
import gzip
import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np

# Names that are drawn plainly, also where they are wide enough for the rows' mean to be taken out.
_PLAIN = (
    "token_embedding",
    "query_feat",
    "query_embed",
    "void_embedding",
    "level_embed",
    "conv_dw",
    "sampling_offsets",
)


def _fan_in(shape):
    return int(np.prod(shape[1:])) if len(shape) > 1 else 1


def fill(name, shape):
    """float32 array of `shape`: normal numbers from the generator PCG64(crc32(name)), scaled by the first rule that
    fits the name, in float64 up to the end."""
    shape = tuple(int(s) for s in shape)
    z = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    z = np.asarray(z, dtype=np.float64)
    parts = name.split(".")
    leaf = parts[-1]
    parent = parts[-2] if len(parts) > 1 else ""
    v = _scaled(name, leaf, parent, shape, z)
    # Takes 90 % of its mean out of each output row of every dense matrix: otherwise the positive mean behind ReLU
    # and GELU gives all queries, pixels and prompts one common direction.
    is_weight = leaf == "weight" or leaf.endswith("_weight")
    if is_weight and len(shape) >= 2 and _fan_in(shape) >= 16 and parent not in _PLAIN:
        v = v - 0.9 * v.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return v.astype(np.float32)


def _scaled(name, leaf, parent, shape, z):
    spread = z / math.sqrt(_fan_in(shape))
    if name.endswith("criterion.empty_weight"):
        return np.concatenate([np.ones(shape[0] - 1), [0.1]])
    if leaf == "logit_scale":  # exp(4.7) is above the limit of 100, exp(3.2) below
        return np.full(shape, 4.7 if name == leaf or name.endswith("clip_model.logit_scale") else 3.2)
    if leaf == "running_mean":
        return 0.1 * z
    if leaf == "running_var":
        return 1.0 + 0.2 * np.abs(z)
    if leaf == "gamma":
        return 0.3 * (1.0 + 0.1 * z)
    if leaf == "positional_embedding":
        return 0.1 * z
    if leaf == "text_projection":
        return z / math.sqrt(shape[0])
    if leaf == "level_embed" or parent in ("level_embed", "token_embedding"):
        return 0.5 * z
    if parent in ("query_embed", "void_embedding"):
        return z
    if parent == "query_feat":
        return 2.0 * z
    if ".predictor.transformer_" in name and leaf == "weight" and parent in ("out_proj", "linear2"):
        return 0.15 * z / math.sqrt(_fan_in(shape))  # keeps the queries different from each other
    if name.endswith(("mask_features.bias", "mask_embed.layers.2.bias")):
        # Shifts every mask logit by about -2, so that masks are small.
        u = np.random.Generator(np.random.PCG64(4242)).choice([-1.0, 1.0], size=shape)
        return 0.05 * z + (1.0 if "mask_features" in name else -1.0) * math.sqrt(2.0 / shape[0]) * u
    if parent == "sampling_offsets":
        return 2.0 * z if leaf == "bias" else 0.3 * z / math.sqrt(_fan_in(shape))
    if leaf == "bias" or leaf.endswith("_bias"):
        return 0.1 * z
    if leaf == "weight" and len(shape) == 1:
        return 1.0 + 0.1 * z
    if ".mask_embed.layers.2.weight" in name:
        return 0.3 * z / math.sqrt(_fan_in(shape))
    if leaf == "in_proj_weight" and ".resblocks." in name:
        return 2.0 * z / math.sqrt(_fan_in(shape))
    if leaf == "in_proj_weight" or (parent in ("q_proj", "k_proj") and leaf == "weight"):
        return 1.3 * z / math.sqrt(_fan_in(shape))
    return spread


def read_manifest(path):
    """Name -> (shape, dtype) of a manifest: JSON of name -> [shape, dtype], or of name -> shape; may be gzipped."""
    data = Path(path).read_bytes()
    table = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return {
        name: (tuple(value[0]), value[1]) if value and isinstance(value[0], list) else (tuple(value), "float32")
        for name, value in table.items()
    }


def write_checkpoint(manifest, path):
    """Writes `{"model": state dict}` with formula weights for every entry of a manifest, one array at a time."""
    from convert.torch_writer import write_torch

    shapes = {name: shape for name, (shape, _) in manifest.items()}
    dtypes = {name: dtype for name, (_, dtype) in manifest.items()}

    def read(name):
        return fill(name, shapes[name]) if dtypes[name].startswith("float") else np.zeros(shapes[name], dtypes[name])

    write_torch(path, shapes, read, dtypes=dtypes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--manifest", required=True, help="JSON of name -> [shape, dtype], may be gzipped")
    parser.add_argument("--output", required=True, help="the .pth to write")
    args = parser.parse_args()
    write_checkpoint(read_manifest(args.manifest), args.output)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
