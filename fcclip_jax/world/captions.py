"""Sentences that say what a scene shows, as people write under pictures: loosely, and never where."""

from collections.abc import Sequence

import numpy as np

from fcclip_jax.vocabulary.prompts import TEMPLATES
from fcclip_jax.world.names import STUFF, THINGS
from fcclip_jax.world.scenes import Piece

# Of one thing; {} is its name, {s} its plural.
_ONE = (
    *TEMPLATES,
    "{}",
    "{}",
    "{}",
    "a {}",
    "the {}",
    "my {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an emoji of a {}",
    "one of many {s}",
    "{s}",
    "a photo of {s}.",
    "do you like {s}?",
)
_WITH_STUFF = ("{} {stuff}", "{}, {stuff}", "a {} and {stuff}", "{stuff} with a {}", "a photo of a {}, {stuff}.")
_IRREGULAR = {"scissors", "jeans", "sunglasses", "grapes", "french fries", "fries", "chips", "headphones", "high heels"}
_IRREGULAR |= {"trousers", "popcorn", "tropical fish", "fish", "cherries", "pancakes", "bricks", "tiles", "pebbles"}


def plural(name: str) -> str:
    """More than one: `foxes`, `cherries`, `slices of pizza`; names that are plural already stay."""
    if name in _IRREGULAR:
        return name
    head, of, rest = name.partition(" of ")
    if head.endswith(("s", "x", "ch", "sh")) or head == "tomato":
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


def one_name(rng: np.random.Generator, names: Sequence[str]) -> str:
    """A sentence of one thing or stuff by one of its names, the first as often as all the others."""
    name = names[0] if len(names) == 1 or rng.random() < 0.5 else names[rng.integers(1, len(names))]
    template = _ONE[rng.integers(len(_ONE))]
    return template.format(name, s=plural(name))


def caption(rng: np.random.Generator, pieces: Sequence[Piece]) -> str:
    """Of a whole scene: its things in any order, and sometimes the stuff around them."""
    things = [rng.choice(THINGS[piece.kind].names) for piece in pieces if piece.isthing]
    stuff = [rng.choice(STUFF[piece.kind]) for piece in pieces if not piece.isthing]
    things = [things[n] for n in rng.permutation(len(things))]
    if not things:
        return one_name(rng, stuff[:1])
    if len(things) == 1:
        if rng.random() < 0.5:
            return one_name(rng, things)
        return _WITH_STUFF[rng.integers(len(_WITH_STUFF))].format(things[0], stuff=rng.choice(stuff))
    text = (", a ", " and a ", " ")[rng.integers(3)].join(things)
    return text if rng.random() < 0.6 else f"{text}, {rng.choice(stuff)}"
