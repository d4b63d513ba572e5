"""Open-vocabulary segmentation in JAX: FC-CLIP (arXiv 2308.02487) on one frozen convolutional CLIP."""

from fcclip_jax.version import __version__

__all__ = ["Segmenter", "__version__"]


def __getattr__(name: str):
    # jax and the models load on first use, so that `fcclip --help` answers at once and loader processes stay light.
    if name == "Segmenter":
        from fcclip_jax.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'fcclip_jax' has no attribute {name!r}")
