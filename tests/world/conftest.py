import pytest

from fcclip_jax.world.sprites import Sprites
from tests.world.drawn_sprites import write_sprites


@pytest.fixture(scope="session")
def sprite_folder(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("world") / "sprites")


@pytest.fixture(scope="session")
def sprites(sprite_folder):
    return Sprites(sprite_folder)
