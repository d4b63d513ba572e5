"""The semantic map: every pixel to one class (reference `semantic_inference` and argmax)."""

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from fcclip_jax.results.pixels import MaskSampler, semantic_run
from fcclip_jax.results.upsample import PixelRun, Upsampling, to_image


class SemanticTask:
    """Gathers the best class run by run. Void is left out: every pixel has a class."""

    def __init__(self, masks: Float[Array, "Q h w"], class_probs: Float[np.ndarray, "Q K1"], upsampling: Upsampling):
        queries, classes = class_probs.shape[0], class_probs.shape[1] - 1
        self.width = max(queries, classes)
        self._class_probs = class_probs[:, :-1]
        self._sampler = MaskSampler(masks, np.arange(queries), upsampling)
        self._image_size = upsampling.output_size
        self._classes = np.empty(upsampling.pixels, np.uint8 if classes <= 255 else np.uint16)

    def launch(self, run: PixelRun) -> tuple[jax.Array, ...]:
        """Starts the device on a run."""
        return (semantic_run(self._sampler.probabilities(run), self._class_probs),)

    def collect(self, run: PixelRun, classes: jax.Array) -> None:
        """Takes in what `launch` gave."""
        self._classes[run.places] = np.asarray(classes)[: run.count]

    def finish(self) -> Integer[np.ndarray, "H W"]:
        """Class index of each pixel: uint8, or uint16 when there are more than 255 classes."""
        return to_image(self._classes, self._image_size)
