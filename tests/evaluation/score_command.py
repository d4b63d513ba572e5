"""Runs `fcclip score`, and reads and writes its JSON files."""

import argparse
import json

from fcclip_jax import score_files


def score(*arguments) -> int:
    parser = argparse.ArgumentParser()
    score_files.add_arguments(parser.add_subparsers(required=True))
    options = parser.parse_args(["score", *map(str, arguments)])
    return options.run(options)


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def drop(entry: dict, key: str) -> None:
    del entry[key]
