"""Words as people type them, on scenes that show what they mean: how many find it.

    python -m tools.emoji.typed_words --model runs/world/convnext_emoji-0-masks/model --scenes emoji_scenes

Each stands against the names of everything else in the small world, in the first scenes of `test` that show what it
means. A scene counts where some segment of that word has IoU above 0.5 with the thing; a word, where most of its scenes
do. None of the words of the third and fourth kind was in any caption.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcclip_jax.data.records import PanopticRecord
from fcclip_jax.data.targets import panoptic_ids
from fcclip_jax.emoji_demo import OVERLAP_THRESHOLD
from fcclip_jax.models.shipped import SIZES
from fcclip_jax.segmenter import Segmenter
from fcclip_jax.vocabulary.class_names import ClassName
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.world.names import vocabulary as all_names
from fcclip_jax.world.prepare import open_split

# Kind -> what is typed and the name of what is meant.
WORDS: dict[str, dict[str, str]] = {
    "names that no mask was trained on": {
        "pineapple": "pineapple",
        "lion": "lion",
        "bunny": "rabbit",
        "hot dog": "hot dog",
        "trousers": "jeans",
        "wine": "wine glass",
    },
    "plurals": {
        "pandas": "panda",
        "bananas": "banana",
        "helicopters": "helicopter",
        "tomatoes": "tomato",
    },
    "phrases": {
        "a red apple": "apple",
        "my old bicycle": "bicycle",
        "yellow duck": "duck",
        "big fire engine": "fire truck",
        "grey koala bear": "koala",
    },
    "synonyms in no list": {
        "lorry": "fire truck",
        "hare": "rabbit",
        "vessel": "ship",
        "flute": "trumpet",
        "feline": "tiger",
    },
}


def score(segmenter: Segmenter, records: Sequence[PanopticRecord], typed: str, row: int) -> tuple[int, str]:
    """(scenes in which the word found the thing, what most of the things were called instead)."""
    classes = list(all_names().classes)
    others = [cls for n, cls in enumerate(classes) if n != row]
    words = Vocabulary((ClassName((typed,), True), *others))
    found, called = 0, []
    for record in records:
        image, panoptic = record.decode()
        result = segmenter(np.asarray(image), words, tasks=("panoptic",), overlap_threshold=OVERLAP_THRESHOLD)
        ids = panoptic_ids(np.asarray(panoptic))
        names = set()
        for id_ in record.segment_ids[record.classes == row]:
            true = ids == id_
            for segment in result.segments:
                mask = np.asarray(result.panoptic) == segment.id
                if (mask & true).sum() > 0.5 * (mask | true).sum():
                    names.add(segment.name)
        found += typed in names
        called += sorted(names - {typed}) or ([] if typed in names else ["nothing"])
    instead = max(set(called), key=called.count) if called else ""
    return found, instead


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, metavar="DIR")
    options.add_argument("--scenes", required=True, type=Path, metavar="DIR", help="of `fcclip prepare emoji_scenes`")
    options.add_argument("--each", type=int, default=6, help="scenes a word (default: %(default)s)")
    given = options.parse_args()
    names = all_names()
    source = open_split(given.scenes / "test", names)
    records = [source[n] for n in range(len(source))]
    segmenter = Segmenter.from_checkpoint(given.model, **SIZES)
    good = total = 0
    print("| kind | typed | meant | scenes found | called instead |\n|---|---|---|---|---|")
    for kind, words in WORDS.items():
        for typed, meant in words.items():
            row = names.names.index(meant)
            chosen = [record for record in records if row in record.classes][: given.each]
            found, instead = score(segmenter, chosen, typed, row)
            good, total = good + (2 * found > len(chosen)), total + 1
            print(f"| {kind} | {typed} | {meant} | {found} of {len(chosen)} | {instead} |", flush=True)
    print(f"\n{good} of {total} words find what they mean in most of their scenes")


if __name__ == "__main__":
    main()
