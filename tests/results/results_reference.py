"""What the reference's three inference functions compute, the slow and obvious way, in float64: every mask is
resized in full, every pixel is looked at by itself."""

import numpy as np


def resize(image, height, width):
    """Bilinear, half-pixel centres, edges clamped, one output pixel at a time."""
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            sy = max((y + 0.5) * image.shape[0] / height - 0.5, 0)
            sx = max((x + 0.5) * image.shape[1] / width - 0.5, 0)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            fy, fx = sy - y0, sx - x0
            top = (1 - fx) * image[y0, x0] + fx * image[y0, x1]
            bottom = (1 - fx) * image[y1, x0] + fx * image[y1, x1]
            out[y, x] = (1 - fy) * top + fy * bottom
    return out


def upsample(masks, network_size, output_size):
    """`[Q,h,w]` -> padded input -> cut -> photo `[Q,H,W]`."""
    out = []
    for mask in np.asarray(masks, np.float64):
        padded = resize(mask, 4 * mask.shape[0], 4 * mask.shape[1])
        out.append(resize(padded[: network_size[0], : network_size[1]], *output_size))
    return np.stack(out)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(np.asarray(x, np.float64) - np.max(x, axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def panoptic(probs, masks, isthing, overlap_threshold, object_threshold):
    """`probs` `[Q,K+1]`, `masks` sigmoids `[Q,H,W]` -> id map, list of (id, class, score, area)."""
    void = probs.shape[1] - 1
    kept = [q for q in range(len(probs)) if probs[q].argmax() != void and probs[q].max() > object_threshold]
    result = np.zeros(masks.shape[1:], int)
    segments = []
    if not kept:
        return result, segments
    winner = np.argmax([probs[q].max() * masks[q] for q in kept], axis=0)
    for k, q in enumerate(kept):
        won, inside = winner == k, masks[q] >= 0.5
        region = won & inside
        if won.sum() == 0 or inside.sum() == 0 or region.sum() == 0:
            continue
        if won.sum() / inside.sum() < overlap_threshold:
            continue
        label, score = int(probs[q].argmax()), probs[q].max()
        earlier = [s for s in segments if s["label"] == label and not isthing[label]]
        if earlier:
            result[region] = earlier[0]["id"]
            earlier[0]["score"] = max(earlier[0]["score"], score)
        else:
            segments.append({"id": len(segments) + 1, "label": label, "score": score})
            result[region] = len(segments)
    return result, [(s["id"], s["label"], s["score"], int((result == s["id"]).sum())) for s in segments]


def class_scores(probs, masks):
    """`[K,H,W]`."""
    return np.einsum("qk,qhw->khw", probs[:, :-1], masks)


def instances(probs, logits, isthing, max_instances):
    """List of (class, mask, score), in no order."""
    pairs = [(q, k) for q in range(len(probs)) for k in range(probs.shape[1] - 1)]
    pairs.sort(key=lambda pair: -probs[pair])  # stable: row-major order among equals
    found = []
    for q, k in pairs[:max_instances]:
        if isthing[k]:
            inside = logits[q] > 0
            mean = (sigmoid(logits[q]) * inside).sum() / (inside.sum() + 1e-6)
            found.append((k, inside, probs[q, k] * mean))
    return found
