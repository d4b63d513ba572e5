import pickle

import numpy as np
import pytest

from fcclip_jax.data.loader import make_loader
from fcclip_jax.data.sources import CocoPanopticSource, PanopticSource
from fcclip_jax.data.targets import row_map
from fcclip_jax.vocabulary import Vocabulary
from fcclip_jax.world.names import HELD_OUT_STYLE, STUFF, THINGS, TRAINED_STYLES, vocabulary
from fcclip_jax.world.prepare import write_split
from fcclip_jax.world.scenes import Recipe, draw_scene, turned
from fcclip_jax.world.source import SceneSource
from fcclip_jax.world.sprites import SpriteError, Sprites
from fcclip_jax.world.textures import draw_stuff

SMALL = Recipe(96, 128, count=(1, 4), size=(30, 60))


@pytest.fixture(scope="module")
def scenes(sprites):
    return [draw_scene(sprites, SMALL, 5, number) for number in range(40)]


def test_a_scene_is_a_function_of_its_numbers(sprites, scenes):
    again = draw_scene(sprites, SMALL, 5, 3)
    assert np.array_equal(again.picture, scenes[3].picture) and np.array_equal(again.rows, scenes[3].rows)
    assert again.pieces == scenes[3].pieces
    assert not np.array_equal(draw_scene(sprites, SMALL, 6, 3).picture, scenes[3].picture)


def test_every_pixel_belongs_to_a_piece_and_every_piece_has_pixels(scenes):
    for scene in scenes:
        assert scene.picture.shape == (96, 128, 3) and scene.rows.shape == (96, 128)
        assert set(np.unique(scene.rows)) == set(range(len(scene.pieces)))
    assert max(len(scene.pieces) for scene in scenes) > 4


def test_masks_lie_where_the_colour_is(sprites):
    """Things of a known colour on known stuff: inside the mask, away from its edge, the sprite's own hue."""
    recipe = Recipe(96, 96, things=(0,), styles=("noto",), count=(1, 1), size=(50, 60), regions=(1, 1))
    for number in range(10):
        scene = draw_scene(sprites, recipe, 1, number)
        row = next(n for n, piece in enumerate(scene.pieces) if piece.isthing)
        inside = scene.picture[scene.rows == row].astype(int)
        # Thing 0 is pure red under light of at least 0.75 * 0.92: its pixels are red, whatever the stuff.
        red = (inside[:, 0] > 120) & (inside[:, 1] < 90) & (inside[:, 2] < 90)
        assert red.mean() > 0.9


def test_nothing_is_hidden_beyond_what_a_scene_allows(sprites, monkeypatch):
    """At least 0.6 of each thing's drawn pixels stay, however crowded it gets; drawn ones are counted by watching."""
    from fcclip_jax.world import scenes as module

    counted = []
    plain = module._paste

    def watched(rng, sprites, recipe, canvas, rows, drawn, row, kind, style):
        done = plain(rng, sprites, recipe, canvas, rows, drawn, row, kind, style)
        counted.append((rows, row - len(drawn) + done, drawn))
        return done

    monkeypatch.setattr(module, "_paste", watched)
    crowded = Recipe(96, 96, count=(6, 8), size=(40, 60))
    for number in range(10):
        draw_scene(sprites, crowded, 2, number)
        rows, first, drawn = counted[-1]
        left = np.bincount(rows.ravel(), minlength=first + len(drawn))[first:]
        assert len(drawn) >= 2 and (left >= 0.6 * np.array(drawn)).all()


def test_styles_and_things_are_those_of_the_recipe(sprites):
    recipe = Recipe(96, 96, things=(3, 7), styles=(HELD_OUT_STYLE,), size=(30, 50))
    pieces = [piece for n in range(10) for piece in draw_scene(sprites, recipe, 0, n).pieces if piece.isthing]
    assert {piece.kind for piece in pieces} == {3, 7} and {piece.style for piece in pieces} == {HELD_OUT_STYLE}


@pytest.mark.parametrize("size", [20.0, 100.0])
def test_turned_keeps_size_and_area(sprites, size):
    """Thing 6 is a full circle: whatever the angle, a disc of about that diameter, of pi/4 of its square."""
    patch = turned(np.random.default_rng(0), sprites, 6, "noto", size, 25.0)
    solid = patch[..., 3] > 127
    # Sides are stretched against each other, the area is not; the edge of a small disc is one pixel in ten.
    assert solid.sum() == pytest.approx(np.pi / 4 * size**2, rel=0.06)
    assert (patch[..., :3] <= patch[..., 3:]).all()  # premultiplied


def test_stuff_of_each_kind_is_its_own():
    pieces = [draw_stuff(np.random.default_rng(0), kind, 96, 96).mean((0, 1)) for kind in range(len(STUFF))]
    for n, one in enumerate(pieces):
        assert all(abs(one - other).max() > 5 for other in pieces[:n])
    with pytest.raises(ValueError, match="384"):
        draw_stuff(np.random.default_rng(0), 0, 400, 100)


def test_the_source_trains_on_seen_things_alone(sprite_folder):
    source = SceneSource(sprite_folder, SMALL, seed=3, seen_only=True)
    assert isinstance(source, PanopticSource)
    words = vocabulary(seen_only=True)
    for index in range(20):
        record = source[index]
        panoptic = record.decode()[1]
        rows = row_map(record, np.asarray(panoptic))
        assert rows.min() == 0 and rows.max() == len(record.classes) - 1
        for piece, row in zip(record.scene.pieces, record.classes, strict=True):
            assert words.classes[row].names == (THINGS[piece.kind].names if piece.isthing else STUFF[piece.kind])
            assert not piece.isthing or THINGS[piece.kind].seen


def test_the_source_goes_through_the_loader(sprite_folder):
    source = SceneSource(sprite_folder, SMALL, seed=3, count=1 << 10, seen_only=True)
    assert len(pickle.dumps(source)) < 20_000
    with make_loader(source, batch_size=2, image_size=64, max_segments=4) as loader:
        batch = next(loader)
    assert batch["image"].shape == (2, 64, 64, 3) and batch["valid"].any(axis=1).all()


def test_a_split_reads_back_as_coco(sprites, tmp_path):
    assert write_split(tmp_path / "val", sprites, SMALL, 9, 5)
    assert not write_split(tmp_path / "val", sprites, SMALL, 9, 5)
    folder = tmp_path / "val"
    source = CocoPanopticSource(folder / "images", folder / "panoptic", folder / "panoptic.json", vocabulary())
    assert len(source) == 5
    for number in range(5):
        scene = draw_scene(sprites, SMALL, 9, number)
        image, panoptic = source[number].decode()
        assert np.array_equal(np.asarray(image), scene.picture)
        assert np.array_equal(row_map(source[number], np.asarray(panoptic)), scene.rows)
        names = [vocabulary().names[row] for row in source[number].classes]
        assert names == [(THINGS[p.kind].names if p.isthing else STUFF[p.kind])[0] for p in scene.pieces]
    with pytest.raises(FileExistsError, match="other scenes"):
        write_split(folder, sprites, SMALL, 10, 5)


def test_sprites_that_are_not_there(tmp_path):
    with pytest.raises(SpriteError, match="fcclip prepare emoji_scenes"):
        Sprites(tmp_path)
    (tmp_path / "noto.png").write_bytes(b"no picture")
    with pytest.raises(SpriteError, match="damaged"):
        Sprites(tmp_path, ("noto",))


def test_vocabulary_is_immutable_data():
    assert isinstance(vocabulary(), Vocabulary) and HELD_OUT_STYLE not in TRAINED_STYLES
