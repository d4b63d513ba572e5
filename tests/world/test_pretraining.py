from pathlib import Path

import numpy as np
import pytest

from fcclip_jax.configuration import ConfigError, load_config
from fcclip_jax.pretraining import run_contrastive
from fcclip_jax.tower_probe import mask_pooled_pieces
from fcclip_jax.world.names import THINGS
from fcclip_jax.world.scenes import Recipe, draw_scene
from fcclip_jax.world.sprites import SpriteError

CONFIG = Path(__file__).parents[2] / "configs" / "emoji_clip.py"


def config(*overrides):
    return load_config(CONFIG, overrides)


def test_true_masks_lie_over_the_cells_of_the_map(sprites):
    scenes = [draw_scene(sprites, Recipe(64, 96, size=(20, 50)), 1, n) for n in range(6)]
    pieces = mask_pooled_pieces(scenes)
    assert pieces.images.shape == (6, 64, 96, 3) and pieces.cover.shape[2:] == (2, 3)
    # The pieces share out every cell among them; each covers as many pixels as its mask has.
    np.testing.assert_allclose(pieces.cover.sum(1), 1, atol=1e-6)
    for n, scene in enumerate(scenes):
        areas = np.bincount(scene.rows.ravel())
        np.testing.assert_allclose(pieces.cover[n].sum((1, 2))[: len(areas)] * 32**2, areas, rtol=1e-5)
        assert (pieces.classes[n] >= 0).sum() == len(scene.pieces)
        kinds = [piece.kind if piece.isthing else len(THINGS) + piece.kind for piece in scene.pieces]
        assert pieces.classes[n, : len(kinds)].tolist() == kinds


def test_without_sprites_nothing_is_claimed(tmp_path):
    with pytest.raises(SpriteError, match="fcclip prepare emoji_scenes"):
        run_contrastive(config(("data.sprites", str(tmp_path / "none"))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_and_parts_of_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.kind emoji"):
        run_contrastive(config(("data.kind", "drawn")), tmp_path)
    with pytest.raises(ConfigError, match="accumulate must be 1"):
        run_contrastive(config(("accumulate", "2")), tmp_path)
    with pytest.raises(ConfigError, match="cannot train RN50: its BatchNorm is frozen"):
        run_contrastive(config(("model.variant", "RN50")), tmp_path)
