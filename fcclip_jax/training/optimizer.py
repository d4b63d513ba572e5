"""AdamW on the trainable part, by an explicit partition: frozen, decayed, not decayed (SPEC 7)."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fcclip_jax.training.sharding import path_name

FROZEN, DECAY, NO_DECAY = "frozen", "decay", "no_decay"
_TOWER, _IMAGE_TOWER = "tower_", "clip.visual."

# The first match counts. As in the reference, norms and embeddings are not decayed; biases are, and so are the pixel
# decoder's level_embed and the logit scale, which are bare parameters there.
GROUPS: tuple[tuple[str, str], ...] = (
    (r"^clip\.", FROZEN),
    (r"norm\d?(\.\d+)?\.(scale|bias)$", NO_DECAY),
    (r"^transformer_decoder\.(query_feat|query_embed|level_embed)$", NO_DECAY),
    (r"^void_embedding$", NO_DECAY),
    # Contrastive training alone gets to these; elsewhere they are frozen. A word that does not come up stays as it is.
    (r"^(text\.(token|positional)_embedding|logit_scale)$", NO_DECAY),
    (r"^visual\..*\.(gamma|bias)$", NO_DECAY),
    (r".*", DECAY),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The reference's schedule for batch 16: constant, times `gamma` at each of `milestones` (steps).

    For another batch size b scale `learning_rate` by b/16 and all step counts by 16/b (the linear rule).
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.01
    warmup_steps: int = 10
    warmup_factor: float = 1.0
    milestones: Sequence[int] = (327778, 355092)
    gamma: float = 0.1
    # The image tower's learning rate as a share of `learning_rate`. 0: it is frozen, which is FC-CLIP; above, the
    # ablation that shows why.
    tower_factor: float = 0.0


def group_of(name: str, *, fine_tune: bool = False) -> str:
    """The one group that a parameter, named by its dotted path, belongs to. With `fine_tune` the image tower's are the
    groups that it has in contrastive training, `tower_` before them."""
    if fine_tune and name.startswith(_IMAGE_TOWER):
        return _TOWER + group_of(name.removeprefix("clip."))
    return next(group for pattern, group in GROUPS if re.search(pattern, name))


def split_frozen(state: nnx.State, *, fine_tune: bool = False) -> tuple[nnx.State, nnx.State]:
    """(trainable, frozen), of which the second is never differentiated; with `fine_tune` the image tower is in the
    first."""

    def is_frozen(path: tuple, _leaf=None) -> bool:
        return group_of(path_name(path), fine_tune=fine_tune) == FROZEN

    frozen, trainable = nnx.split_state(state, is_frozen, ...)
    return trainable, frozen


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Warm-up from `warmup_factor` to 1 over `warmup_steps`, then steps."""
    steps = optax.piecewise_constant_schedule(config.learning_rate, dict.fromkeys(config.milestones, config.gamma))

    def schedule(count):
        done = jnp.minimum(count / max(config.warmup_steps, 1), 1.0)
        return steps(count) * (config.warmup_factor * (1 - done) + done)

    return schedule


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip to a global norm, then AdamW with weight decay for the decayed group alone.

    The frozen group has no moments: it reaches the optimizer only as "set to zero", and in training not at all.
    """

    fine_tune = config.tower_factor > 0

    def adamw(weight_decay: float, factor: float = 1.0) -> optax.GradientTransformation:
        schedule = learning_rate_schedule(dataclasses.replace(config, learning_rate=factor * config.learning_rate))
        return optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=weight_decay)

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: group_of(path_name(path), fine_tune=fine_tune), params)

    groups = {DECAY: adamw(config.weight_decay), NO_DECAY: adamw(0.0), FROZEN: optax.set_to_zero()}
    if fine_tune:
        groups |= {
            _TOWER + DECAY: adamw(config.weight_decay, config.tower_factor),
            _TOWER + NO_DECAY: adamw(0.0, config.tower_factor),
        }
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.partition(groups, labels))
