"""What the tests of the command share."""

import re

WORDS = ("--vocabulary", "cup; saucer, plate; table", "--stuff", "table")
# Photos of usual shapes are padded to 64 x 64: one program to compile.
SMALL = ("--min_size", "64", "--max_size", "64")
# The formula weights leave most of every mask contested.
LOOSE = ("--overlap_threshold", "0.3")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def is_one_error(text):
    return re.fullmatch(r"error: [^\n]+\n", text) is not None
