"""From a configuration to a run: the only reader of a ConfigDict (configuration.py makes and checks it)."""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcclip_jax.cache_folder import cache_directory
from fcclip_jax.configuration import (
    CHECKPOINTS,
    ConfigError,
    base_config,
    claim,
    fields,
    load_config,
    model_config,
)
from fcclip_jax.data.drawn import draw_dataset
from fcclip_jax.data.loader import TrainLoader, make_loader
from fcclip_jax.data.sources import CocoPanopticSource, PanopticSource, TfdsPanopticSource
from fcclip_jax.losses.criterion import CriterionConfig
from fcclip_jax.models import weights
from fcclip_jax.models.clip_text import ClipText
from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig
from fcclip_jax.models.text_classifier import TextClassifier
from fcclip_jax.pretraining import run_contrastive
from fcclip_jax.run_evaluation import RunEvaluation
from fcclip_jax.training import metrics, sharding, train_state
from fcclip_jax.training.checkpoint import Checkpoints
from fcclip_jax.training.goodput import FILE as GOODPUT_FILE
from fcclip_jax.training.goodput import Goodput
from fcclip_jax.training.lifeline import Lifeline
from fcclip_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer, split_frozen
from fcclip_jax.training.overview import parameter_table
from fcclip_jax.training.stragglers import DataWaits
from fcclip_jax.training.train_step import COUNTS, make_train_step
from fcclip_jax.training.trainer import EXIT_PREEMPTED, Run, TrainerConfig, train
from fcclip_jax.training.work_folder import Folder, local_part, open_folder, upload
from fcclip_jax.vocabulary.vocabulary import Vocabulary
from fcclip_jax.world.names import vocabulary as world_vocabulary
from fcclip_jax.world.scenes import Recipe
from fcclip_jax.world.source import SceneSource

log = logging.getLogger(__name__)

# Of a work folder in an object store, what is written on this machine and goes up at the end.
UPLOADED, EXPORTED = ("tensorboard", "profile"), ("model", "fcclip.safetensors")

__all__ = ["ConfigError", "base_config", "build", "load_config", "run_training"]


def run_training(config: ConfigDict, workdir: str | Path, lifeline: Lifeline | None = None) -> int:
    """Trains, exports, and returns the process's exit code: 0, or EXIT_PREEMPTED when told to stop.

    In `workdir`: config.json, parameters.txt, checkpoints/, metrics.jsonl, goodput.json, tensorboard/, pictures/,
    profile/, and at the end model/ (this project's format) and fcclip.safetensors (the original's state dict).

    Raises:
        ValueError: the configuration does not fit the data, the devices or the work folder.
        CheckpointError: a checkpoint could not be written, or none can be read.
        TrainingStopped: a loss is not finite.
    """
    if config.task == "contrastive":
        return run_contrastive(config, workdir, lifeline)
    workdir = open_folder(workdir)
    run, data, towers, vocabulary = build(config, workdir, lifeline)
    try:
        state, complete = train(run)
    finally:
        run.checkpoints.close()
        data.close()
        for writer in run.writers:
            writer.close()
        upload(workdir, *UPLOADED)
    if not complete:
        return EXIT_PREEMPTED
    params = sharding.gather(run.mesh, state.params if state.average is None else state.average)
    if jax.process_index() == 0:
        export(local_part(workdir), model_config(config), params, towers, vocabulary, config)
        upload(workdir, *EXPORTED)
        log.info("the model is in %s", workdir / "model")
    return 0


