"""What the commands share: messages instead of tracebacks, and progress."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import jax
from tqdm import tqdm

from convert.stored_arrays import CheckpointError
from fcclip_jax.models.weights import WeightsError


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`; `description` is shown as it is laid out."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def guarded(command: Callable[[argparse.Namespace], str], args: argparse.Namespace) -> int:
    """Runs a command that returns what to print at the end. Exit code 0; 2 for what the user can mend, with one
    message; 130 after Ctrl-C."""
    try:
        print(command(args))
        return 0
    except (CheckpointError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 2


def script(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Runs `main` as a program. A conversion only moves bytes: it leaves a GPU to whoever computes on it."""
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(None))


def progress(names: Iterable[str], text: str) -> Iterable[str]:
    """`names` with a bar on a terminal's stderr, and without one elsewhere."""
    return tqdm(names, desc=text, unit="array", disable=None, leave=False)
