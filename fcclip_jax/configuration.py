"""What a run is configured by: the keys with the paper's values, a configuration file, overrides, and whose work folder
it is.

A configuration file has a function `get_config()` that starts from `base_config()` and changes what it needs.
"""

import ast
import dataclasses
import difflib
import hashlib
import itertools
import json
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fcclip_jax.models.fcclip import EMOJI_VARIANTS, VARIANTS, FCCLIPConfig
from fcclip_jax.training.optimizer import OptimizerConfig
from fcclip_jax.training.work_folder import Folder, write_whole

CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"


class ConfigError(ValueError):
    """A configuration that cannot be used: which key, what is wrong, what is near."""


def base_config() -> ConfigDict:
    """All keys with the paper's values (COCO panoptic, 50 epochs, batch 16)."""
    config = ConfigDict()
    config.task = "masks"  # masks: FC-CLIP on frozen towers; contrastive: the towers themselves (data.kind emoji)
    config.seed = 0
    config.steps = 368_750
    config.batch_size = 16  # of all devices together
    config.accumulate = 1  # parts that a batch is worked off in

    config.model = _model()
    config.data = _data()

    # Which solver matches queries to segments: "device", or "host" (scipy, by a callback). Both are exact. The host's
    # is some milliseconds faster on CPU, but a program with a callback cannot be kept in the compilation cache, so
    # that every start would compile anew (measured: docs/training.md).
    config.assignment = "device"

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: what fsdp leaves
    config.mesh.fsdp = 1

    config.optimizer = _optimizer()

    config.loss = ConfigDict(
        {
            "points": 12544,
            "oversample": 3.0,
            "important": 0.75,
            "no_object_weight": 0.1,
            "class_weight": 2.0,
            "mask_weight": 5.0,
            "dice_weight": 5.0,
        }
    )
    # Panoptic quality while training; data.kind drawn evaluates on further pictures of its own.
    config.validation = ConfigDict()
    config.validation.images = "coco/val2017"
    config.validation.panoptic = "coco/panoptic_val2017"
    config.validation.annotations = "coco/annotations/panoptic_val2017.json"
    config.validation.max_images = 0  # the first so many; 0: all
    config.validation.min_size = 800
    config.validation.max_size = 1333

    config.log_every = 50
    config.checkpoint_every = 5000
    config.keep_checkpoints = 3
    config.eval_every = 0
    config.picture_every = 0
    config.profile_at = 0
    config.profile_steps = 5
    return config


def _model() -> ConfigDict:
    model = ConfigDict()
    model.variant = "convnext_large_d_320"
    model.queries = 0  # 0: the variant's own number
    model.dtype = "bfloat16"  # of towers and transformer decoder; losses and pixel decoder stay float32
    model.remat = False  # compute decoder layers again in the backward pass
    model.frozen_dtype = "float32"  # in which the frozen tower is stored
    model.towers = ""  # a model folder with the frozen towers (convert.open_clip); "": random ones
    model.random_towers = False  # allow model.towers to be empty for data that is not drawn
    model.start_from = ""  # a model folder to take the trainable part from; "": random
    return model


def _data() -> ConfigDict:
    data = ConfigDict()
    # coco: the four paths below; tfds: data.tfds; drawn: a small set drawn on the spot; emoji: data.sprites
    data.kind = "coco"
    data.images = "coco/train2017"
    data.panoptic = "coco/panoptic_train2017"
    data.annotations = "coco/annotations/panoptic_train2017.json"
    data.labels = "coco_panoptic"  # a built-in list or a label file, with the data's category ids
    data.tfds = ""
    data.sprites = "datasets/emoji_scenes/sprites"  # as `fcclip prepare emoji_scenes` writes them
    data.drawn_images = 16
    data.image_size = 1024
    data.min_scale = 0.1
    data.max_scale = 2.0
    data.flip = 0.5
    data.max_segments = 100
    data.workers = 8
    data.skip_bad = False
    return data


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict(dataclasses.asdict(OptimizerConfig()))
    optimizer.average_decay = 0.0  # of a moving average of the parameters; 0: none
    return optimizer