def build(
    config: ConfigDict, workdir: Folder, lifeline: Lifeline | None = None
) -> tuple[Run, TrainLoader, dict[str, np.ndarray], Vocabulary]:
    """Puts a run together; also returns the loader, the frozen towers by name, and the vocabulary trained on."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file: give a folder, which need not exist yet")
    goodput = Goodput(workdir / GOODPUT_FILE if jax.process_index() == 0 else None)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh, config.accumulate)
    model = model_config(config)
    options = _model_options(config)
    start = _start_from(config, model)
    towers = _towers(config, model)
    fingerprint = claim(workdir, config, _contents(config, towers, start))
    source, vocabulary = _source(config, workdir)
    graphdef, _, frozen_shapes = train_state.abstract_model(model, options)
    if options.fine_tune:
        start = _with_image_tower(model, towers, start)
    frozen = weights.state_from_parameters(frozen_shapes, towers)
    optimizer_config = fields(OptimizerConfig, config.optimizer)
    optimizer = make_optimizer(optimizer_config)
    state = train_state.init_state(
        model,
        options,
        optimizer,
        mesh,
        seed=config.seed,
        average=config.optimizer.average_decay > 0,
        params=start,
    )
    first = jax.process_index() == 0
    if first:
        table = parameter_table(towers | _by_name(state.params), mesh.shape["fsdp"], fine_tune=options.fine_tune)
        (workdir / "parameters.txt").write_text(table, encoding="utf-8")
    watch = _watch(config, workdir, model, towers, vocabulary, mesh, source)
    data = _loader(config, source)
    run = Run(
        config=fields(TrainerConfig, config, average_decay=config.optimizer.average_decay),
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=learning_rate_schedule(optimizer_config),
        criterion=CriterionConfig(**config.loss.to_dict()),
        mesh=mesh,
        state=state,
        frozen=train_state.place_frozen(frozen, mesh, jnp.dtype(config.model.frozen_dtype)),
        text=sharding.place_whole(mesh, text_arguments(model, towers, vocabulary)),
        data=data,
        checkpoints=Checkpoints(
            workdir / CHECKPOINTS,
            keep_last=config.keep_checkpoints,
            best_metric="PQ" if config.eval_every else None,
            fingerprint=fingerprint,
        ),
        writers=metrics.make_writers(workdir) if first else [],
        workdir=workdir,
        goodput=goodput,
        waits=DataWaits(config.data.workers, lifeline),
        evaluate=watch.evaluate if config.eval_every else None,
        picture=watch.picture if config.picture_every else None,
    )
    return run, data, towers, vocabulary


def abstract_step(config: ConfigDict, mesh: Mesh) -> tuple[Callable, tuple[Any, ...]]:
    """The training step of a configuration as `jax.jit` makes it, and the shapes of its arguments `(state, frozen,
    batch, text, number)`. Nothing is read but the configuration's label file, and nothing is allocated, so `mesh` may
    be larger than any machine here.

    Raises:
        ValueError: the batch does not split over the mesh, or there is no such variant or label file.
    """
    sharding.check_batch_size(config.batch_size, mesh, config.accumulate)
    model = model_config(config)
    options = _model_options(config)
    graphdef, params, frozen = train_state.abstract_model(model, options)
    frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.model.frozen_dtype)), frozen)
    optimizer = make_optimizer(fields(OptimizerConfig, config.optimizer))
    average = config.optimizer.average_decay > 0
    state = train_state.abstract_state(params, optimizer, average=average)
    trainer = fields(TrainerConfig, config, average_decay=config.optimizer.average_decay)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        state,
        frozen,
        CriterionConfig(**config.loss.to_dict()),
        accumulate=trainer.accumulate,
        average_decay=trainer.average_decay,
        solver="device",
    )
    synonyms = _vocabulary(config).synonym_to_class
    images, edge, segments = config.batch_size, config.data.image_size, config.data.max_segments
    batch = {
        "image": jax.ShapeDtypeStruct((images, edge, edge, 3), np.uint8),
        "ids": jax.ShapeDtypeStruct((images, edge, edge), np.int16),
        "labels": jax.ShapeDtypeStruct((images, segments), np.int32),
        "valid": jax.ShapeDtypeStruct((images, segments), np.bool_),
    } | {name: jax.ShapeDtypeStruct((images,), np.int32) for name in COUNTS}
    text = {
        "rows": jax.ShapeDtypeStruct((len(synonyms), model.embed_dim), np.float32),
        "synonym_to_class": jax.ShapeDtypeStruct(synonyms.shape, np.int32),
        "classes": jax.ShapeDtypeStruct((int(synonyms.max()) + 1,), np.bool_),
    }
    return step, (state, frozen, batch, text, jax.ShapeDtypeStruct((), np.int32))


def _vocabulary(config: ConfigDict) -> Vocabulary:
    """The words of a run, without its images."""
    if config.data.kind == "emoji":
        return world_vocabulary(seen_only=True)
    if config.data.kind != "drawn":
        return Vocabulary.parse(config.data.labels)
    with tempfile.TemporaryDirectory() as folder:
        return Vocabulary.from_file(draw_dataset(Path(folder) / "drawn", images=1) / "labels.txt")


def _watch(
    config: ConfigDict,
    workdir: Folder,
    model: FCCLIPConfig,
    towers: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    mesh: Mesh,
    source: PanopticSource,
) -> RunEvaluation:
    validation = config.validation
    if config.eval_every and config.data.kind == "drawn":
        source, _ = _drawn(config, workdir, seed=config.seed + 1)
    elif config.eval_every and config.data.kind == "emoji":
        source = _emoji(config, seed=config.seed + 1)
    elif config.eval_every:
        paths = (validation.images, validation.panoptic, validation.annotations)
        source = CocoPanopticSource(*paths, vocabulary, skip_bad=config.data.skip_bad)
    sizes = {key: validation[key] for key in ("min_size", "max_size", "max_images")}
    return RunEvaluation(model, towers, vocabulary, mesh, source, **sizes)


def _model_options(config: ConfigDict) -> train_state.ModelOptions:
    return train_state.ModelOptions(
        jnp.dtype(config.model.dtype), config.model.remat, fine_tune=config.optimizer.tower_factor > 0
    )


def _by_name(state: nnx.State) -> dict[str, Any]:
    """Arrays or shapes by dotted name, without reading them."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _loader(config: ConfigDict, source: PanopticSource) -> TrainLoader:
    data = config.data
    return make_loader(
        source,
        batch_size=config.batch_size,
        image_size=data.image_size,
        max_segments=data.max_segments,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        skip_bad=data.skip_bad,
        min_scale=data.min_scale,
        max_scale=data.max_scale,
        flip_probability=data.flip,
    )


