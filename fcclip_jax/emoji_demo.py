"""`fcclip demo --checkpoint DIR`: the shipped scenes of the small world, segmented and held against the truth."""

import os
from importlib import resources
from pathlib import Path

import numpy as np

from fcclip_jax import segment_files
from fcclip_jax.data.sources import CocoPanopticSource
from fcclip_jax.segmenter import Result, Segmenter
from fcclip_jax.training.validation import new_counts
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.world.names import vocabulary as all_names

EDGE = 256
SCENES = ("scene0", "scene1", "scene2", "held_out_style")


def run(checkpoint: str | os.PathLike, output: str | os.PathLike, words: str | None = None) -> int:
    """Segments the scenes, writes the pictures, prints what is found and panoptic quality; returns the exit code.

    Args:
        checkpoint: a model folder of the small world.
        words: as typed, `fox; hot dog`; without them all names of the small world. What the truth holds under none of
            them counts as unlabelled.

    Raises:
        ValueError, OSError: the checkpoint or the words cannot be used, or the output not be written.
    """
    segmenter = Segmenter.from_checkpoint(checkpoint, min_size=EDGE, max_size=EDGE)
    vocabulary = all_names() if words is None else as_stuff(Vocabulary.parse(words))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    counts = new_counts(vocabulary)
    with resources.as_file(resources.files("fcclip_jax") / "assets" / "emoji") as scenes:
        source = CocoPanopticSource(scenes / "images", scenes / "panoptic", scenes / "panoptic.json", all_names())
        for stem, record in zip(SCENES, (source[n] for n in range(len(source))), strict=True):
            image, panoptic = record.decode()
            result = segmenter(np.asarray(image), vocabulary, tasks=("panoptic",))
            segment_files.write_result(folder, stem, result, image_name=record.image_name)
            print(segment_files.table(stem, result))
            colours = np.asarray(panoptic).astype(np.int32)
            _count(counts, result, colours[..., 0] + 256 * colours[..., 1], record.segment_ids, record.classes)
    figures = counts.compute()
    if figures["PQ"] is not None:
        print(f"\npanoptic quality against the truth, of the words that occur: {figures['PQ']:.1f}")
    print(f"Look at {folder}/{SCENES[0]}.overlay.png. Next, with your own words:")
    print(f'  fcclip demo --checkpoint {checkpoint} --output {folder} --vocabulary "pineapple; lion; ship; grass"')
    return 0


def as_stuff(words: Vocabulary) -> Vocabulary:
    """The words, with those that name stuff in the small world marked as stuff."""
    stuff = {name for cls in all_names().classes if not cls.isthing for name in cls.names}
    marked = [cls.name for cls in words.classes if cls.isthing and stuff & set(cls.names)]
    return words.with_stuff(marked) if marked else words


def _count(counts, result: Result, ids: np.ndarray, segment_ids: np.ndarray, classes: np.ndarray) -> None:
    """Adds one scene; true segments whose class shares no name with the words become void."""
    truth = all_names().classes
    named = []
    for id_, row in zip(segment_ids, classes, strict=True):
        names = set(truth[row].names)
        ours = [n for n, cls in enumerate(result.vocabulary.classes) if names & set(cls.names)]
        if ours:
            named.append({"id": int(id_), "category_id": ours[0]})
        else:
            ids = np.where(ids == id_, 0, ids)
    found = [{"id": segment.id, "category_id": segment.category_id} for segment in result.segments]
    counts.update(ids, named, np.asarray(result.panoptic), found)
