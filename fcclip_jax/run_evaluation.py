"""What a training run is watched by: panoptic quality on annotated images, and pictures of predictions."""

import itertools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from fcclip_jax import visualization
from fcclip_jax.data.sources import PanopticSource
from fcclip_jax.models import weights
from fcclip_jax.models.fcclip import FCCLIPConfig
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.structures import Segment
from fcclip_jax.training import sharding
from fcclip_jax.training.train_state import TrainState
from fcclip_jax.training.validation import evaluate_panoptic, new_counts
from fcclip_jax.vocabulary.vocabulary import Vocabulary


class RunEvaluation:
    """Segments with the parameters of a running training, in float32, by the paper's ensemble."""

    def __init__(
        self,
        model: FCCLIPConfig,
        towers: Mapping[str, np.ndarray],
        vocabulary: Vocabulary,
        mesh: Mesh,
        source: PanopticSource,
        *,
        min_size: int,
        max_size: int,
        max_images: int = 0,
    ):
        """
        Args:
            source: images to evaluate on; with several processes each takes its share.
            min_size: of the shorter edge in the network; max_size: of the longer at most.
            max_images: only the first so many; 0 for all.
        """
        self._model, self._towers, self._vocabulary, self._mesh = model, towers, vocabulary, mesh
        self._source, self._sizes = source, {"min_size": min_size, "max_size": max_size}
        self._count = min(max_images, len(source)) if max_images else len(source)

    def evaluate(self, state: TrainState, stop: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """PQ, SQ, RQ in percent, of all classes that occur, of things (`_th`) and stuff (`_st`). All processes call.

        None when `stop`, asked before each image, says so; it must say the same in all processes.
        """
        segmenter = self._segmenter(state)
        counts = new_counts(self._vocabulary)

        def segment(image: np.ndarray) -> tuple[np.ndarray, list[Segment]]:
            result = segmenter(image, self._vocabulary, tasks=("panoptic",))
            return np.asarray(result.panoptic), result.segments

        mine = range(jax.process_index(), self._count, jax.process_count())
        with _alone():
            records = (self._source[i] for i in itertools.takewhile(lambda _: not stop(), mine))
            evaluate_panoptic(segment, records, counts)
        if stop():
            return None
        if jax.process_count() > 1:
            counts = self._merged(counts)
        return {key: value for key, value in counts.compute().items() if isinstance(value, float)}

    def _merged(self, counts):
        from jax.experimental import multihost_utils

        # Gathered as bytes: jax would make 32-bit numbers of the 64-bit counts.
        state = counts.state()
        parts = multihost_utils.process_allgather({k: np.atleast_1d(v).view(np.uint8) for k, v in state.items()})
        total = new_counts(self._vocabulary)
        for process in range(jax.process_count()):
            other = new_counts(self._vocabulary)
            other.load_state({k: parts[k][process].view(v.dtype).reshape(v.shape) for k, v in state.items()})
            total.merge(other)
        return total

    def picture(self, state: TrainState, batch: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "H W2 3"]:
        """The first image of a batch with what is found, and beside it with the truth. All processes call."""
        image = np.ascontiguousarray(batch["image"][0])
        segmenter = self._segmenter(state)
        with _alone():
            found = segmenter(image, self._vocabulary, tasks=("panoptic",)).draw()
        truth, segments = self._truth(batch["ids"][0], batch["labels"][0], batch["valid"][0])
        return np.concatenate([found, visualization.draw_panoptic(image, truth, segments)], axis=1)

    def _truth(
        self, ids: Int[np.ndarray, "H W"], labels: Int[np.ndarray, " N"], valid: np.ndarray
    ) -> tuple[np.ndarray, list[Segment]]:
        panoptic = ids.astype(np.int32) + 1
        areas = np.bincount(panoptic.ravel(), minlength=len(labels) + 1)
        classes = self._vocabulary.classes
        segments = [
            Segment(n + 1, int(label), classes[label].name, classes[label].isthing, 1.0, int(areas[n + 1]))
            for n, label in enumerate(labels)
            if valid[n] and areas[n + 1]
        ]
        return panoptic, segments

    def _segmenter(self, state: TrainState) -> Segmenter:
        params = sharding.gather(self._mesh, state.params if state.average is None else state.average)
        parameters = dict(self._towers) | weights.parameters_of(params)
        shapes = {name: value.shape for name, value in parameters.items()}
        card = weights.ModelCard(
            self._model,
            train_classes=self._vocabulary.to_dict(),
            text_sha256=weights.text_sha256(
                {name: shapes[name] for name in weights.parameter_shapes(self._model)}, parameters.__getitem__
            ),
        )
        return Segmenter(card, *weights.model_from_parameters(self._model, parameters), **self._sizes)


def _alone():
    """Each process segments its own images on its own first device, whatever the mesh of the training is."""
    return jax.set_mesh(sharding.make_mesh(1, 1, jax.local_devices()[:1]))
