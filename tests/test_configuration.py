import json
import re

import pytest

from fcclip_jax.configuration import CHECKPOINTS, CONFIG_FILE, ConfigError, base_config, claim, load_config

FILE = """from fcclip_jax.experiment import base_config


def get_config():
    config = base_config()
    {}
    return config
"""


@pytest.fixture
def load(tmp_path):
    """Overrides, and optionally a line of the configuration file, to a configuration."""

    def call(*overrides, line="pass"):
        path = tmp_path / "run.py"
        path.write_text(FILE.format(line))
        return load_config(path, [tuple(override.split("=", 1)) for override in overrides])

    return call


RISE = "are steps from 1 that rise, each above the one before"
NONSENSE = [
    ("optimizer.clip_norm=0", "optimizer.clip_norm must be above 0, not 0.0"),
    ("optimizer.clip_norm=-1", "optimizer.clip_norm must be above 0, not -1.0"),
    ("optimizer.learning_rate=0", "optimizer.learning_rate must be above 0, not 0.0"),
    ("optimizer.learning_rate=-1e-4", "optimizer.learning_rate must be above 0, not -0.0001"),
    ("optimizer.learning_rate=1e999", "optimizer.learning_rate must be above 0, not inf"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay must be at least 0, not -0.1"),
    ("optimizer.b1=1", "optimizer.b1 must be at least 0 and below 1, not 1.0"),
    ("optimizer.b2=-0.5", "optimizer.b2 must be at least 0 and below 1, not -0.5"),
    ("optimizer.eps=0", "optimizer.eps must be above 0, not 0.0"),
    ("optimizer.gamma=0", "optimizer.gamma must be above 0, not 0.0"),
    ("optimizer.average_decay=1", "optimizer.average_decay must be at least 0 and below 1, not 1.0"),
    (
        "optimizer.milestones=(5,3)",
        "optimizer.milestones are steps from 1 that rise, each above the one before, not (5, 3)",
    ),
    (
        "optimizer.milestones=(3,3)",
        "optimizer.milestones are steps from 1 that rise, each above the one before, not (3, 3)",
    ),
    ("optimizer.milestones=0", "optimizer.milestones are steps from 1 that rise, each above the one before, not (0,)"),
    ("loss.important=1.5", "loss.important must be at least 0 and at most 1, not 1.5"),
    ("loss.mask_weight=-5", "loss.mask_weight must be at least 0, not -5.0"),
    ("data.max_segments=0", "data.max_segments must be at least 1 and at most 32767, not 0"),
    ("data.image_size=100", "data.image_size must be a multiple of 32, not 100"),
    ("data.min_scale=3", "data.max_scale must not be below data.min_scale"),
    ("validation.max_size=100", "validation.max_size must not be below validation.min_size"),
    ("seed=-1", "seed must be at least 0 and at most 2147483646, not -1"),
    ("steps=0", "steps must be at least 1, not 0"),
    ("data.kind=coca", "data.kind is one of coco, tfds, drawn, emoji, not 'coca'"),
]


@pytest.mark.parametrize(("override", "message"), NONSENSE)
def test_nonsense_is_refused(load, override, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load(override)


def test_a_number_that_is_none_is_refused(load):
    """NaN lies in no range; only a file can hold it."""
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate must be above 0, not nan"):
        load(line="config.optimizer.learning_rate = float('nan')")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=1", "has no key learning_rate; did you mean optimizer.learning_rate?"),
        ("batch_sice=8", "has no key batch_sice; did you mean batch_size?"),
        ("steps=1.5", "steps takes a whole number such as 368750, not '1.5'"),
        ("steps=true", "steps takes a whole number such as 368750, not 'true'"),
        ("data.flip=half", "data.flip takes a number such as 0.5, not 'half'"),
        ("data.skip_bad=1", "data.skip_bad takes true or false such as False, not '1'"),
        ("optimizer.milestones=(1.5,2)", "optimizer.milestones takes a whole number or several of them, such as"),
        ("optimizer.milestones=soon", "optimizer.milestones takes a whole number or several of them, such as"),
        ("optimizer=1", "optimizer is a group of keys: optimizer.average_decay, optimizer.b1, "),
    ],
)
def test_wrong_keys_and_types_are_refused(load, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(override)


def test_overrides_take_the_type_of_their_key(load):
    config = load(
        "steps=7",
        "optimizer.learning_rate=1",
        "data.skip_bad=true",
        "data.labels=1,2",
        "optimizer.milestones=(3,5)",
        "mesh.fsdp=-1",
    )
    assert (config.steps, config.data.skip_bad, config.data.labels) == (7, True, "1,2")
    assert type(config.optimizer.learning_rate) is float and config.optimizer.learning_rate == 1
    assert (config.optimizer.milestones, config.mesh.fsdp) == ((3, 5), -1)
    assert load("optimizer.milestones=4").optimizer.milestones == (4,)
    assert load("optimizer.milestones=[4, 6]").optimizer.milestones == (4, 6)
    assert load("optimizer.milestones=(4,)", line="config.optimizer.milestones = ()").optimizer.milestones == (4,)


def test_errors_in_the_file_name_its_line(load):
    with pytest.raises(ConfigError, match=r"run\.py, line 6: ZeroDivisionError"):
        load(line="config.steps = 1 // 0")
    with pytest.raises(ConfigError, match=r"run\.py, line 6: TypeError"):
        load(line="config.steps = 'many'")


def a_run(folder, config, contents=None):
    """The work folder of a run that has a checkpoint."""
    print_ = claim(folder, config, contents)
    (folder / CHECKPOINTS / "100").mkdir(parents=True)
    return print_


def test_what_may_change_when_a_run_goes_on(tmp_path, load):
    print_ = a_run(tmp_path / "run", base_config())
    changed = ("steps=5", "mesh.fsdp=8", "data.workers=0", "log_every=1", "keep_checkpoints=9", "accumulate=2")
    assert claim(tmp_path / "run", load(*changed)) == print_
    assert json.loads((tmp_path / "run" / CONFIG_FILE).read_text())["config"]["steps"] == 5


@pytest.mark.parametrize(
    "override", ["seed=1", "batch_size=8", "optimizer.b1=0.8", "model.dtype=float32", "data.flip=0"]
)
def test_the_work_folder_of_another_run(tmp_path, load, override):
    a_run(tmp_path / "run", base_config())
    before = (tmp_path / "run" / CONFIG_FILE).read_bytes()
    key = override.split("=")[0]
    with pytest.raises(
        ConfigError, match=rf"is the work folder of another run: {key} .* \(now .*\)\. Give another --workdir"
    ):
        claim(tmp_path / "run", load(override))
    assert (tmp_path / "run" / CONFIG_FILE).read_bytes() == before


def test_towers_may_be_moved_but_not_exchanged(tmp_path, load):
    a_run(tmp_path / "run", load("model.towers=here"), {"model.towers": "abc"})
    moved = load("model.towers=there")
    claim(tmp_path / "run", moved, {"model.towers": "abc"})
    with pytest.raises(ConfigError, match=r"another run: model\.towers holds other weights"):
        claim(tmp_path / "run", moved, {"model.towers": "abd"})
    with pytest.raises(ConfigError, match=r"another run: model\.towers 'abc' \(now ''\)"):
        claim(tmp_path / "run", load())


def test_a_folder_without_a_checkpoint_is_taken_over(tmp_path, load):
    claim(tmp_path / "run", base_config())
    claim(tmp_path / "run", load("seed=1"))


def test_a_damaged_note_of_whose_folder_it_is(tmp_path):
    a_run(tmp_path / "run", base_config())
    (tmp_path / "run" / CONFIG_FILE).write_text('{"fingerprint"')
    with pytest.raises(ConfigError, match=r"config\.json is damaged; .* delete it to resume"):
        claim(tmp_path / "run", base_config())
