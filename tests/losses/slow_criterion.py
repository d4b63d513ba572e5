"""The matcher's cost and the loss as their definition says, with a mask for every segment, one point at a time, in
float64. Nothing of this is fast, and nothing of it is shared with what it checks."""

import numpy as np


def sample(map_: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear samples `[P]` of a map `[h,w]` at points (x, y) in [0, 1], zeros outside, pixel centres at halves."""
    height, width = map_.shape
    out = []
    for px, py in np.asarray(points, np.float64):
        rows = np.maximum(0, 1 - np.abs(py * height - 0.5 - np.arange(height)))
        columns = np.maximum(0, 1 - np.abs(px * width - 0.5 - np.arange(width)))
        out.append(rows @ np.asarray(map_, np.float64) @ columns)
    return np.array(out)


def binary_cross_entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over points; `log(1 + e^x)` without overflow."""
    return float(np.mean([np.logaddexp(0, x) - x * t for x, t in zip(logits, truth, strict=True)]))


def dice(logits: np.ndarray, truth: np.ndarray) -> float:
    share = 1 / (1 + np.exp(-logits))
    return float(1 - (2 * np.sum(share * truth) + 1) / (np.sum(share) + np.sum(truth) + 1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def masks_of(ids: np.ndarray, count: int) -> np.ndarray:
    """`[N,H,W]`: the stack of binary masks that the program never makes."""
    return np.stack([(np.asarray(ids) == n).astype(np.float64) for n in range(count)])


def cost(logits, masks, ids, labels, points, weights) -> np.ndarray:
    """`[Q,N]` of one image."""
    truth = [sample(mask, points) for mask in masks_of(ids, len(labels))]
    out = np.zeros((len(logits), len(labels)))
    for q in range(len(logits)):
        x, p = sample(masks[q], points), np.exp(log_softmax(logits[q]))
        for n, label in enumerate(labels):
            terms = -p[label], binary_cross_entropy(x, truth[n]), dice(x, truth[n])
            out[q, n] = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return out


def most_uncertain(mask: np.ndarray, candidates: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The `count` candidates of smallest |logit|, and by how much the last of them is ahead of the next."""
    values = np.abs(sample(mask, candidates))
    order = np.argsort(values, kind="stable")
    gap = values[order[count]] - values[order[count - 1]] if 0 < count < len(order) else np.inf
    return candidates[order[:count]], float(gap)


def losses(logits, masks, ids, labels, queries, points, *, segments: float, void_weight: float, weights) -> dict:
    """The three weighted terms of one prediction of a batch.

    Args:
        queries: `[B,N]`, -1 for none; points: for image and segment, `[B][N]` of `[P,2]`.
        segments: by which mask and dice sums are divided.
    """
    class_sum = class_weights = mask_sum = dice_sum = 0.0
    for b in range(len(logits)):
        wanted = {int(q): int(labels[b][n]) for n, q in enumerate(queries[b]) if q >= 0}
        for q in range(len(logits[b])):
            void = len(logits[b][q]) - 1
            weight = 1.0 if q in wanted else void_weight
            class_sum -= weight * log_softmax(logits[b][q])[wanted.get(q, void)]
            class_weights += weight
        truth = masks_of(ids[b], len(labels[b]))
        for n, q in enumerate(queries[b]):
            if q >= 0:
                x, t = sample(masks[b][q], points[b][n]), sample(truth[n], points[b][n])
                mask_sum += binary_cross_entropy(x, t)
                dice_sum += dice(x, t)
    return {
        "ce": weights[0] * class_sum / class_weights,
        "mask": weights[1] * mask_sum / segments,
        "dice": weights[2] * dice_sum / segments,
    }
