"""Which model a checkpoint is of, as far as shapes show it."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from convert.name_maps import FCCLIP_PREFIX
from convert.stored_arrays import CheckpointError
from fcclip_jax.models.clip_resnet import ResNetConfig
from fcclip_jax.models.fcclip import VARIANTS, FCCLIPConfig
from fcclip_jax.models.pixel_decoder import LEVELS

Shapes = Mapping[str, tuple[int, ...]]

# Two models of equal shapes differ only in the image size that CLIP was trained on. FC-CLIP takes the larger.
_PREFERRED = ("convnext_base_w_320", "convnext_large_d_320")

# Far above any decoder, and small enough to build the description of one.
_LARGEST = 1 << 16

# What stands for a projection of pooled vectors in a ResNet.
_ATTENTION = "attention"


@dataclasses.dataclass(frozen=True)
class TowerSizes:
    """What the shapes of both towers show."""

    embed_dim: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    head: str
    text_width: int
    text_layers: int

    @classmethod
    def of_config(cls, config: FCCLIPConfig) -> "TowerSizes":
        vision, text = config.vision, config.text
        head = _ATTENTION if isinstance(vision, ResNetConfig) else vision.head
        return cls(config.embed_dim, vision.widths, vision.depths, head, text.width, text.layers)

    @classmethod
    def of_checkpoint(cls, shapes: Shapes, prefix: str) -> "TowerSizes":
        stages = f"{prefix}visual.trunk.stages."
        if _is_resnet(shapes, prefix):
            layers = [f"{prefix}visual.layer{n}." for n in range(1, 5)]
            widths = (_axes(shapes, f"{layer}0.conv3.weight", 4)[0] for layer in layers)
            depths, head = (_count(shapes, layer) for layer in layers), _ATTENTION
        else:
            count = range(_count(shapes, stages))
            widths = (_axes(shapes, f"{stages}{i}.blocks.0.gamma", 1)[0] for i in count)
            depths = (_count(shapes, f"{stages}{i}.blocks.") for i in count)
            head = "mlp" if f"{prefix}visual.head.mlp.fc1.weight" in shapes else "linear"
        text_width, embed_dim = _axes(shapes, f"{prefix}text_projection", 2)
        return cls(
            embed_dim,
            tuple(widths),
            tuple(depths),
            head,
            text_width,
            _count(shapes, f"{prefix}transformer.resblocks."),
        )

    def __str__(self) -> str:
        return (
            f"image tower of widths {self.widths} and depths {self.depths} with a projection of kind {self.head}, "
            f"text tower of width {self.text_width} and {self.text_layers} layers, embeddings of {self.embed_dim}"
        )


def towers(shapes: Shapes, prefix: str) -> str:
    """Name of the variant whose towers have these shapes.

    Args:
        shapes: of their arrays, by name.
        prefix: in front of the towers' names.

    Raises:
        CheckpointError: it is no known variant.
    """
    require_towers(shapes, prefix)
    sizes = TowerSizes.of_checkpoint(shapes, prefix)
    fitting = [name for name, config in VARIANTS.items() if TowerSizes.of_config(config) == sizes]
    if not fitting:
        raise CheckpointError(
            f"the checkpoint is of no model that is known here: {sizes}. Known are {', '.join(VARIANTS)}; "
            "with --model NAME the names that differ are listed"
        )
    return next((name for name in fitting if name in _PREFERRED), fitting[0])


def require_towers(shapes: Iterable[str], prefix: str) -> None:
    """Says what a checkpoint is that has no towers where they should be."""
    if _is_convnext(shapes, prefix) or _is_resnet(shapes, prefix):
        return
    if prefix and (_is_convnext(shapes, "") or _is_resnet(shapes, "")):
        raise CheckpointError(
            "these are open_clip's weights, without FC-CLIP's decoders: "
            "convert them with `python -m convert.open_clip --model NAME`"
        )
    if not prefix and any(name.startswith(FCCLIP_PREFIX) for name in shapes):
        raise CheckpointError("this is an FC-CLIP checkpoint: convert it with `python -m convert.fcclip`")
    what = "FC-CLIP" if prefix else "open_clip"
    raise CheckpointError(
        f"this is no checkpoint of {what} with a ConvNeXt or a ResNet: no name begins with "
        f"{prefix}visual.trunk.stages. or {prefix}visual.layer1.; "
        f"its names begin like {', '.join(list(shapes)[:3])}"
    )


def _is_convnext(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(f"{prefix}visual.trunk.stages.") for name in names)


def _is_resnet(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(f"{prefix}visual.layer1.") for name in names)


def with_decoder_sizes(config: FCCLIPConfig, shapes: Shapes) -> FCCLIPConfig:
    """The configuration with the sizes of FC-CLIP's decoders that `shapes` shows; heads cannot be seen and stay.

    Raises:
        CheckpointError: a size is absurd.
    """
    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    encoder = f"{pixel}transformer.encoder.layers."
    old = config.pixel_decoder
    width = _axes(shapes, f"{pixel}mask_features.weight", 4, (old.width,))[0]
    taps = _axes(shapes, f"{encoder}0.self_attn.attention_weights.bias", 1, (old.heads * LEVELS * old.points,))[0]
    new_pixel = dataclasses.replace(
        old,
        width=width,
        layers=_count(shapes, encoder),
        points=max(taps // (LEVELS * old.heads), 1),
        feedforward=_axes(shapes, f"{encoder}0.linear1.bias", 1, (old.feedforward,))[0],
    )
    old = config.transformer_decoder
    queries, width = _axes(shapes, f"{predictor}query_feat.weight", 2, (old.queries, old.width))
    new_decoder = dataclasses.replace(
        old,
        width=width,
        queries=queries,
        layers=_count(shapes, f"{predictor}transformer_ffn_layers."),
        feedforward=_axes(shapes, f"{predictor}transformer_ffn_layers.0.linear1.bias", 1, (old.feedforward,))[0],
    )
    return dataclasses.replace(config, pixel_decoder=new_pixel, transformer_decoder=new_decoder)


def _axes(shapes: Shapes, name: str, dimensions: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """The shape of an array; where it is missing or of another kind, `default`, and the comparison of all names
    that follows says so."""
    shape = shapes.get(name, ())
    if len(shape) != dimensions:
        return default or (0,) * dimensions
    if not all(0 < n <= _LARGEST for n in shape):
        raise CheckpointError(f"{name} has the shape {shape}, which no model has")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow the prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return len({match[1] for match in map(pattern.match, shapes) if match})
