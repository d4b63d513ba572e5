"""Fetches open_clip's weights from the Hugging Face hub and converts them:

    python -m convert.download convnext_large_d_320

An interrupted download goes on where it stopped. The file is compared with the SHA-256 that the hub states. What is
written holds the frozen towers alone, to start a training from; trained FC-CLIP weights are elsewhere, `fcclip` as the
name says where.
"""

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from convert import open_clip
from convert.command_line import guarded, parser, script
from convert.model_folders import check_output
from convert.stored_arrays import CheckpointError

# Model -> open_clip's name of the weights -> repository, the default first. From open_clip's own table (pretrained.py).
REPOSITORIES: dict[str, dict[str, str]] = {
    "convnext_base_w": {
        "laion2b_s13b_b82k_augreg": "laion/CLIP-convnext_base_w-laion2B-s13B-b82K-augreg",
        "laion2b_s13b_b82k": "laion/CLIP-convnext_base_w-laion2B-s13B-b82K",
        "laion_aesthetic_s13b_b82k": "laion/CLIP-convnext_base_w-laion_aesthetic-s13B-b82K",
    },
    "convnext_base_w_320": {
        "laion_aesthetic_s13b_b82k_augreg": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg",
        "laion_aesthetic_s13b_b82k": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K",
    },
    "convnext_large_d": {
        "laion2b_s26b_b102k_augreg": "laion/CLIP-convnext_large_d.laion2B-s26B-b102K-augreg",
    },
    "convnext_large_d_320": {
        "laion2b_s29b_b131k_ft_soup": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        "laion2b_s29b_b131k_ft": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft",
    },
    "convnext_xxlarge": {
        "laion2b_s34b_b82k_augreg_soup": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup",
        "laion2b_s34b_b82k_augreg_rewind": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-rewind",
        "laion2b_s34b_b82k_augreg": "laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg",
    },
    "RN50": {"openai": "timm/resnet50_clip.openai"},
    "RN101": {"openai": "timm/resnet101_clip.openai"},
    "RN50x4": {"openai": "timm/resnet50x4_clip.openai"},
    "RN50x16": {"openai": "timm/resnet50x16_clip.openai"},
    "RN50x64": {"openai": "timm/resnet50x64_clip.openai"},
}

# open_clip's names of the file in a repository (constants.py); older repositories have only the second.
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# The name to ask for FC-CLIP's own weights.
FCCLIP = "fcclip"
# FC-CLIP's README, "Model Zoo", ConvNeXt-Large.
_FCCLIP_URL = "https://drive.google.com/file/d/1-91PIns86vyNaL3CzMmDD39zKGnPMtvj/view"
_FCCLIP_STEPS = (
    "FC-CLIP's own weights lie on Google Drive, which hands large files to browsers only. "
    f"Download the ConvNeXt-Large checkpoint (1.5 GB) from {_FCCLIP_URL} and convert it with\n"
    "  python -m convert.fcclip --input CHECKPOINT.pth --output fcclip_convnext_large\n"
    "Those of the ResNets are in the same table, https://github.com/bytedance/fc-clip#model-zoo"
)


def convert(name: str, output: str | Path | None = None, *, tag: str | None = None, hub: Any = huggingface_hub) -> str:
    """Downloads and converts open_clip's weights of the variant `name`.

    Args:
        output: model folder to write; `checkpoints/NAME` without.
        tag: open_clip's name of the weights, where there are several.
        hub: the module huggingface_hub, or what stands in for it.

    Returns:
        one line about what was written.

    Raises:
        CheckpointError: no such weights, the hub cannot be reached, or the file is not what the hub says.
        WeightsError, OSError: the folder cannot be written; nothing is left behind.
    """
    if name == FCCLIP:
        raise CheckpointError(_FCCLIP_STEPS)
    tags = REPOSITORIES[name]
    if tag is not None and tag not in tags:
        raise CheckpointError(f"there are no weights {tag!r} of {name}; there are {', '.join(tags)}")
    repository = tags[tag] if tag else next(iter(tags.values()))
    output = Path("checkpoints", name) if output is None else Path(output)
    check_output(output)
    path, sha256 = _fetch(hub, repository, f"--model {name} --input FILE --output {output}")
    _verify(path, sha256)
    return open_clip.convert(name, path, output)


def _fetch(hub: Any, repository: str, arguments: str) -> tuple[Path, str]:
    """The file on this machine, and its SHA-256 according to the hub."""
    try:
        for name in FILES:
            try:
                metadata = hub.get_hf_file_metadata(hub.hf_hub_url(repository, name))
            except EntryNotFoundError:
                continue
            path = hub.hf_hub_download(repository, name, revision=metadata.commit_hash)
            return Path(path), str(metadata.etag)
    except Exception as error:
        # Without a network, behind a proxy, with a full cache disk: the library's releases raise different kinds.
        cached = _cached(hub, repository)
        if cached is not None:
            return cached
        raise CheckpointError(
            f"the weights could not be downloaded ({type(error).__name__}: {' '.join(str(error).split()):.200}). "
            f"Run the command again, it goes on where it stopped; or on a machine with a network download\n"
            f"  https://huggingface.co/{repository}/resolve/main/{FILES[0]}\n"
            f"bring it here, and convert it with\n"
            f"  python -m convert.open_clip {arguments}"
        ) from None
    raise CheckpointError(f"https://huggingface.co/{repository} has none of the files {', '.join(FILES)}")


def _cached(hub: Any, repository: str) -> tuple[Path, str] | None:
    """A file of an earlier download. The cache names it by the hub's checksum."""
    for name in FILES:
        try:
            path = Path(hub.hf_hub_download(repository, name, local_files_only=True))
        except Exception:
            # Not there, or only a part of it: again, the kind depends on the library's release.
            continue
        return path, path.resolve().name
    return None


def _verify(path: Path, sha256: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise CheckpointError(f"the hub states no SHA-256 of {path.name}, so that the download cannot be checked")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found}, the hub says {sha256}. Delete {path.resolve()} and run again"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser("convert.download", __doc__)
    options.add_argument("name", choices=[*REPOSITORIES, FCCLIP], help="open_clip's name of the model")
    options.add_argument("--output", metavar="DIR", help="model folder to write (default: checkpoints/NAME)")
    options.add_argument("--tag", help="open_clip's name of the weights, where a model has several")
    args = options.parse_args(argv)
    return guarded(_command, args)


def _command(args: argparse.Namespace) -> str:
    return convert(args.name, args.output, tag=args.tag)


if __name__ == "__main__":
    script(main)
