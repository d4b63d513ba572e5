"""Times FC-CLIP's forward pass on one image in eager PyTorch, float32, on CPU: what this project is measured against.

    python tools/bench/torch_peer.py --height 800 --width 1216 --original 427x640 --repeats 3 --json out.json

Prints JSON: seconds of each stage (medians over the repeats, after one warm-up), their total, and the peak memory of
the process. Needs the `parity` extra. `cores_busy_elsewhere` says how many cores other programs used meanwhile; a run
with more than a tenth is worth little. `--linear onednn` sends matrix products to the faster library on AMD processors;
`--class_heads 1` leaves out the nine class heads whose output inference does not use (the original program computes
all ten).
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch_fcclip as peer

STAGES = ("tower", "pixel_decoder", "transformer_decoder", "class_heads", "classification", "results")


def peak_mb() -> float:
    """The most resident memory this process ever had, in MB (1e6 bytes); Linux counts kB, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def random_vocabulary(embed_dim: int, classes: int = 150, rows: int = 403) -> peer.Vocabulary:
    """As many classes, things and synonyms as ADE20K has, with random unit rows."""
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(rows, embed_dim, generator=generator), dim=-1)
    row_class = (torch.arange(rows) * classes) // rows
    order = torch.randperm(classes, generator=generator)
    return peer.Vocabulary(text, row_class, thing=order < 100, seen=order % 2 == 0)


