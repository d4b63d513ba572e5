"""Three steps of contrastive training on a mesh, in a process of its own: losses and parameters, as a file.

python contrastive_steps.py OUTPUT DATA FSDP
"""

import sys

import jax
import numpy as np

from fcclip_jax.cache_folder import cache_directory
from fcclip_jax.models import weights
from fcclip_jax.models.clip_text import TextConfig
from fcclip_jax.models.clip_vision import VisionConfig
from fcclip_jax.models.fcclip import FCCLIPConfig
from fcclip_jax.training import sharding
from fcclip_jax.training.contrastive import ContrastiveConfig, init_clip, make_contrastive_step
from fcclip_jax.training.optimizer import OptimizerConfig, make_optimizer

MODEL = FCCLIPConfig(
    "tiny",
    embed_dim=16,
    vision=VisionConfig((1, 1, 1, 1), (8, 8, 16, 32), "linear", 64, layer_scale=1.0),
    text=TextConfig(width=16, heads=2, layers=1, vocab_size=60),
)
CANVASES, PLACES, CLASSES, TOKENS = 8, 4, 13, 6
# So that something is split: at the usual size nothing of so small a model would be.
sharding.SMALLEST_SPLIT = 64


def batch(step: int) -> dict[str, np.ndarray]:
    """Canvases of four pictures; in every second one half of the places are empty."""
    rng = np.random.default_rng(step)
    present = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, (CANVASES, PLACES))]
    present[::2, 2:] = 0
    tokens = rng.integers(1, 58, (CANVASES, PLACES + 2, TOKENS)).astype(np.int32)
    tokens[..., -1] = 59
    return {
        "image": rng.integers(0, 256, (CANVASES, 64, 64, 3), np.uint8),
        "parts": np.broadcast_to(np.arange(4, dtype=np.int8).reshape(2, 2), (CANVASES, 2, 2)).copy(),
        "tokens": tokens[:, :PLACES],
        "names": tokens[:, PLACES:],  # 16 of them, of which 13 are wanted
        "present": present,
    }


def main(output: str, data: str, fsdp: str) -> None:
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    mesh = sharding.make_mesh(int(data), int(fsdp))
    # Small steps: Adam's first ones are of the size of the rate whatever the gradient, which would blow up rounding.
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, eps=1e-3, clip_norm=1.0, milestones=()))
    graphdef, state = init_clip(MODEL, optimizer, mesh, seed=0, average=True, dtype=np.float32)
    step = make_contrastive_step(graphdef, optimizer, mesh, state, ContrastiveConfig(), average_decay=0.5)
    found = {"losses": []}
    split = sum("fsdp" in leaf.sharding.spec for leaf in jax.tree.leaves(state.params))
    with jax.set_mesh(mesh):
        for number in range(3):
            state, terms = step(state, {}, sharding.global_batch(mesh, batch(number)), {}, np.int32(number))
            found["losses"].append([float(terms[k]) for k in ("loss", "loss_captions", "loss_names", "named")])
            found.setdefault("grad_norm", float(terms["grad_norm"]))
    params = weights.parameters_of(sharding.gather(mesh, state.params))
    average = weights.parameters_of(sharding.gather(mesh, state.average))
    np.savez(
        output, split=split, step=int(state.step), **found, **params, **{f"average.{k}": v for k, v in average.items()}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
