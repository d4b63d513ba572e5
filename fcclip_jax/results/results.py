"""One walk over the photo for all that is asked."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from fcclip_jax.results.instance import InstanceTask
from fcclip_jax.results.panoptic import PanopticTask
from fcclip_jax.results.pixels import finite_masks, run_length
from fcclip_jax.results.semantic import SemanticTask
from fcclip_jax.results.upsample import STRIDE, Upsampling
from fcclip_jax.structures import Instance, Segment

TASKS = ("panoptic", "semantic", "instance")


@dataclasses.dataclass(frozen=True)
class Results:
    """What was asked for one photo; the rest is None.

    `panoptic`: segment ids, 0 for none, with their `segments`; `semantic`: class indices, uint8, or uint16
    above 255 classes; `instances`: best first.
    """

    panoptic: Int[np.ndarray, "H W"] | None = None
    segments: list[Segment] | None = None
    semantic: Integer[np.ndarray, "H W"] | None = None
    instances: list[Instance] | None = None


def softmax(x: Float[np.ndarray, "Q K1"]) -> Float[np.ndarray, "Q K1"]:
    """Along the classes."""
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _check(masks, log_probs, names, isthing, tasks, max_instances) -> None:
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"tasks must be some of {', '.join(TASKS)}; got {', '.join(map(str, unknown)) or 'none'}")
    if masks.ndim != 3 or log_probs.ndim != 2 or len(masks) != len(log_probs) or 0 in masks.shape:
        raise ValueError(
            f"masks {masks.shape} and class log-probabilities {log_probs.shape} are not [Q,h,w] and [Q,K+1]"
            " of one image"
        )
    classes = log_probs.shape[1] - 1
    if not 1 <= classes <= 65535 or len(names) != classes or isthing.shape != (classes,):
        raise ValueError(
            f"the vocabulary has {len(names)} names and {isthing.size} thing-or-stuff marks, the predictions"
            f" {classes} classes; the three must be equal, and 1 to 65535"
        )
    if max_instances < 1:
        raise ValueError(f"max_instances must be at least 1, got {max_instances}")
    good = np.asarray(finite_masks(masks)) & np.isfinite(log_probs).all(axis=1)
    if not good.all():
        raise ValueError(
            f"{np.count_nonzero(~good)} of {len(good)} queries (the first is {np.argmin(good)}) hold NaN or"
            " infinite mask logits or class log-probabilities: the weights, or the image given to the model,"
            " are not sound"
        )


def compute_results(
    mask_logits: Float[Array, "Q h w"] | Float[np.ndarray, "Q h w"],
    class_log_probs: Float[Array, "Q K1"] | Float[np.ndarray, "Q K1"],
    *,
    network_size: tuple[int, int],
    output_size: tuple[int, int],
    padded_size: tuple[int, int] | None = None,
    names: Sequence[str],
    isthing: Bool[np.ndarray, " K"] | Sequence[bool],
    tasks: Sequence[str] = TASKS,
    overlap_threshold: float = 0.8,
    object_threshold: float = 0.0,
    max_instances: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Turns one image's predictions into maps of the photo.

    No array of queries x pixels or classes x pixels is made: device memory is the masks and a few runs of
    pixels, host memory a few bytes per pixel.

    Args:
        mask_logits: masks at stride 4 of the padded network input, which is 4h x 4w pixels.
        class_log_probs: log-probabilities after the geometric ensemble, void last (K1 = K + 1). A softmax is
            applied to them once more, as the reference does.
        network_size: (height, width) of the network input without padding.
        output_size: (height, width) of the photo.
        padded_size: (height, width) of the network input with padding, multiples of 4, where the masks are stored in
            the corner of larger ones; their own size where None.
        names: the class names.
        isthing: True for a thing, False for stuff.
        tasks: any of "panoptic", "semantic", "instance".
        overlap_threshold: a panoptic query must win this share of its mask.
        object_threshold: a panoptic query's class probability must lie above this.
        max_instances: the best (query, class) pairs considered before stuff is dropped from them.
        progress: called with (pixels done, pixels) after each run.

    Raises:
        ValueError: inputs that do not fit together, unknown tasks, NaN or infinite predictions.
    """
    masks = jnp.asarray(mask_logits, jnp.float32)
    log_probs, isthing = np.asarray(class_log_probs, np.float32), np.asarray(isthing, bool)
    _check(masks, log_probs, names, isthing, tasks, max_instances)
    class_probs = softmax(log_probs)
    cells = masks.shape[1:] if padded_size is None else tuple(size // STRIDE for size in padded_size)
    if cells[0] > masks.shape[1] or cells[1] > masks.shape[2]:
        raise ValueError(f"masks of {masks.shape[1:]} cells do not hold an image padded to {padded_size}")
    upsampling = Upsampling(cells, network_size, output_size, row_length=masks.shape[2])
    running = {}
    if "panoptic" in tasks:
        running["panoptic"] = PanopticTask(
            masks, class_probs, upsampling, names, isthing, overlap_threshold, object_threshold
        )
    if "semantic" in tasks:
        running["semantic"] = SemanticTask(masks, class_probs, upsampling)
    if "instance" in tasks:
        running["instance"] = InstanceTask(masks, class_probs, upsampling, names, isthing, max_instances)
    _walk(upsampling, [task for task in running.values() if task.width], progress)
    finished = {name: task.finish() for name, task in running.items()}
    panoptic, segments = finished.get("panoptic", (None, None))
    return Results(panoptic, segments, finished.get("semantic"), finished.get("instance"))


def _walk(
    upsampling: Upsampling,
    tasks: Sequence[PanopticTask | SemanticTask | InstanceTask],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Runs the tasks over every pixel. The device works on a run while the host takes in the one before."""

    def collect(run, outputs):
        for task, output in zip(tasks, outputs, strict=True):
            task.collect(run, *output)
        if progress is not None:
            progress(run.first + run.count, upsampling.pixels)

    if not tasks:
        return  # no query is kept, and nothing else was asked for
    pending = None
    for run in upsampling.runs(run_length(max(task.width for task in tasks))):
        outputs = [task.launch(run) for task in tasks]
        if pending is not None:
            collect(*pending)
        pending = run, outputs
    collect(*pending)