def synthetic_image(height: int, width: int, original: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """A smooth random picture of the original's shape, scaled to fit and padded with zeros; and its unpadded size."""
    scale = min(height / original[0], width / original[1])
    size = (min(height, round(original[0] * scale)), min(width, round(original[1] * scale)))
    coarse = torch.randn(1, 3, 25, 38, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return torch.nn.functional.pad(picture, (0, width - size[1], 0, height - size[0])), size


def formula_weights(path: Path):
    """The function `fill(released name, shape)` of a Python file, giving tensors."""
    spec = importlib.util.spec_from_file_location("fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, shape: torch.from_numpy(module.fill(name, shape))


def checkpoint_weights(path: Path):
    """A released checkpoint, `.safetensors` or `.pth`."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = state.get("model", state)
    return lambda name, shape: torch.as_tensor(state[name]).reshape(shape)


class Clock:
    """Collects the seconds between calls: wall clock, and processor time of this process (all threads)."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.last = time.perf_counter(), time.process_time()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds[stage], self.cpu[stage] = now[0] - self.last[0], now[1] - self.last[1]
        self.last = now


def busy_seconds() -> float | None:
    """Processor seconds that everybody together has used since boot; None where there is no /proc."""
    try:
        fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def forward(model: peer.FCCLIP, image, size, original, vocabulary, class_heads: int) -> tuple[Clock, dict]:
    """One image through all stages: the seconds of each, and the results."""
    clock = Clock()
    features = model.tower(image)
    clock("tower")
    mask_features, multi_scale = model.decode_pixels(features)
    clock("pixel_decoder")
    queries, masks = model.decode_masks(mask_features, multi_scale)
    clock("transformer_decoder")
    queries, masks = queries[-class_heads:], masks[-class_heads:]
    logits = model.in_vocabulary(queries, masks, mask_features, vocabulary)
    clock("class_heads")
    log_probs = model.classify(logits[-1], features[-1], masks[-1], vocabulary)
    clock("classification")
    resized = peer.resize_masks(masks[-1], image.shape[-2:], size, original)
    sigmoid = resized.sigmoid()
    results = {
        "semantic": peer.semantic(log_probs, sigmoid),
        "panoptic": peer.panoptic(log_probs, sigmoid, vocabulary.thing),
        "instances": peer.instances(log_probs, resized, sigmoid, vocabulary.thing),
    }
    clock("results")
    return clock, results


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--height", type=int, default=800, help="padded input height, a multiple of 32")
    parser.add_argument("--width", type=int, default=1216, help="padded input width, a multiple of 32")
    parser.add_argument("--original", default="427x640", help="HEIGHTxWIDTH of the photo, the size of the results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--class_heads", type=int, default=10, choices=range(1, 11), metavar="1..10")
    parser.add_argument("--layout", choices=("channels_last", "contiguous"), default="channels_last")
    parser.add_argument("--linear", choices=("stock", "onednn"), default="stock", help="library of linear layers")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--fill", type=Path, help="Python file with fill(released name, shape) -> array")
    weights.add_argument("--checkpoint", type=Path, help="released FC-CLIP checkpoint (default: random weights)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args(argv)
    if options.height % 32 or options.width % 32 or min(options.height, options.width) < 32:
        parser.error(f"--height {options.height} --width {options.width}: both must be multiples of 32")
    try:
        options.original = tuple(int(side) for side in options.original.split("x"))
        if len(options.original) != 2 or min(options.original) < 1:
            raise ValueError
    except ValueError:
        parser.error("--original: expected HEIGHTxWIDTH, as in 427x640")
    return options


def prepare(options: argparse.Namespace) -> tuple[peer.FCCLIP, torch.Tensor, tuple[int, int]]:
    """The model, an input image and its unpadded size."""
    torch.manual_seed(0)
    model = peer.build()
    if options.fill or options.checkpoint:
        peer.load(model, formula_weights(options.fill) if options.fill else checkpoint_weights(options.checkpoint))
    image, size = synthetic_image(options.height, options.width, options.original)
    if options.layout == "channels_last":
        model.visual.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)
    if options.linear == "onednn":
        peer.use_onednn(model)
    return model, image, size


def measure(options: argparse.Namespace) -> dict:
    """One warm-up and `--repeats` timed runs: what the program prints."""
    model, image, size = prepare(options)
    vocabulary = random_vocabulary(model.void_embedding.embedding_dim)
    built_mb, load_before, runs = peak_mb(), os.getloadavg()[0], []
    for repeat in range(options.repeats + 1):
        before = busy_seconds()
        clock, results = forward(model, image, size, options.original, vocabulary, options.class_heads)
        wall, cpu = sum(clock.seconds.values()), sum(clock.cpu.values())
        others = None if before is None else round(max(0.0, busy_seconds() - before - cpu) / wall, 2)
        runs.append({"wall": wall, "cpu": cpu, "others": others, "stages": clock.seconds})
        name = f"run {repeat}" if repeat else "warm-up"
        print(f"{name}: {wall:.2f} s, {others} cores busy elsewhere", file=sys.stderr)
    timed = runs[1:] or runs
    return {
        "program": "torch peer (open_clip tower, transformers Mask2Former, eager float32)",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": options.threads,
        "layout": options.layout,
        "linear": options.linear,
        "input": [options.height, options.width],
        "original": list(options.original),
        "class_heads": options.class_heads,
        "seconds": {stage: round(statistics.median(run["stages"][stage] for run in timed), 3) for stage in STAGES},
        "total_seconds": round(statistics.median(run["wall"] for run in timed), 3),
        "all_total_seconds": [round(run["wall"], 3) for run in timed],
        "all_cpu_seconds": [round(run["cpu"], 3) for run in timed],
        "cores_busy_elsewhere": [run["others"] for run in timed],
        "first_run_seconds": round(runs[0]["wall"], 3),
        "peak_rss_mb": round(peak_mb()),
        "peak_rss_before_forward_mb": round(built_mb),
        "load_average_before": round(load_before, 2),
        "segments": len(results["panoptic"][1]),
        "instances": len(results["instances"]["scores"]),
    }


@torch.inference_mode()
def main(argv=None) -> None:
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    text = json.dumps(measure(options), indent=2)
    if options.json:
        aside = options.json.with_name(options.json.name + ".part")
        aside.write_text(text + "\n")
        aside.replace(options.json)
    print(text)


if __name__ == "__main__":
    main()
