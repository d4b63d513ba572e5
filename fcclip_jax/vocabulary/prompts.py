"""The 14 sentences that every word is put into before the text tower reads it.

They are ViLD's single-template and size templates (arXiv 2104.13921) as FC-CLIP uses them, in its order: the order
is part of the cache key, the mean over the 14 embeddings does not depend on it.
"""

from collections.abc import Iterable

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)


def fill_templates(words: Iterable[str]) -> list[str]:
    """All prompts of all words: the 14 of the first word, then the 14 of the second, and so on; S words give S*14."""
    return [template.format(word) for word in words for template in TEMPLATES]
