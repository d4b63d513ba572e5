"""A model on disk: a folder with config.json (what it is) and model.safetensors (flat parameter names -> arrays).

Parameter names are the paths in the module tree, joined by dots: `clip.visual.stages.0.blocks.0.fc1.kernel`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from fcclip_jax.models.fcclip import FCCLIP, FCCLIPConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
FORMAT = "fcclip_jax"
FORMAT_VERSION = 1

# What a converted open_clip checkpoint holds: the frozen towers alone.
TOWERS = "clip."
TEXT_TOWER = "clip.text."

_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int64): "I64"}

# How much of a file is mapped at a time while it is read.
_MAPPED_BYTES = 128 << 20


class WeightsError(ValueError):
    """A model folder that cannot be used, with the reason and what to do."""


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


def write_safetensors(
    path: str | os.PathLike,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    dtype: np.dtype | type = np.float32,
    dtypes: Mapping[str, str] | None = None,
    written_as: str = FORMAT,
) -> None:
    """Streams arrays into a safetensors file. (The library's own writer needs all of them in memory.)

    `dtype` is that of all arrays but those in `dtypes`, float32, float16 or int64.
    `written_as` is the file's own word for its format; readers of PyTorch models look for "pt" there.

    The header is eight bytes of length and a JSON table of name -> dtype, shape and byte range; data follows.
    """
    types = {name: np.dtype((dtypes or {}).get(name, dtype)) for name in shapes}
    header: dict[str, Any] = {"__metadata__": {"format": written_as}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * types[name].itemsize
        header[name] = {"dtype": _DTYPES[types[name]], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    table = json.dumps(header, separators=(",", ":")).encode()
    table += b" " * (-len(table) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        for name, shape in shapes.items():
            array = np.asarray(read(name), types[name], order="C")
            if array.shape != tuple(shape):
                raise WeightsError(f"{name} has shape {array.shape}, expected {tuple(shape)}")
            file.write(array.data if array.ndim else array.tobytes())
        file.flush()
        os.fsync(file.fileno())


def load_model(directory: str | os.PathLike, *, dtype=jnp.float32) -> tuple[ModelCard, nnx.GraphDef, nnx.State]:
    """Reads a model folder onto the default device.

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
    try:
        graphdef, state = _abstract(card.config, dtype)
    except Exception as error:  # flax and jax raise several kinds for sizes that make no sense
        raise WeightsError(f"{Path(directory) / CONFIG_FILE} describes no model that can be built: {error}") from None
    path = Path(directory) / WEIGHTS_FILE
    wanted = {".".join(map(str, p)): p for p, _ in nnx.to_flat_state(state)}
    shapes = {".".join(map(str, p)): tuple(v.shape) for p, v in nnx.to_flat_state(state)}
    with _open(path) as file:
        check_shapes(path, {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}, shapes)  # noqa: SIM118
    flat = []
    for name, array in _arrays(path, shapes):
        if not np.issubdtype(array.dtype, np.floating):
            raise WeightsError(f"{path}: {name} is {array.dtype}, expected float32 or float16")
        flat.append((wanted[name], nnx.Param(jnp.asarray(array, jnp.float32))))
    return card, graphdef, nnx.from_flat_state(flat)


def _arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads arrays one by one. The file is mapped into memory, and what was read of it counts as the process's own
    until it is closed: so it is opened anew every now and then (half of the memory at ConvNeXt-L, measured)."""
    names = iter(shapes)
    name = next(names, None)
    while name is not None:
        read = 0
        with _open(path) as file:
            while name is not None and read < _MAPPED_BYTES:
                array = file.get_tensor(name)
                read += array.nbytes
                yield name, array
                name = next(names, None)


def load_parameters(directory: str | os.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """The parameters of a model folder whose names begin with `prefix`, as host arrays by name.

    Raises:
        WeightsError: the folder or file is missing or truncated, or does not hold what its configuration says.
    """
    card = read_card(directory)
    path = Path(directory) / WEIGHTS_FILE
    expected = parameter_shapes(card.config, towers_only=card.towers_only)
    with _open(path) as file:
        check_shapes(path, {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}, expected)  # noqa: SIM118
    return dict(_arrays(path, {name: shape for name, shape in expected.items() if name.startswith(prefix)}))


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


def _open(path: Path):
    if not path.is_file():
        raise WeightsError(f"{path} is missing: the model folder is not complete, convert or copy it again")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is damaged ({error}): it may have been cut short, convert or copy it again"
        ) from None
