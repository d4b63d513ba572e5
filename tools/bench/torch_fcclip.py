"""FC-CLIP's forward pass in eager PyTorch from public parts, as a peer to measure against.

open_clip gives the image tower, transformers gives Mask2Former's pixel decoder and transformer decoder; what
FC-CLIP adds to them (mask-pooled class head, out-vocabulary classifier, geometric ensemble, the three results) is
written here. Layout NCHW, float32, one image at a time.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import mask2former_names as names
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision_shim import import_torchvision

import_torchvision()

from open_clip import get_model_config  # noqa: E402
from open_clip.timm_model import TimmModel  # noqa: E402
from transformers import Mask2FormerConfig  # noqa: E402
from transformers.models.mask2former.modeling_mask2former import (  # noqa: E402
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """`rows` `[S,E]` unit text embeddings; `row_class` `[S]` the class of each row; `thing` and `seen` `[K]`."""

    rows: Tensor
    row_class: Tensor
    thing: Tensor
    seen: Tensor

    @property
    def size(self) -> int:
        return len(self.thing)


def mask_pooling(features: Tensor, masks: Tensor) -> Tensor:
    """The mean of `features` `[1,C,h,w]` over the positive pixels of each of `masks` `[1,Q,h,w]`: `[1,Q,C]`."""
    inside = (masks > 0).to(features.dtype).flatten(2)
    area = inside.sum(-1, keepdim=True)
    return (inside @ features.flatten(2).transpose(1, 2)) / (area + 1e-8)


def class_logits(embedding: Tensor, vocabulary: Vocabulary, void: Tensor, scale: Tensor) -> Tensor:
    """Cosine with the text rows times the scale, the best synonym of each class, void last: `[1,Q,K+1]`."""
    rows = torch.cat([vocabulary.rows, F.normalize(void, dim=-1)])
    row_class = torch.cat([vocabulary.row_class, vocabulary.row_class.new_tensor([vocabulary.size])])
    cosine = F.normalize(embedding, dim=-1) @ rows.T * scale.exp().clamp(max=100.0)
    best = cosine.new_full((*cosine.shape[:-1], vocabulary.size + 1), -torch.inf)
    return best.scatter_reduce(-1, row_class.expand_as(cosine), cosine, "amax")


class MLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ClassHead(nn.Module):
    """Query and mask-pooled pixels to a vector in the joint embedding space. Names as in the checkpoint."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self._mask_pooling_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.class_embed = MLP([width, width, width, embed_dim])
        self.logit_scale = nn.Parameter(torch.tensor(2.659))

    def forward(self, queries: Tensor, masks: Tensor, mask_features: Tensor) -> Tensor:
        return self.class_embed(self._mask_pooling_proj(mask_pooling(mask_features, masks)) + queries)


