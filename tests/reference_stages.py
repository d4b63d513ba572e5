"""Compares every stage of a forward pass with what the original program computed."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class StageError:
    """`relative`: norm of the difference over norm of the reference; `largest`: largest absolute difference over the
    largest absolute value. For a mask, both are the share of cells that differ. `left_out`: queries that are not
    compared, see `_flipped`; `with_all` is `relative` with them."""

    stage: str
    relative: float
    largest: float
    left_out: int = 0
    with_all: float = 0.0


# A mask logit closer to 0 than this share of the largest is within rounding: two programs may see different signs.
_TIE = 2e-6


def _chw(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 1)


def in_reference_layout(ours: dict) -> dict[str, np.ndarray]:
    """What `Segmenter.intermediates` returns, under the reference's names and in its layouts."""
    named = {f"feat.{key}": _chw(ours[key]) for key in ("stem", "res2", "res3", "res4", "res5")}
    named["feat.clip_vis_dense"] = named["feat.res5"]
    for key, theirs in (("input_proj", "pd.input_proj"), ("multi_scale", "pd.multi_scale")):
        named |= {f"{theirs}{i}": _chw(x) for i, x in enumerate(ours[key])}
    named |= {f"pd.enc{i}": x for i, x in enumerate(ours["encoder_layers"])}
    named["pd.mask_features"] = _chw(ours["mask_features"])
    named |= {f"dec.query{i}": x.transpose(1, 0, 2) for i, x in enumerate(ours["queries"])}
    named |= {f"dec.pred_logits{i}": x for i, x in enumerate(ours["logits"])}
    named |= {f"dec.pred_masks{i}": x for i, x in enumerate(ours["masks"])}
    named |= {f"dec.attn_mask{i}": x for i, x in enumerate(ours["blocked"])}
    named["ens.pooled"] = ours["pooled"]
    named["ens.pooled_proj"] = ours["clip_embed"]
    named["ens.out_vocab_logits"] = ours["out_vocabulary_logits"]
    named["post.mask_cls"] = ours["class_log_probs"][0]
    return named


def compare(ours: dict, reference, prefix: str = "") -> list[StageError]:
    """One entry for every array of `reference` (an opened npz) that the forward pass has, in the reference's order.

    A reference named `X.s2` holds every second row and column; attention masks are repeated for every head there, and
    may be packed into bits.
    """
    errors = []
    for stage, value in in_reference_layout(ours).items():
        for key in (f"{prefix}{stage}", f"{prefix}{stage}.s2"):
            if key not in reference:
                continue
            expected = reference[key]
            if key.endswith(".s2"):
                value = value[..., ::2, ::2]
            if "attn_mask" in stage:
                errors.append(_mask_error(stage, value, _one_head(reference, key, value)))
            elif stage.startswith("dec.pred_logits"):
                masks = ours["masks"][int(stage.removeprefix("dec.pred_logits"))]
                errors.append(_logits_error(stage, value, expected, masks))
            else:
                errors.append(_error(stage, value, expected))
    return errors


def _one_head(reference, key: str, value: np.ndarray) -> np.ndarray:
    expected = reference[key]
    if f"{key}.shape" in reference:
        shape = tuple(reference[f"{key}.shape"])
        expected = np.unpackbits(expected)[: np.prod(shape)].reshape(shape).astype(bool)
    heads = expected.shape[0] // value.shape[0]
    assert (expected.reshape(-1, heads, *expected.shape[1:]) == expected[::heads, None]).all()
    return expected[::heads]


def _mask_error(stage: str, value: np.ndarray, expected: np.ndarray) -> StageError:
    share = float(np.mean(value != expected))
    return StageError(stage, share, share)


def _logits_error(stage: str, value: np.ndarray, expected: np.ndarray, masks: np.ndarray) -> StageError:
    """Class logits are pooled over the pixels whose mask logit is positive. A query with a mask logit within rounding
    of 0 may count a pixel more or less than the reference's; where its logits then differ, it is left out."""
    tied = np.abs(masks).min(axis=(2, 3)) < _TIE * np.abs(masks).max()
    moved = np.abs(value - expected).max(axis=-1) > 1e-5 * np.abs(expected).max()
    keep = ~(tied & moved)
    whole, kept = _error(stage, value, expected), _error(stage, value[keep], expected[keep])
    return StageError(stage, kept.relative, kept.largest, int((~keep).sum()), whole.relative)


def _error(stage: str, value: np.ndarray, expected: np.ndarray) -> StageError:
    assert value.shape == expected.shape, f"{stage}: {value.shape}, the reference has {expected.shape}"
    difference = value.astype(np.float64) - expected
    scale = max(float(np.abs(expected).max()), 1e-30)
    norm = max(float(np.linalg.norm(expected)), 1e-30)
    return StageError(stage, float(np.linalg.norm(difference)) / norm, float(np.abs(difference).max()) / scale)
