"""From a configuration to a run: the only reader of a ConfigDict.

A configuration file has a function `get_config()` that starts from `base_config()` and changes what it needs.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.loader import TrainLoader, make_loader
from fcclip_jax.data.sources import CocoPanopticSource, PanopticSource, TfdsPanopticSource
from fcclip_jax.losses.criterion import CriterionConfig
from fcclip_jax.models import weights
from fcclip_jax.models.clip_text import ClipText
from fcclip_jax.models.fcclip import FCCLIP, VARIANTS, FCCLIPConfig
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.segmenter import cache_directory
from fcclip_jax.training import metrics, sharding, train_state
from fcclip_jax.training.checkpoint import Checkpoints
from fcclip_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer, split_frozen
from fcclip_jax.training.trainer import EXIT_PREEMPTED, Run, TrainerConfig, train
from fcclip_jax.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A configuration that cannot be used: which key, what is wrong, what is near."""


def base_config() -> ConfigDict:
    """All keys with the paper's values (COCO panoptic, 50 epochs, batch 16)."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 368_750
    config.batch_size = 16  # of all devices together
    config.accumulate = 1  # parts that a batch is worked off in

    config.model = ConfigDict()
    config.model.variant = "convnext_large_d_320"
    config.model.queries = 0  # 0: the variant's own number
    config.model.dtype = "bfloat16"  # of towers and transformer decoder; losses and pixel decoder stay float32
    config.model.remat = False  # compute decoder layers again in the backward pass
    config.model.frozen_dtype = "float32"  # in which the frozen tower is stored
    config.model.towers = ""  # a model folder with the frozen towers (convert.open_clip); "": random ones
    config.model.start_from = ""  # a model folder to take the trainable part from; "": random

    config.data = ConfigDict()
    config.data.kind = "coco"  # coco: the four paths below; tfds: data.tfds; drawn: a small set drawn on the spot
    config.data.images = "coco/train2017"
    config.data.panoptic = "coco/panoptic_train2017"
    config.data.annotations = "coco/annotations/panoptic_train2017.json"
    config.data.labels = "coco_panoptic"  # a built-in list or a label file, with the data's category ids
    config.data.tfds = ""
    config.data.drawn_images = 16
    config.data.image_size = 1024
    config.data.min_scale = 0.1
    config.data.max_scale = 2.0
    config.data.flip = 0.5
    config.data.max_segments = 100
    config.data.workers = 8
    config.data.skip_bad = False

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: what fsdp leaves
    config.mesh.fsdp = 1

    optimizer = OptimizerConfig()
    config.optimizer = ConfigDict()
    for key in (
        "learning_rate",
        "weight_decay",
        "b1",
        "b2",
        "eps",
        "clip_norm",
        "warmup_steps",
        "warmup_factor",
        "gamma",
    ):
        config.optimizer[key] = getattr(optimizer, key)
    config.optimizer.milestones = tuple(optimizer.milestones)
    config.optimizer.average_decay = 0.0  # of a moving average of the parameters; 0: none

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
    config.log_every = 50
    config.checkpoint_every = 5000
    config.keep_checkpoints = 3
    config.eval_every = 0
    config.picture_every = 0
    config.profile_at = 0
    config.profile_steps = 5
    return config


def load_config(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """Runs the configuration file and applies `key.path=value` overrides.

    Raises:
        ConfigError: no such file, no `get_config`, an unknown key (the nearest is named), a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    spec = importlib.util.spec_from_file_location("fcclip_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config()")
    config = module.get_config()
    for key, value in overrides:
        _override(config, key, value)
    config.lock()
    return config


def _override(config: ConfigDict, key: str, text: str) -> None:
    *folders, name = key.split(".")
    here = config
    for depth, part in enumerate([*folders, name]):
        if not isinstance(here, ConfigDict) or part not in here:
            known = _keys(config)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"
            raise ConfigError(f"the configuration has no key {key}{hint}")
        if depth < len(folders):
            here = here[part]
    current = here[name]
    if isinstance(current, ConfigDict):
        raise ConfigError(f"{key} is a group of keys: {', '.join(f'{key}.{k}' for k in current)}")
    here[name] = _parse(key, text, current)


