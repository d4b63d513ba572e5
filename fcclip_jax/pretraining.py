"""Contrastive training of the two towers on the small world: from a configuration to a folder of towers."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fcclip_jax.configuration import CHECKPOINTS, ConfigError, claim, fields, model_config
from fcclip_jax.data.loader import TrainLoader
from fcclip_jax.models import weights
from fcclip_jax.models.clip_resnet import ResNetConfig
from fcclip_jax.models.fcclip import FCCLIPConfig
from fcclip_jax.tower_probe import Probe
from fcclip_jax.training import metrics, sharding
from fcclip_jax.training.checkpoint import Checkpoints
from fcclip_jax.training.contrastive import INPUTS, ContrastiveConfig, init_clip, make_contrastive_step
from fcclip_jax.training.goodput import FILE as GOODPUT_FILE
from fcclip_jax.training.goodput import Goodput
from fcclip_jax.training.lifeline import Lifeline
from fcclip_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from fcclip_jax.training.overview import parameter_table
from fcclip_jax.training.stragglers import DataWaits
from fcclip_jax.training.train_state import TrainState
from fcclip_jax.training.trainer import EXIT_PREEMPTED, Run, TrainerConfig, train
from fcclip_jax.training.work_folder import Folder, local_part, open_folder, upload
from fcclip_jax.world.pairs import PairBatches
from fcclip_jax.world.sprites import Sprites

log = logging.getLogger(__name__)

TOWERS, _UPLOADED = "towers", ("tensorboard", "profile")


def run_contrastive(config: ConfigDict, workdir: str | Path, lifeline: Lifeline | None = None) -> int:
    """Trains the towers, writes `workdir/towers`, and returns the process's exit code, as `experiment.run_training`.

    Raises:
        ConfigError: the configuration does not fit.
        SpriteError: the pictures are not there.
    """
    if config.data.kind != "emoji":
        raise ConfigError("task contrastive needs captions, which only data.kind emoji has")
    if config.accumulate != 1:
        raise ConfigError("task contrastive needs its batch at once, to tell pictures apart: accumulate must be 1")
    if isinstance(model_config(config).vision, ResNetConfig):
        raise ConfigError(f"task contrastive cannot train {config.model.variant}: its BatchNorm is frozen here")
    workdir = open_folder(workdir)
    probe, run = _build(config, workdir, lifeline)
    try:
        state, complete = train(run)
    finally:
        run.checkpoints.close()
        run.data.close()
        for writer in run.writers:
            writer.close()
        upload(workdir, *_UPLOADED)
    params = _best(run.mesh, state)
    if jax.process_index() == 0:
        scores = probe.measure(params)
        export_towers(local_part(workdir) / TOWERS, model_config(config), params, config, int(state.step), scores)
        upload(workdir, TOWERS)
    return 0 if complete else EXIT_PREEMPTED


def _build(config: ConfigDict, workdir: Folder, lifeline: Lifeline | None) -> tuple[Probe, Run]:
    """Puts a run together, and what it is measured by."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh)
    model = model_config(config)
    sprites = Sprites(config.data.sprites)  # before the work folder is claimed: they may not be there
    start = _start_from(config, model)
    contents = {} if start is None else {"model.start_from": weights.sha256(sorted(start), start.__getitem__)}
    fingerprint = claim(workdir, config, contents)
    optimizer_config = fields(OptimizerConfig, config.optimizer)
    optimizer = make_optimizer(optimizer_config)
    decay = config.optimizer.average_decay
    graphdef, state = init_clip(
        model,
        optimizer,
        mesh,
        seed=config.seed,
        average=decay > 0,
        dtype=jnp.dtype(config.model.dtype),
        parameters=start,
    )
    first = jax.process_index() == 0
    if first:
        table = parameter_table(_by_name(state.params), mesh.shape["fsdp"])
        (workdir / "parameters.txt").write_text(table, encoding="utf-8")
    probe = Probe(model, graphdef, sprites)
    batches = PairBatches(
        str(config.data.sprites), config.batch_size, config.seed, jax.process_index(), jax.process_count()
    )
    return probe, Run(
        config=fields(TrainerConfig, config, average_decay=decay),
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=learning_rate_schedule(optimizer_config),
        criterion=None,
        mesh=mesh,
        state=state,
        frozen=nnx.State({}),
        text={},
        data=TrainLoader(batches, config.data.workers, threads=1, buffered=2),
        checkpoints=Checkpoints(workdir / CHECKPOINTS, keep_last=config.keep_checkpoints, fingerprint=fingerprint),
        writers=metrics.make_writers(workdir) if first else [],
        workdir=workdir,
        goodput=Goodput(workdir / GOODPUT_FILE if first else None),
        waits=DataWaits(config.data.workers, lifeline),
        evaluate=(lambda state, _: probe.measure(_best(mesh, state))) if config.eval_every else None,
        make_step=lambda state: make_contrastive_step(
            graphdef, optimizer, mesh, state, ContrastiveConfig(), average_decay=decay
        ),
        inputs=INPUTS,
    )


def _start_from(config: ConfigDict, model: FCCLIPConfig) -> dict[str, np.ndarray] | None:
    """The towers of the folder `model.start_from`, by their names in `Clip`."""
    if not config.model.start_from:
        return None
    found = weights.load_parameters(config.model.start_from, weights.TOWERS)
    shapes = {name: array.shape for name, array in found.items()}
    weights.check_shapes(
        f"model.start_from {config.model.start_from}", shapes, weights.parameter_shapes(model, towers_only=True)
    )
    return {name.removeprefix(weights.TOWERS): array for name, array in found.items()}


def _by_name(state: nnx.State) -> dict[str, Any]:
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _best(mesh: jax.sharding.Mesh, state: TrainState) -> nnx.State:
    """The moving average where there is one, whole."""
    return sharding.gather(mesh, state.params if state.average is None else state.average)


def export_towers(
    folder: Path, model: FCCLIPConfig, params: nnx.State, config: ConfigDict, steps: int, scores: dict[str, float]
) -> None:
    """Writes the towers as a model folder, which `model.towers` of a configuration takes."""
    arrays = {weights.TOWERS + name: array for name, array in weights.parameters_of(params).items()}
    shapes = weights.parameter_shapes(model, towers_only=True)
    read: Callable[[str], np.ndarray] = arrays.__getitem__
    card = weights.ModelCard(
        model,
        towers_only=True,
        provenance={"config": json.loads(config.to_json()), "steps": steps, "scores": scores},
        text_sha256=weights.text_sha256(shapes, read),
    )
    weights.save_model(folder, card, shapes, read)
    log.info("the towers are in %s", folder)
