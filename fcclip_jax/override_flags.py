"""`--config.KEY VALUE` on the command line: overrides of a configuration, whose keys are known only once it is read."""

import argparse
import sys
from collections.abc import Sequence

_PREFIX = "--config."


def accept_overrides(parser: argparse.ArgumentParser) -> None:
    """Lets a subparser take any number of `--config.KEY VALUE`, as `overrides` of the parsed options.

    The keys are known only once the configuration is read, so argparse never sees them.
    """
    plain = parser.parse_known_args

    def with_overrides(arguments=None, namespace=None):
        rest, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        options, unknown = plain(rest, namespace)
        lonely = [argument for argument in rest if argument.startswith(_PREFIX)]
        if lonely:
            parser.error(f"{lonely[0]} needs a value")
        options.overrides = overrides
        return options, unknown

    parser.parse_known_args = with_overrides


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line: (the rest, the pairs in order).

    One without a value stays with the rest.
    """
    rest, overrides, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        key, equals, value = argument.removeprefix(_PREFIX).partition("=")
        if not argument.startswith(_PREFIX) or not (equals or waiting):
            rest.append(argument)
        else:
            overrides.append((key, value if equals else waiting.pop(0)))
    return rest, overrides