def _parse(key: str, text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if isinstance(current, tuple):
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
    if type(value) is not type(current):
        raise ConfigError(f"{key} takes a {type(current).__name__} such as {current!r}, not {text!r}")
    return value


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [prefix + key]
    return keys


def run_training(config: ConfigDict, workdir: str | Path) -> int:
    """Trains, exports, and returns the process's exit code: 0, or EXIT_PREEMPTED when told to stop.

    In `workdir`: config.json, checkpoints/, metrics.jsonl, tensorboard/, pictures/, and at the end model/ (this
    project's format) and fcclip.safetensors (the original's state dict).

    Raises:
        ValueError: the configuration does not fit the data, the devices or the work folder.
    """
    workdir = Path(workdir)
    run, data, towers, vocabulary = build(config, workdir)
    try:
        state, complete = train(run)
    finally:
        run.checkpoints.close()
        data.close()
        for writer in run.writers:
            writer.close()
    if not complete:
        return EXIT_PREEMPTED
    if jax.process_index() == 0:
        params = state.average if state.average is not None else state.params
        export(workdir, model_config(config), params, towers, vocabulary, config)
    return 0


def build(config: ConfigDict, workdir: Path) -> tuple[Run, TrainLoader, dict[str, np.ndarray], Vocabulary]:
    """Puts a run together; also returns the loader, the frozen towers by name, and the vocabulary trained on."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh, config.accumulate)
    if config.batch_size % jax.process_count():
        raise ConfigError(f"batch_size {config.batch_size} does not split over {jax.process_count()} processes")
    workdir.mkdir(parents=True, exist_ok=True)
    fingerprint = _claim(workdir, config)
    source, vocabulary = _source(config, workdir)
    towers = _towers(config)
    model = model_config(config)
    options = train_state.ModelOptions(jnp.dtype(config.model.dtype), config.model.remat)
    graphdef, _, frozen_shapes = train_state.abstract_model(model, options)
    frozen = weights.state_from_parameters(frozen_shapes, towers)
    keys = ("learning_rate", "weight_decay", "b1", "b2", "eps", "clip_norm", "warmup_steps", "warmup_factor", "gamma")
    optimizer_config = OptimizerConfig(
        milestones=tuple(config.optimizer.milestones), **{key: config.optimizer[key] for key in keys}
    )
    optimizer = make_optimizer(optimizer_config)
    average = config.optimizer.average_decay > 0
    state = train_state.init_state(
        model, options, optimizer, mesh, seed=config.seed, average=average, params=_start_from(config, model, options)
    )
    data = make_loader(
        source,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        max_segments=config.data.max_segments,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        skip_bad=config.data.skip_bad,
        min_scale=config.data.min_scale,
        max_scale=config.data.max_scale,
        flip_probability=config.data.flip,
    )
    run = Run(
        config=TrainerConfig(
            average_decay=config.optimizer.average_decay,
            **{
                key: config[key]
                for key in (
                    "steps",
                    "batch_size",
                    "accumulate",
                    "log_every",
                    "checkpoint_every",
                    "eval_every",
                    "picture_every",
                    "profile_at",
                    "profile_steps",
                )
            },
        ),
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=learning_rate_schedule(optimizer_config),
        criterion=CriterionConfig(**config.loss.to_dict()),
        mesh=mesh,
        state=state,
        frozen=train_state.place_frozen(frozen, mesh, jnp.dtype(config.model.frozen_dtype)),
        text=text_arguments(model, towers, vocabulary),
        data=data,
        checkpoints=Checkpoints(
            workdir / "checkpoints",
            keep_last=config.keep_checkpoints,
            best_metric="PQ" if config.eval_every else None,
            fingerprint=fingerprint,
        ),
        writers=metrics.make_writers(workdir) if jax.process_index() == 0 else [],
        workdir=workdir,
    )
    return run, data, towers, vocabulary


def model_config(config: ConfigDict) -> FCCLIPConfig:
    """The variant, with the configuration's number of queries."""
    import dataclasses

    if config.model.variant not in VARIANTS:
        raise ConfigError(f"model.variant {config.model.variant!r}: there are {', '.join(VARIANTS)}")
    model = VARIANTS[config.model.variant]
    if config.model.queries:
        decoder = dataclasses.replace(model.transformer_decoder, queries=config.model.queries)
        model = dataclasses.replace(model, transformer_decoder=decoder)
    return model


# Changing these makes a resumed run another run; the rest (steps, logging, mesh, workers) may change.
_IDENTITY = ("seed", "batch_size", "model", "optimizer", "loss")


def _claim(workdir: Path, config: ConfigDict) -> str:
    """Saves the resolved configuration beside the checkpoints, and returns its fingerprint."""
    values = json.loads(config.to_json())
    identity = {key: values[key] for key in _IDENTITY}
    identity["data"] = {k: v for k, v in values["data"].items() if k != "workers"}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = workdir / "config.json"
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.get("fingerprint") != fingerprint:
            differing = [k for k in _flat(identity) if _flat(identity)[k] != _flat(saved.get("config", {})).get(k)]
            raise ConfigError(
                f"{workdir} is the work folder of another run; it differs in {', '.join(differing[:5]) or 'its keys'}. "
                "Give another --workdir, or the same configuration to resume."
            )
    if jax.process_index() == 0:
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps({"fingerprint": fingerprint, "config": values}, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    return fingerprint


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _source(config: ConfigDict, workdir: Path) -> tuple[PanopticSource, Vocabulary]:
    data = config.data
    if data.kind == "drawn":
        size = (data.image_size, data.image_size * 5 // 4)
        folder = draw_dataset(workdir / "drawn", images=data.drawn_images, size=size, seed=config.seed)
        vocabulary = Vocabulary.from_file(folder / "labels.txt")
        paths = (folder / "images", folder / "panoptic", folder / "panoptic.json")
        return CocoPanopticSource(*paths, vocabulary), vocabulary
    vocabulary = Vocabulary.parse(data.labels)
    if data.kind == "coco":
        paths = (data.images, data.panoptic, data.annotations)
        return CocoPanopticSource(*paths, vocabulary, skip_bad=data.skip_bad), vocabulary
    if data.kind == "tfds":
        return TfdsPanopticSource(data.tfds, vocabulary), vocabulary
    raise ConfigError(f"data.kind {data.kind!r}: there are coco, tfds, drawn")


def _towers(config: ConfigDict) -> dict[str, np.ndarray]:
    """The frozen towers by parameter name."""
    if config.model.towers:
        card = weights.read_card(config.model.towers)
        model = model_config(config)
        if (card.config.vision, card.config.text) != (model.vision, model.text):
            raise ConfigError(
                f"model.towers {config.model.towers} holds {card.config.name}, model.variant is {config.model.variant}"
            )
        return weights.load_parameters(config.model.towers, weights.TOWERS)
    log.warning(
        "model.towers is empty: the frozen towers are random, the model will know no words but the trained ones"
    )
    make = jax.jit(lambda key: split_frozen(nnx.state(FCCLIP(model_config(config), rngs=nnx.Rngs(key))))[1])
    return weights.parameters_of(make(jax.random.key(config.seed + 1)))


def _start_from(config: ConfigDict, model: FCCLIPConfig, options: train_state.ModelOptions) -> nnx.State | None:
    if not config.model.start_from:
        return None
    _, shapes, _ = train_state.abstract_model(model, options)
    return weights.state_from_parameters(shapes, weights.load_parameters(config.model.start_from))


def text_arguments(model: FCCLIPConfig, towers: dict[str, np.ndarray], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """What the step needs to know of the words: `rows`, `synonym_to_class`, and `classes`, whose length is K."""
    prefix = weights.TEXT_TOWER
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: ClipText(model.text, model.embed_dim, rngs=nnx.Rngs(0))))
    state = weights.state_from_parameters(
        shapes, {k[len(prefix) :]: v for k, v in towers.items() if k.startswith(prefix)}
    )
    encode = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens))
    names = {k: v.shape for k, v in towers.items() if k.startswith(prefix)}
    classifier = TextClassifier(
        lambda tokens: encode(state, tokens),
        embed_dim=model.embed_dim,
        fingerprint=weights.text_sha256(names, towers.__getitem__),
        cache_dir=cache_directory() / "text",
    )
    return {
        "rows": classifier.rows(vocabulary),
        "synonym_to_class": vocabulary.synonym_to_class,
        "classes": np.zeros(vocabulary.num_classes, bool),
    }


def export(
    workdir: Path,
    model: FCCLIPConfig,
    params: nnx.State,
    towers: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    config: ConfigDict,
) -> None:
    """Writes `workdir/model`, and from it `workdir/fcclip.safetensors`."""
    parameters = weights.parameters_of(params) | towers
    shapes = weights.parameter_shapes(model)
    read: Callable[[str], np.ndarray] = parameters.__getitem__
    card = weights.ModelCard(
        model,
        train_classes=vocabulary.to_dict(),
        no_object_weight=config.loss.no_object_weight,
        provenance={"config": json.loads(config.to_json()), "steps": config.steps},
        text_sha256=weights.text_sha256(shapes, read),
    )
    weights.save_model(workdir / "model", card, shapes, read)
    # The package does not import its converters: they are a program of their own.
    command = [sys.executable, "-m", "convert.to_fcclip", "--checkpoint", str(workdir / "model")]
    done = subprocess.run([*command, "--output", str(workdir / "fcclip.safetensors")], capture_output=True, text=True)
    if done.returncode:
        log.warning("%s/fcclip.safetensors was not written: %s", workdir, done.stderr.strip())
    log.info("the model is in %s", workdir / "model")