def load_config(
    path: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    base: Callable[[], ConfigDict] = base_config,
    check: Callable[[ConfigDict], None] | None = None,
) -> ConfigDict:
    """Runs the configuration file and applies `key.path=value` overrides.

    Args:
        base: makes the configuration with all keys that there are.
        check: raises ConfigError for a value out of its range; None: the check of a training's.

    Raises:
        ConfigError: no such file, an error in it, no `get_config`, an unknown key (the nearest is named), a value of
            another type or out of its range.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    config = _run_file(path)
    known = _keys(base())
    for key in _keys(config):
        if key not in known:
            raise ConfigError(f"{path}: {_unknown(key, known)}")
    for key, value in overrides:
        _override(config, key, value)
    (check or _check)(config)
    config.lock()
    return config


def _run_file(path: Path) -> ConfigDict:
    module = types.ModuleType("fcclip_config")
    module.__file__ = str(path)
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} has no function get_config()")
        config = module.get_config()
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returns a {type(config).__name__}; it must start from base_config()")
    return config


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # `lr` is nowhere near `optimizer.learning_rate` as a whole, but its last part may be.
    near = near or [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
    return f"the configuration has no key {key}{hint}"


def _override(config: ConfigDict, key: str, text: str) -> None:
    *folders, name = key.split(".")
    here = config
    for depth, part in enumerate([*folders, name]):
        if not isinstance(here, ConfigDict) or part not in here:
            raise ConfigError(_unknown(key, _keys(config)))
        if depth < len(folders):
            here = here[part]
    current = here[name]
    if isinstance(current, ConfigDict):
        raise ConfigError(f"{key} is a group of keys: {', '.join(f'{key}.{k}' for k in current)}")
    here[name] = _parse(key, text, current)


_TYPES = {bool: "true or false", int: "a whole number", float: "a number"}


def _parse(key: str, text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    value = _of_type(value, current)
    if value is None:
        raise ConfigError(f"{key} takes {_wanted(current)} such as {current!r}, not {text!r}")
    return value


def _of_type(value: Any, current: Any) -> Any:
    """`value` where it is of the type of `current`, or becomes so without loss; else None. The elements of a tuple are
    of the type of its first one, and whole numbers where it is empty."""
    if isinstance(current, tuple):
        values = value if isinstance(value, list | tuple) else (value,)
        found = tuple(_of_type(v, current[0] if current else 0) for v in values)
        return None if None in found else found
    if isinstance(current, float) and type(value) is int:
        return float(value)
    return value if type(value) is type(current) else None


def _wanted(current: Any) -> str:
    if isinstance(current, tuple):
        return f"{_TYPES[type(current[0] if current else 0)]} or several of them,"
    return _TYPES[type(current)]


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return keys


# Ranges as they are written in mathematics: a bracket belongs to the range, a parenthesis does not.
_RANGES: dict[str, str] = {
    "seed": "[0, 2147483646]",
    "steps": "[1, inf)",
    "batch_size": "[1, inf)",
    "accumulate": "[1, inf)",
    "model.queries": "[0, inf)",
    "data.image_size": "[32, inf)",
    "data.min_scale": "[0.01, inf)",
    "data.max_scale": "[0.01, inf)",
    "data.drawn_images": "[1, inf)",
    "data.max_segments": "[1, 32767]",
    "data.workers": "[0, inf)",
    "data.flip": "[0, 1]",
    "optimizer.learning_rate": "(0, inf)",
    "optimizer.weight_decay": "[0, inf)",
    "optimizer.b1": "[0, 1)",
    "optimizer.b2": "[0, 1)",
    "optimizer.eps": "(0, inf)",
    "optimizer.clip_norm": "(0, inf)",
    "optimizer.warmup_steps": "[0, inf)",
    "optimizer.warmup_factor": "[0, 1]",
    "optimizer.gamma": "(0, inf)",
    "optimizer.average_decay": "[0, 1)",
    "optimizer.tower_factor": "[0, inf)",
    "loss.points": "[4, inf)",
    "loss.oversample": "[1, inf)",
    "loss.important": "[0, 1]",
    "loss.no_object_weight": "[0, inf)",
    "loss.class_weight": "[0, inf)",
    "loss.mask_weight": "[0, inf)",
    "loss.dice_weight": "[0, inf)",
    "validation.max_images": "[0, inf)",
    "validation.min_size": "[1, inf)",
    "validation.max_size": "[1, inf)",
    "log_every": "[0, inf)",
    "checkpoint_every": "[0, inf)",
    "keep_checkpoints": "[1, inf)",
    "eval_every": "[0, inf)",
    "picture_every": "[0, inf)",
    "profile_at": "[0, inf)",
    "profile_steps": "[1, inf)",
}
_ONE_OF = {
    "model.dtype": ("float32", "bfloat16"),
    "model.frozen_dtype": ("float32", "bfloat16"),
    "task": ("masks", "contrastive"),
    "data.kind": ("coco", "tfds", "drawn", "emoji"),
    "assignment": ("device", "host"),
}


def _check(config: ConfigDict) -> None:
    values = _flat(config.to_dict())
    for key, interval in _RANGES.items():
        if not _inside(values[key], interval):
            raise ConfigError(f"{key} must be {_in_words(interval)}, not {values[key]}")
    for key, choices in _ONE_OF.items():
        if values[key] not in choices:
            raise ConfigError(f"{key} is one of {', '.join(choices)}, not {values[key]!r}")
    if config.data.image_size % 32:
        raise ConfigError(f"data.image_size must be a multiple of 32, not {config.data.image_size}")
    if config.data.max_scale < config.data.min_scale:
        raise ConfigError("data.max_scale must not be below data.min_scale")
    if config.validation.max_size < config.validation.min_size:
        raise ConfigError("validation.max_size must not be below validation.min_size")
    steps = (0, *config.optimizer.milestones)
    if any(type(step) is not int for step in steps) or any(
        later <= earlier for earlier, later in itertools.pairwise(steps)
    ):
        raise ConfigError(
            f"optimizer.milestones are steps from 1 that rise, each above the one before, not {steps[1:]}"
        )


def _inside(value: int | float, interval: str) -> bool:
    least, most = (float(edge) for edge in interval[1:-1].split(","))
    # Written so that NaN is inside nothing.
    above = value >= least if interval[0] == "[" else value > least
    below = value <= most if interval[-1] == "]" else value < most
    return above and below


def _in_words(interval: str) -> str:
    least, most = interval[1:-1].split(", ")
    above = f"at least {least}" if interval[0] == "[" else f"above {least}"
    if most == "inf":
        return above
    return f"{above} and {'at most' if interval[-1] == ']' else 'below'} {most}"


# Changing these makes a resumed run another run; the rest (steps, logging, mesh, workers) may change.
_IDENTITY = ("task", "seed", "batch_size", "model", "optimizer", "loss")


def claim(workdir: Folder, config: ConfigDict, contents: Mapping[str, str] | None = None) -> str:
    """Saves the resolved configuration as `workdir/config.json`, and returns its fingerprint. A folder without a
    checkpoint has nothing to lose and is taken over.

    Args:
        contents: for keys that name a folder, a hash of what is in it. It stands for the name, which may change.

    Raises:
        ConfigError: `workdir` holds the checkpoints of a run with another configuration.
    """
    values = json.loads(config.to_json())
    identity = {key: values[key] for key in _IDENTITY}
    identity["data"] = {k: v for k, v in values["data"].items() if k != "workers"}
    identity = _flat(identity) | dict(contents or {})
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = workdir / CONFIG_FILE
    if path.is_file() and any(p.name.isdecimal() for p in (workdir / CHECKPOINTS).glob("*")):
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            theirs, print_ = _flat(saved["config"]) | saved["contents"], saved["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{path} is damaged; it says whose checkpoints lie beside it. Give another --workdir, or delete it to "
                "resume with the configuration given"
            ) from None
        if print_ != fingerprint:
            differing = [_difference(k, theirs.get(k), v, contents) for k, v in identity.items() if v != theirs.get(k)]
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise ConfigError(
                f"{workdir} is the work folder of another run: {', '.join(differing[:5]) or 'of another version'}{more}"
                ". Give another --workdir, or the same configuration to resume"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        saved = {"fingerprint": fingerprint, "contents": dict(contents or {}), "config": values}
        write_whole(path, json.dumps(saved, indent=1) + "\n")
    return fingerprint


def _difference(key: str, theirs: Any, ours: Any, contents: Mapping[str, str] | None) -> str:
    if key in (contents or {}):
        return f"{key} holds other weights"
    return f"{key} {theirs!r} (now {ours!r})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def fields(kind: type, config: ConfigDict, **others: Any) -> Any:
    """A dataclass filled with those keys of `config` that it has."""
    names = [field.name for field in dataclasses.fields(kind) if field.name in config and field.name not in others]
    return kind(**{name: config[name] for name in names}, **others)


def model_config(config: ConfigDict) -> FCCLIPConfig:
    """The variant, with the configuration's number of queries."""
    known = VARIANTS | EMOJI_VARIANTS
    if config.model.variant not in known:
        near = difflib.get_close_matches(config.model.variant, known, n=1, cutoff=0)
        raise ConfigError(
            f"there is no model.variant {config.model.variant}; did you mean {near[0]}? All: {', '.join(known)}"
        )
    model = known[config.model.variant]
    if config.model.queries:
        decoder = dataclasses.replace(model.transformer_decoder, queries=config.model.queries)
        model = dataclasses.replace(model, transformer_decoder=decoder)
    return model