class FCCLIP(nn.Module):
    """The boxes of the figure; each method is one stage, so that a caller can time them apart."""

    def __init__(self, visual: TimmModel, config: Mask2FormerConfig, channels: Sequence[int], embed_dim: int):
        super().__init__()
        self.visual = visual
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        nn.init.normal_(self.pixel_decoder.level_embed)  # transformers leaves it unset outside its whole model
        self.decoder = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_head = ClassHead(config.hidden_dim, embed_dim)
        self.void_embedding = nn.Embedding(1, embed_dim)
        self.clip_logit_scale = nn.Parameter(torch.tensor(4.6))

    def tower(self, image: Tensor) -> list[Tensor]:
        """Normalised image `[1,3,H,W]` to res2..res5."""
        trunk = self.visual.trunk
        x, features = trunk.stem(image), []
        for stage in trunk.stages:
            x = stage(x)
            features.append(x)
        return features

    def decode_pixels(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mask features at stride 4, and the maps at strides 32, 16, 8."""
        out = self.pixel_decoder(features, output_hidden_states=False, return_dict=True)
        return out.mask_features, out.multi_scale_features

    def decode_masks(self, mask_features: Tensor, multi_scale: tuple[Tensor, ...]) -> tuple[list, list]:
        """The normed queries `[1,Q,D]` and mask logits `[1,Q,h,w]` before the first layer and after each."""
        out = self.decoder(multi_scale, mask_features)
        return [q.transpose(0, 1) for q in out.intermediate_hidden_states], list(out.masks_queries_logits)

    def in_vocabulary(
        self, queries: list[Tensor], masks: list[Tensor], mask_features: Tensor, vocabulary: Vocabulary
    ) -> list[Tensor]:
        """The class head on every set of queries given: logits `[1,Q,K+1]` each."""
        void, scale = self.void_embedding.weight, self.class_head.logit_scale
        return [
            class_logits(self.class_head(q, m, mask_features), vocabulary, void, scale)
            for q, m in zip(queries, masks, strict=True)
        ]

    def out_vocabulary(self, dense: Tensor, masks: Tensor, vocabulary: Vocabulary) -> Tensor:
        """CLIP's own opinion on each mask: logits `[1,Q,K+1]`."""
        pooled = mask_pooling(dense, F.interpolate(masks, dense.shape[-2:], mode="bilinear", align_corners=False))
        pooled = self.visual.trunk.head(pooled[0, :, :, None, None])
        embedding = self.visual.head(pooled)[None]
        return class_logits(embedding, vocabulary, self.void_embedding.weight, self.clip_logit_scale)

    def classify(
        self,
        in_logits: Tensor,
        dense: Tensor,
        masks: Tensor,
        vocabulary: Vocabulary,
        seen: float = 0.4,
        unseen: float = 0.8,
    ) -> Tensor:
        """Geometric ensemble of both classifiers; log-probabilities `[Q,K+1]`, void last."""
        out_logits = self.out_vocabulary(dense, masks, vocabulary)
        p_in, p_out = in_logits[0, :, :-1].softmax(-1), out_logits[0, :, :-1].softmax(-1)
        share = torch.where(vocabulary.seen, 0.4, 0.8)
        known = (p_in ** (1 - share) * p_out**share).log().softmax(-1)
        void = in_logits[0].softmax(-1)[:, -1:]
        return torch.log(torch.cat([known * (1 - void), void], -1) + 1e-8)


def resize_masks(masks: Tensor, padded: tuple[int, int], image: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Mask logits `[1,Q,h,w]` to `[Q,*original]`: up to the padded input, cut to the image, to the photo's own size.

    A few masks at a time: the same values, without Q maps of the padded size at once.
    """
    out = masks.new_empty((masks.shape[1], *original))
    for start in range(0, masks.shape[1], 16):
        part = F.interpolate(masks[:, start : start + 16], padded, mode="bilinear", align_corners=False)
        part = part[..., : image[0], : image[1]]
        out[start : start + 16] = F.interpolate(part, original, mode="bilinear", align_corners=False)[0]
    return out


def semantic(log_probs: Tensor, sigmoid: Tensor) -> Tensor:
    """The best class of each pixel, `[H,W]`."""
    weights = log_probs.softmax(-1)[:, :-1]
    return (weights.T @ sigmoid.flatten(1)).max(0).indices.view(sigmoid.shape[1:])


def panoptic(
    log_probs: Tensor, sigmoid: Tensor, thing: Tensor, overlap: float = 0.8, threshold: float = 0.0
) -> tuple[Tensor, list[dict]]:
    """Ids `[H,W]` int32 (0 = nothing) and the segments."""
    scores, classes = log_probs.softmax(-1).max(-1)
    kept = torch.nonzero((classes < len(thing)) & (scores > threshold))[:, 0]
    segments: list[dict] = []
    if not len(kept):
        return torch.zeros(sigmoid.shape[1:], dtype=torch.int32), segments
    maps = sigmoid[kept]
    # One mask at a time stays in the cache: ten times faster than one sum over all.
    claimed = [int(torch.count_nonzero(one >= 0.5)) for one in maps]
    winner = (maps * scores[kept, None, None]).max(0).indices
    sure = maps.gather(0, winner[None])[0] >= 0.5
    won = torch.bincount(winner.flatten(), minlength=len(kept)).tolist()
    final = torch.bincount(winner[sure], minlength=len(kept)).tolist()
    identity = torch.zeros(len(kept), dtype=torch.int32)
    stuff: dict[int, int] = {}
    for k, label in enumerate(classes[kept].tolist()):
        if not final[k] or won[k] / claimed[k] < overlap:
            continue
        if not thing[label] and label in stuff:
            identity[k] = stuff[label]
            continue
        identity[k] = len(segments) + 1
        segments.append({"id": len(segments) + 1, "category_id": label, "isthing": bool(thing[label])})
        if not thing[label]:
            stuff[label] = len(segments)
    return torch.where(sure, identity[winner], 0), segments


def instances(log_probs: Tensor, masks: Tensor, sigmoid: Tensor, thing: Tensor, top: int = 100) -> dict[str, Tensor]:
    """The best `top` pairs of query and class that are things: `scores`, `classes`, boolean `masks` `[n,H,W]`."""
    probs = log_probs.softmax(-1)[:, :-1]
    scores, index = probs.flatten().topk(min(top, probs.numel()), sorted=False)
    query, label = index // probs.shape[1], index % probs.shape[1]
    keep = thing[label]
    scores, query, label = scores[keep], query[keep], label[keep]
    inside = masks[query] > 0
    sure = [sigmoid[q][i].sum() / (torch.count_nonzero(i) + 1e-6) for q, i in zip(query, inside, strict=True)]
    return {"scores": scores * torch.tensor(sure), "classes": label, "masks": inside}


class OneDNNLinear(nn.Linear):
    """The same product through oneDNN's 1x1 convolution: PyTorch's own choice, MKL, is slow on processors of others."""

    def forward(self, x: Tensor) -> Tensor:
        image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        out = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def use_onednn(model: nn.Module) -> None:
    """Sends every linear layer of `model` to oneDNN."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear


def mask2former_config(**changes) -> Mask2FormerConfig:
    """FC-CLIP's Mask2Former: 250 queries, 6 encoder layers, 9 decoder layers (transformers counts one more)."""
    return Mask2FormerConfig(**({"num_queries": 250, "encoder_layers": 6, "decoder_layers": 10} | changes))


def build(name: str = "convnext_large_d_320") -> FCCLIP:
    """The full-size model with the libraries' own random initialisation, without a text tower."""
    config = get_model_config(name)
    vision, embed_dim = config["vision_cfg"], config["embed_dim"]
    visual = TimmModel(
        vision["timm_model_name"],
        embed_dim,
        image_size=vision["image_size"],
        pool=vision["timm_pool"],
        proj=vision["timm_proj"],
    )
    channels = [info["num_chs"] for info in visual.trunk.feature_info]
    return FCCLIP(visual, mask2former_config(), channels, embed_dim).eval()


Source = Callable[[str, tuple[int, ...]], Tensor]


@torch.no_grad()
def fill(module: nn.Module, name_of: Callable[[str], tuple[str, int | None]], source: Source) -> None:
    """Fills every parameter from `source(released name, shape)`.

    Args:
        name_of: the parameter's name to that in a released checkpoint, and which third of that array it is, if not all.
    """
    for name, parameter in module.state_dict().items():
        released, part = name_of(name)
        shape = tuple(parameter.shape)
        value = source(released, shape if part is None else (3 * shape[0], *shape[1:]))
        parameter.copy_(value if part is None else value.chunk(3)[part])


def load(model: FCCLIP, source: Source) -> None:
    """Fills the whole model."""
    fill(model, _released_name, source)


def _released_name(name: str) -> tuple[str, int | None]:
    box, _, rest = name.partition(".")
    if box == "pixel_decoder":
        return names.released_name(rest, names.PIXEL_DECODER_ROWS, names.PIXEL_DECODER)
    if box == "decoder":
        return names.released_name(rest, names.DECODER_ROWS, names.PREDICTOR)
    if box == "class_head":
        return names.PREDICTOR + rest, None
    if box == "visual":
        return "backbone.clip_model." + name, None
    return name.replace("clip_logit_scale", "backbone.clip_model.logit_scale"), None
