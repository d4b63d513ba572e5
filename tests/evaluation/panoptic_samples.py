"""Random panoptic pairs, and a panoptic quality that is slow and obvious."""

from collections import Counter, defaultdict

import numpy as np

CATEGORIES = [{"id": k, "name": f"class {k}", "isthing": int(k % 2)} for k in (1, 2, 3, 7, 8, 200)]
IDS = [c["id"] for c in CATEGORIES]


def random_map(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Rectangles and single pixels, some of them void, on void or on one segment."""
    ids = rng.choice((1 << 24) - 1, 12, replace=False) + 1
    result = np.full((height, width), rng.choice([0, ids[0]]), np.uint32)
    for id_ in (*ids[1 : rng.integers(1, 9)], 0):
        y, x = rng.integers(height), rng.integers(width)
        result[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = id_
    for id_ in ids[9 : 9 + rng.integers(0, 4)]:
        result[rng.integers(height), rng.integers(width)] = id_
    return result


def describe(rng: np.random.Generator, ids: np.ndarray, truth: bool) -> list[dict]:
    """`segments_info` for a map, in random order; in the truth with crowd and segments that have no pixels."""
    # few classes, so that segments match and several crowd regions meet in one class
    classes = rng.choice(IDS, 3)
    segments = [
        {"id": int(id_), "category_id": int(rng.choice(classes)), "area": int((ids == id_).sum())}
        for id_ in np.unique(ids)
        if id_ != 0
    ]
    if truth:
        for segment in segments:
            segment["iscrowd"] = int(rng.random() < 0.25)
        for _ in range(rng.integers(0, 3)):
            unused = int(rng.integers(1 << 20, 1 << 24))
            if not (ids == unused).any() and unused not in [s["id"] for s in segments]:
                category = int(rng.choice(IDS))
                segments.append({"id": unused, "category_id": category, "area": 0, "iscrowd": int(rng.random() < 0.2)})
    return [segments[k] for k in rng.permutation(len(segments))]


def random_pair(rng: np.random.Generator, largest: int = 24) -> tuple[np.ndarray, list, np.ndarray, list]:
    """`(truth, its segments, prediction, its segments)`; in most pairs the prediction is a disturbed truth."""
    height, width = (int(edge) for edge in rng.integers(1, largest + 1, 2))
    truth = random_map(rng, height, width)
    true_segments = describe(rng, truth, truth=True)
    if rng.random() < 0.2:
        prediction = random_map(rng, height, width)
        return truth, true_segments, prediction, describe(rng, prediction, truth=False)
    prediction = truth.copy()
    if rng.random() < 0.7:
        y, x = rng.integers(height), rng.integers(width)
        prediction[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = rng.choice(truth.reshape(-1))
    prediction = np.roll(prediction, rng.integers(-1, 2), axis=rng.integers(2))
    predicted_segments = describe(rng, prediction, truth=False)
    category = {s["id"]: s["category_id"] for s in true_segments}
    for segment in predicted_segments:
        if rng.random() < 0.8:
            segment["category_id"] = category[segment["id"]]
    return truth, true_segments, prediction, predicted_segments


def slow_counts(truth, true_segments, prediction, predicted_segments) -> dict:
    """`category id -> [tp, fp, fn, list of matched IoU]`, from the definition, pixel by pixel."""
    pixels = Counter(zip(truth.reshape(-1).tolist(), prediction.reshape(-1).tolist(), strict=True))
    counts = defaultdict(lambda: [0, 0, 0, []])

    def area(position: int, id_: int) -> int:
        return sum(number for pair, number in pixels.items() if pair[position] == id_)

    used, found, crowd_of = set(), set(), {}
    for t in true_segments:
        if t["iscrowd"]:
            crowd_of[t["category_id"]] = t["id"]  # the last one listed
            continue
        for p in predicted_segments:
            both = pixels[t["id"], p["id"]]
            if t["category_id"] != p["category_id"] or not both:
                continue
            union = area(0, t["id"]) + area(1, p["id"]) - both - pixels[0, p["id"]]
            if both / union > 0.5:
                counts[t["category_id"]][0] += 1
                counts[t["category_id"]][3].append(both / union)
                found.add(t["id"])
                used.add(p["id"])
    for t in true_segments:
        if not t["iscrowd"] and t["id"] not in found:
            counts[t["category_id"]][2] += 1
    for p in predicted_segments:
        if p["id"] in used:
            continue
        excused = pixels[0, p["id"]]
        if p["category_id"] in crowd_of:
            excused += pixels[crowd_of[p["category_id"]], p["id"]]
        if excused / area(1, p["id"]) <= 0.5:
            counts[p["category_id"]][1] += 1
    return counts
