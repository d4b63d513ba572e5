"""Images per second of the torch peer on a GPU, by precision and batch size: beside tools/bench/accelerator.py.

    python tools/bench/torch_accelerator.py --json torch_gpu.json     # ConvNeXt-L at 1024 x 1024

Eager PyTorch, channels last, masks and both embeddings included, the class head once, as there. Weights are random.
Each figure is the median of `--repeats` calls after two to warm up, each waited for. bfloat16: autocast, with the pixel
decoder in float32, as the original program has it. Needs the `parity` extra.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_fcclip as peer
from torch.nn import functional

PRECISIONS = ("float32", "tf32", "bfloat16")


def median_seconds(call: Callable[[], Any], repeats: int, wait: Callable[[], None]) -> float:
    for _ in range(2):
        call()
    wait()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def whole(model: peer.FCCLIP, image: torch.Tensor, low: Callable[[], Any]) -> tuple[torch.Tensor, ...]:
    """Masks and their two embeddings; `low` is entered for the parts in reduced precision."""
    with low():
        features = model.tower(image)
    mask_features, multi_scale = model.decode_pixels([feature.float() for feature in features])
    with low():
        queries, masks = model.decode_masks(mask_features, multi_scale)
        class_embed = model.class_head(queries[-1], masks[-1], mask_features)
        dense = features[-1]
        small = functional.interpolate(masks[-1].float(), dense.shape[-2:], mode="bilinear", align_corners=False)
        pooled = peer.mask_pooling(dense.float(), small).flatten(0, 1)[:, :, None, None]
        clip_embed = model.visual.head(model.visual.trunk.head(pooled))
    return masks[-1], class_embed, clip_embed


def measure(model: peer.FCCLIP, precision: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    low = contextlib.nullcontext
    if precision == "bfloat16":
        low = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    image = torch.randn(batch, 3, options.size, options.size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def tower():
        with low():
            return model.tower(image)

    found: dict[str, Any] = {"precision": precision, "batch": batch}
    for name, call in {"tower": tower, "whole": lambda: whole(model, image, low)}.items():
        seconds = median_seconds(call, options.repeats, wait)
        found[name] = {"seconds": seconds, "images_per_second": batch / seconds}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = peer.build().to(options.device)
    model.visual.to(memory_format=torch.channels_last)
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "size": options.size, "runs": []}
    for precision in options.precision:
        for batch in options.batch:
            try:
                run = measure(model, precision, batch, options)
            except torch.OutOfMemoryError as error:
                print(f"torch {precision}, batch {batch}: {str(error).splitlines()[0]}", flush=True)
                continue
            results["runs"].append(run)
            print(
                f"torch {precision}, batch {batch}: {run['whole']['images_per_second']:.1f} images/s; "
                f"tower {run['tower']['images_per_second']:.1f} images/s; peak {run.get('peak_bytes', 0) / 1e9:.2f} GB",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
