"""A model on disk: a folder with config.json (what it is) and model.safetensors (flat parameter names -> arrays).

Parameter names are the paths in the module tree, joined by dots: `clip.visual.stages.0.blocks.0.fc1.kernel`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig
from fcclip_jax.models.weights_file import WeightsError, WeightsFile, write_safetensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = "fcclip_jax"
FORMAT_VERSION = 1

# What a converted open_clip checkpoint holds: the frozen towers alone.
TOWERS = "clip."
TEXT_TOWER = "clip.text."


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What config.json says beside the sizes.

    Attributes:
        config: the model's sizes.
        train_classes: the names it was trained on, as `Vocabulary.to_dict` gives them; decides what is "seen".
        towers_only: the file holds the frozen CLIP towers without a trained mask generator.
        no_object_weight: weight of "no object" in the training loss, carried for the way back to FC-CLIP's format.
        provenance: where the weights come from, free form.
        text_sha256: fingerprint of the text tower, the key of cached text embeddings.
    """

    config: FCCLIPConfig
    train_classes: dict[str, Any] | None = None
    towers_only: bool = False
    no_object_weight: float = 0.1
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    text_sha256: str = ""

    def to_json(self) -> str:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["config"] = self.config.to_dict()
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return json.dumps(head | values, indent=1, ensure_ascii=False) + "\n"


def read_card(directory: str | os.PathLike) -> ModelCard:
    """Reads config.json of a model folder.

    Raises:
        WeightsError: no such folder or file, not JSON, another format, or a field that does not belong.
    """
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        if Path(directory).is_file():
            problem, source = "is a file, not a model folder", directory
        else:
            problem, source = f"is not a model folder: {CONFIG_FILE} is missing", "X.pth"
        raise WeightsError(
            f"{directory} {problem}. Convert a checkpoint first: "
            f"`python -m convert.fcclip --input {source} --output DIR`."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f'no `"format": "{FORMAT}"`')
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
        values["config"] = FCCLIPConfig.from_dict(values.get("config", {}))
        return ModelCard(**values)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None


