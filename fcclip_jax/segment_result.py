"""What a segmentation gives: maps, segments and instances of one photo, and how they are drawn."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from fcclip_jax import visualization
from fcclip_jax.structures import Instance, Segment
from fcclip_jax.vocabulary.vocabulary import Vocabulary


class PanopticMap(np.ndarray):
    """A panoptic map, int32 `[H,W]`, that knows its `segments`. Views and copies know them too."""

    segments: list[Segment]

    def __array_finalize__(self, source) -> None:
        self.segments = getattr(source, "segments", [])

    def __reduce__(self):
        make, arguments, state = super().__reduce__()
        return make, arguments, (state, self.segments)

    def __setstate__(self, state) -> None:
        super().__setstate__(state[0])
        self.segments = state[1]


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found, at the photo's own resolution. A task that was not asked for is None.

    Attributes:
        image: uint8 `[H,W,3]`.
        vocabulary: the classes; `category_id` and `semantic` index it.
        panoptic: int32 `[H,W]`, ids of `segments`, 0 where nothing was found; it has the attribute `segments` too.
        segments: the segments of `panoptic`, in the order of their ids.
        semantic: uint8 or uint16 `[H,W]`, a class everywhere.
        instances: things, the best first; may overlap.
    """

    image: np.ndarray
    vocabulary: Vocabulary
    panoptic: PanopticMap | None
    segments: list[Segment] | None
    semantic: np.ndarray | None
    instances: list[Instance] | None

    def draw(self, *, alpha: float = 0.5, labels: bool = True) -> UInt8[np.ndarray, "H W 3"]:
        """The photo with its panoptic segments, or else its semantic map, in colour and with names.

        Raises:
            ValueError: neither was asked for, or `alpha`, the opacity, is outside 0 to 1.
        """
        look = {"alpha": alpha, "labels": labels}
        if self.panoptic is not None:
            return visualization.draw_panoptic(self.image, self.panoptic, self.segments, **look)
        if self.semantic is not None:
            return visualization.draw_semantic(self.image, self.semantic, self.vocabulary.names, **look)
        raise ValueError("there is nothing to draw: ask for the panoptic or the semantic task")