def _source(config: ConfigDict, workdir: Folder) -> tuple[PanopticSource, Vocabulary]:
    data = config.data
    if data.kind == "drawn":
        return _drawn(config, workdir, config.seed)
    if data.kind == "emoji":
        return _emoji(config, config.seed), world_vocabulary(seen_only=True)
    vocabulary = Vocabulary.parse(data.labels)
    if data.kind == "coco":
        paths = (data.images, data.panoptic, data.annotations)
        return CocoPanopticSource(*paths, vocabulary, skip_bad=data.skip_bad), vocabulary
    return TfdsPanopticSource(data.tfds, vocabulary), vocabulary


def _emoji(config: ConfigDict, seed: int) -> PanopticSource:
    """Scenes of seen things alone."""
    size = config.data.image_size
    recipe = Recipe(size, size, count=(1, 4), size=(size // 5, size * 3 // 5))
    return SceneSource(config.data.sprites, recipe, seed=seed, seen_only=True)


def _drawn(config: ConfigDict, workdir: Folder, seed: int) -> tuple[PanopticSource, Vocabulary]:
    data = config.data
    size = (data.image_size, data.image_size * 5 // 4)
    name = f"drawn-{data.drawn_images}-{data.image_size}-{seed}"
    folder = draw_dataset(local_part(workdir) / name, images=data.drawn_images, size=size, seed=seed)
    vocabulary = Vocabulary.from_file(folder / "labels.txt")
    paths = (folder / "images", folder / "panoptic", folder / "panoptic.json")
    return CocoPanopticSource(*paths, vocabulary), vocabulary


def _towers(config: ConfigDict, model: FCCLIPConfig) -> dict[str, np.ndarray]:
    """The frozen towers by parameter name."""
    folder = config.model.towers
    if folder:
        card = weights.read_card(folder)
        if (card.config.vision, card.config.text, card.config.embed_dim) != (model.vision, model.text, model.embed_dim):
            raise ConfigError(f"model.towers {folder} holds {card.config.name}, model.variant is {model.name}")
        return weights.load_parameters(folder, weights.TOWERS)
    if config.data.kind != "drawn" and not config.model.random_towers:
        raise ConfigError(
            "model.towers is empty: give the folder of the frozen towers (python -m convert.download "
            f"{config.model.variant}), or --config.model.random_towers=true to train on random ones"
        )
    log.warning("model.towers is empty: the frozen towers are random, so no words but the trained ones will be known")
    make = jax.jit(lambda key: split_frozen(nnx.state(FCCLIP(model, rngs=nnx.Rngs(key))))[1])
    return weights.parameters_of(make(jax.random.key(config.seed + 1)))


def _contents(config: ConfigDict, towers: dict[str, np.ndarray], start: nnx.State | None) -> dict[str, str]:
    """What the model folders of the configuration hold, by key: they may be moved, but not exchanged. (Random towers
    follow from the seed, up to the rounding of the device that draws them.)"""
    found = {"model.towers": towers} if config.model.towers else {}
    if start is not None:
        found["model.start_from"] = weights.parameters_of(start)
    return {key: weights.sha256(sorted(held), held.__getitem__) for key, held in found.items()}


def _with_image_tower(model: FCCLIPConfig, towers: dict[str, np.ndarray], start: nnx.State | None) -> nnx.State:
    """What a fine-tuning starts from: the tower as it is given, and `start` where there is one."""
    _, trained, _ = train_state.abstract_model(model, train_state.ModelOptions(fine_tune=True))
    known = weights.state_from_parameters(nnx.State({"clip": trained["clip"]}), towers)
    return known if start is None else nnx.merge_state(known, start)


def _start_from(config: ConfigDict, model: FCCLIPConfig) -> nnx.State | None:
    folder = config.model.start_from
    if not folder:
        return None
    _, shapes, _ = train_state.abstract_model(model, train_state.ModelOptions())
    parameters = weights.load_parameters(folder)
    wanted = {name: tuple(leaf.shape) for name, leaf in _by_name(shapes).items()}
    found = {name: array.shape for name, array in parameters.items() if not name.startswith(weights.TOWERS)}
    weights.check_shapes(f"model.start_from {folder}", found, wanted)
    return weights.state_from_parameters(shapes, parameters)


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
    parameters = towers | weights.parameters_of(params)  # a tower that was trained along comes after the one given
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