def parameter_shapes(config: FCCLIPConfig, *, towers_only: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the file. Allocates nothing."""
    _, state = _abstract(config)
    return {
        name: tuple(leaf.shape)
        for path, leaf in nnx.to_flat_state(state)
        if (name := ".".join(map(str, path))).startswith(TOWERS if towers_only else "")
    }


class OneKey(nnx.Rngs):
    """The same key for everything, enough for shapes. The counters of nnx.Rngs, traced, cost ten seconds at ConvNeXt-L:
    each step of a counter makes jax write an explanation that nobody reads (measured)."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def _abstract(config: FCCLIPConfig, dtype=jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: FCCLIP(config, dtype=dtype, rngs=OneKey(0))))


def save_model(
    directory: str | os.PathLike,
    card: ModelCard,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype | type = np.float32,
    extra_files: Mapping[str, str | Callable[[], str]] | None = None,
) -> None:
    """Writes a model folder: aside first, then renamed, so a failure leaves nothing behind. A model folder that is
    there already is replaced.

    Args:
        read: name to array, float32 or float16, C-contiguous; called once a parameter, in order. Only one array
            is held at a time.
        dtype: that is stored, float32 or float16.
        extra_files: further text files of the folder, name to content, or to what makes it once the arrays are written.

    Raises:
        WeightsError: `directory` holds something that is not a model folder.
        OSError: the disk is full, or the place is not writable.
    """
    check_replaceable(directory)
    target = Path(directory).resolve()
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write_safetensors(aside / WEIGHTS_FILE, shapes, read, dtype=dtype)
        for name, text in {CONFIG_FILE: card.to_json(), **(extra_files or {})}.items():
            (aside / name).write_text(text() if callable(text) else text, encoding="utf-8")
        _replace(target, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_replaceable(directory: str | os.PathLike) -> None:
    """Whether `save_model` may write there: nothing, an empty folder, or a model folder of this package.

    A config.json alone is not enough, half of all model formats have one.

    Raises:
        WeightsError: there is something else.
    """
    target = Path(directory)
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir() or (any(target.iterdir()) and _format_of(target / CONFIG_FILE) != FORMAT):
        raise WeightsError(f"{target} exists and is not a model folder: choose another place for the output")


def _format_of(path: Path) -> str | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values.get("format") if isinstance(values, dict) else None


def _replace(target: Path, aside: Path) -> None:
    """Folders cannot be exchanged in one step: the old one steps back first, and returns if the new one cannot come."""
    if not target.exists():
        aside.rename(target)
        return
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    try:
        aside.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)


def text_sha256(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> str:
    """Fingerprint of the text tower: `sha256` of all `clip.text.*` parameters in order."""
    return sha256((name for name in shapes if name.startswith(TEXT_TOWER)), read)


def sha256(names: Iterable[str], read: Callable[[str], np.ndarray]) -> str:
    """SHA-256 over these parameters, of each its name, a zero byte, and its bytes as little-endian float32."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
        digest.update(np.asarray(read(name), "<f4", order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load_model(directory: str | os.PathLike, *, dtype=jnp.float32) -> tuple[ModelCard, nnx.GraphDef, nnx.State]:
    """Reads a model folder onto the default device. On a CPU the weights stay where they are, in the file, which is
    mapped into memory: do not change it in its place while the model is in use (`save_model` does not).

    Args:
        dtype: of the computation in towers and transformer decoder; parameters stay as stored.

    Returns:
        the card, and the model split for `jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))`.

    Raises:
        WeightsError: the folder or file is missing, truncated, of another size, or of another dtype.
    """
    card = read_card(directory)
    if card.towers_only:
        raise WeightsError(
            f"{directory} holds only the frozen CLIP towers of {card.config.name}: it can start a training, "
            "but has no mask generator to segment with."
        )
    file = WeightsFile(Path(directory) / WEIGHTS_FILE)
    try:
        graphdef, state = _abstract(card.config, dtype)
    except Exception as error:  # flax and jax raise several kinds for sizes that make no sense
        raise WeightsError(f"{Path(directory) / CONFIG_FILE} describes no model that can be built: {error}") from None
    expected = {".".join(map(str, p)): (p, tuple(leaf.shape)) for p, leaf in nnx.to_flat_state(state)}
    check_shapes(file.path, file.shapes, {name: shape for name, (_, shape) in expected.items()})
    arrays = file.mapped()
    flat = []
    for name, (place, _) in expected.items():
        array = arrays[name]
        if not np.issubdtype(array.dtype, np.floating):
            raise WeightsError(f"{file.path}: {name} is {array.dtype}, expected float32 or float16")
        flat.append((place, nnx.Param(jnp.asarray(array, jnp.float32))))
    return card, graphdef, nnx.from_flat_state(flat)


def load_parameters(directory: str | os.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """The parameters of a model folder whose names begin with `prefix`, as host arrays by name.

    Raises:
        WeightsError: the folder or file is missing or truncated, or does not hold what its configuration says.
    """
    card = read_card(directory)
    file = WeightsFile(Path(directory) / WEIGHTS_FILE)
    expected = parameter_shapes(card.config, towers_only=card.towers_only)
    check_shapes(file.path, file.shapes, expected)
    return dict(file.read(name for name in expected if name.startswith(prefix)))


def state_from_parameters(like: nnx.State, parameters: Mapping[str, np.ndarray]) -> nnx.State:
    """A state of the structure and the dtypes of `like` (arrays or shapes), filled by name with host arrays. (A model
    folder may be in half precision; what is trained from it is not.)"""
    flat = [
        (path, nnx.Param(np.asarray(parameters[".".join(map(str, path))], leaf.dtype)))
        for path, leaf in nnx.to_flat_state(like)
    ]
    return nnx.from_flat_state(flat)


def model_from_parameters(config: FCCLIPConfig, parameters: Mapping[str, np.ndarray]) -> tuple[nnx.GraphDef, nnx.State]:
    """A whole model, split as by `load_model`, from host arrays by name."""
    graphdef, like = _abstract(config)
    return graphdef, jax.tree.map(jnp.asarray, state_from_parameters(like, parameters))


def parameters_of(state: nnx.State) -> dict[str, np.ndarray]:
    """The inverse: host arrays by name."""
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def check_shapes(
    source: str | os.PathLike, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares names and shapes both ways.

    Raises:
        WeightsError: they differ; names the first few of each kind, and counts the rest.
    """
    problems = [
        *_listed("missing", [k for k in expected if k not in found]),
        *_listed("not expected", [k for k in found if k not in expected]),
        *_listed(
            "of another shape",
            [f"{k} {found[k]}, expected {expected[k]}" for k in expected if k in found and found[k] != expected[k]],
        ),
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the model it is read as:\n" + "\n".join(problems))


def _listed(kind: str, names: Iterable[str], show: int = 5) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return [f"  {len(names)} {kind}: {', '.join(names[:show])}{more}"]
