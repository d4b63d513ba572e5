"""The layouts that PyTorch and this package keep their arrays in, and the exact ways between them.

Only axes are moved and arrays split or joined, so every way and its return give the same bits.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """One of PyTorch's arrays to one or three of ours, and back.

    Attributes:
        to_ours: their array -> our arrays, in the order of the row's targets.
        to_theirs: the inverse; takes our arrays one by one.
        their_shapes: our shapes -> the shapes that theirs may have; the first is the one that is written.
    """

    to_ours: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_theirs: Callable[..., np.ndarray]
    their_shapes: Callable[..., tuple[Shape, ...]]


def _axes(*order: int) -> Transform:
    """Moves axes: axis i of ours is axis order[i] of theirs."""
    back = tuple(int(i) for i in np.argsort(order))
    return Transform(
        to_ours=lambda a: (a.transpose(order),),
        to_theirs=lambda a: a.transpose(back),
        their_shapes=lambda s: (tuple(s[i] for i in back),),
    )


TRANSFORMS: dict[str, Transform] = {
    "identity": Transform(lambda a: (a,), lambda a: a, lambda s: (s,)),
    # A scalar, which some versions of open_clip store with one axis of one element.
    "scalar": Transform(lambda a: (a.reshape(()),), lambda a: a, lambda s: ((), (1,))),
    # [out, in] -> [in, out]
    "linear": _axes(1, 0),
    # OIHW -> HWIO
    "conv": _axes(2, 3, 1, 0),
    # [C, 1, h, w] -> [h, w, C]
    "depthwise": Transform(
        to_ours=lambda a: (a[:, 0].transpose(1, 2, 0),),
        to_theirs=lambda a: a.transpose(2, 0, 1)[:, None],
        their_shapes=lambda s: ((s[2], 1, s[0], s[1]),),
    ),
    # A convolution of one pixel is a linear layer: [out, in, 1, 1] -> [in, out]
    "pointwise": Transform(
        to_ours=lambda a: (a[:, :, 0, 0].T,),
        to_theirs=lambda a: a.T[:, :, None, None],
        their_shapes=lambda s: ((s[1], s[0], 1, 1),),
    ),
    # [3 D, D], the rows of query, key and value one below the other -> three [D, D], transposed
    "qkv_weight": Transform(
        to_ours=lambda a: tuple(part.T for part in np.split(a, 3)),
        to_theirs=lambda q, k, v: np.concatenate([q.T, k.T, v.T]),
        their_shapes=lambda q, k, v: ((q[1] + k[1] + v[1], q[0]),),
    ),
    # [3 D] -> three [D]
    "qkv_bias": Transform(
        to_ours=lambda a: tuple(np.split(a, 3)),
        to_theirs=lambda q, k, v: np.concatenate([q, k, v]),
        their_shapes=lambda q, k, v: ((q[0] + k[0] + v[0],),),
    ),
}
